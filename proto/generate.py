"""Makes the Python modules of `foley.proto`: `python proto/generate.py FOLDER`, or `make proto`.

`image` is what `buf lint` reads. Both need grpcio-tools, which only developers install.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google.longrunning
import grpc_tools
from google.longrunning import operations_proto
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PACKAGE = "foley_pipeline/api"  # the import package that the modules are part of


def modules(folder: Path) -> None:
    """Write `foley_pb2.py`, its type stub and `foley_pb2_grpc.py` as modules of `PACKAGE` into `folder`."""
    with tempfile.TemporaryDirectory() as temporary:
        # the path that a file is compiled under is the module that the others import it as
        _protoc(
            f"-I{PACKAGE}={HERE / 'foley/v1'}",
            *(f"--{kind}_out={temporary}" for kind in ("python", "pyi", "grpc_python")),
            f"{PACKAGE}/foley.proto",
        )
        folder.mkdir(parents=True, exist_ok=True)
        for module in sorted((Path(temporary) / PACKAGE).iterdir()):
            shutil.copy(module, folder)


def image(path: Path) -> None:
    """Write the descriptors of `foley.proto` and all that it imports to `path`, with comments."""
    _protoc(
        f"-I{HERE}",
        f"--descriptor_set_out={path}",
        "--include_imports",
        "--include_source_info",
        "foley/v1/foley.proto",
    )


def _protoc(*arguments: str) -> None:
    with _imports() as folders:
        status = protoc.main(["protoc", *(f"-I{folder}" for folder in folders), *arguments])
    if status:
        sys.exit(status)


@contextmanager
def _imports() -> Iterator[list[Path]]:
    """Folders that hold google's own files. googleapis-common-protos has one of them under another name."""
    packages = Path(google.longrunning.__path__[0]).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        operations = Path(folder) / "google/longrunning/operations.proto"
        operations.parent.mkdir(parents=True)
        shutil.copy(Path(operations_proto.__file__).with_name("operations_proto.proto"), operations)
        yield [Path(folder), Path(grpc_tools.__file__).parent / "_proto", packages]


if __name__ == "__main__":
    modules(Path(sys.argv[1]))
