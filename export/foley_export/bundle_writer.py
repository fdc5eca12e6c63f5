"""Writes bundles atomically; the manifest holds the hash of every file."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foley.bundle import ENGINES, MANIFEST, file_sha256
from foley.errors import OutputError
from foley.manifest import Manifest


@contextmanager
def new_bundle(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `destination` if the context exits without an exception.

    Raises:
        OutputError: If `destination` exists or cannot be created.
    """
    if destination.exists():
        raise OutputError(f"{destination} already exists; remove it or choose another folder")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror}") from error
    try:
        folder.chmod(0o755)
        yield folder
        folder.rename(destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(root: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.json` with the sha256 of every file in the bundle; return the manifest written.

    Engines are excluded: they are specific to a machine and have sidecar files that describe their origin.
    """
    names = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    files = {
        name: file_sha256(path)
        for name, path in names.items()
        if name != MANIFEST and not name.startswith(f"{ENGINES}/")
    }
    complete = manifest.model_copy(update={"files": files})
    temporary = root / f".{MANIFEST}"
    temporary.write_text(complete.model_dump_json(indent=2) + "\n")
    temporary.replace(root / MANIFEST)
    return complete
