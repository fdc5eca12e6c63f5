"""Structure of the project: allowed imports, light dependencies of the client, and consistency of duplicated facts."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from importlib import metadata
from itertools import chain
from pathlib import Path

import grpc
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import foley
from foley import errors
from foley.manifest import Manifest
from foley.stages import stages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    "foley",
    "foley_pipeline",
    "foley_client",
    "foley_server",
    "foley_export",
    "foley_training",
    "foley_bench",
    "harness",  # in tests/
}
# folder -> packages of PACKAGES that it may import
ALLOWED = {
    "core/foley": {"foley"},
    "pipeline/foley_pipeline": {"foley", "foley_pipeline"},
    "client/foley_client": {"foley", "foley_pipeline", "foley_client"},
    "server/foley_server": {"foley", "foley_pipeline", "foley_server"},
    "export/foley_export": {"foley", "foley_export"},
    "training/foley_training": {"foley", "foley_export", "foley_training"},
    "benchmarks/foley_bench": PACKAGES - {"harness"},
    "model_repository": {"foley"},
}
# package of foley_server -> other packages of foley_server that it imports
SERVER = {
    "backend": set(),  # runs inside Triton
    "sandbox": set(),
    "telemetry": set(),
    "launcher": set(),
    "jobs": {"launcher", "telemetry"},
    "http": {"api", "jobs", "sandbox"},
    "api": {"http", "jobs", "launcher", "sandbox", "telemetry"},  # `api.app` assembles the process
}
COMPONENTS = sorted(path.parent.name for path in ROOT.glob("*/pyproject.toml"))
HEAVY = ("torch", "scipy", "onnx", "onnxruntime", "pytriton", "cv2", "foley_server", "foley_export", "foley_training")


def imports(file: Path) -> set[str]:
    """Return the top-level packages that a Python file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_bytes(), file)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_only_allowed_packages(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    wrong = {
        str(file.relative_to(ROOT)): extra for file in files if (extra := imports(file) & PACKAGES - ALLOWED[folder])
    }
    assert not wrong


@pytest.mark.parametrize("package", SERVER)
def test_server_packages_import_only_allowed_packages(package):
    root = ROOT / "server" / "foley_server"
    assert {path.parent.name for path in root.glob("*/__init__.py")} == set(SERVER)
    source = "".join(file.read_text() for file in (root / package).rglob("*.py"))
    imported = set(re.findall(r"^\s*from foley_server\.(\w+)", source, re.MULTILINE))
    assert imported - {package} == SERVER[package]
    assert not re.search(r"from foley_server import|import foley_server", source)


def test_top_level_folders_are_not_packages():
    folders = ("client", "server", "export", "training", "tests", "core", "pipeline", "benchmarks", "model_repository")
    assert not [folder for folder in folders if (ROOT / folder / "__init__.py").exists()]


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_has_the_same_version(component):
    project = tomllib.loads((ROOT / component / "pyproject.toml").read_text())["project"]
    assert project["version"] == foley.__version__
    lines = [*project["dependencies"], *chain.from_iterable(project.get("optional-dependencies", {}).values())]
    siblings = [Requirement(line) for line in lines if line.startswith("foley-")]
    assert all(str(requirement.specifier) == f"=={foley.__version__}" for requirement in siblings)


def test_only_triton_limits_numpy_and_python():
    limited, newest = set(), set()
    for component in COMPONENTS:
        project = tomllib.loads((ROOT / component / "pyproject.toml").read_text())["project"]
        for extra, lines in {"": project["dependencies"], **project.get("optional-dependencies", {})}.items():
            for requirement in map(Requirement, lines):
                if requirement.name == "numpy" and "2.5" not in requirement.specifier:
                    limited.add((component, extra))
        if "3.14" in SpecifierSet(project["requires-python"]):
            newest.add(component)
    assert limited == {("server", "triton")}
    assert newest == {"core", "pipeline", "client"}


@pytest.mark.parametrize("package", sorted(PACKAGES - {"harness"}))
def test_every_package_has_the_version(package):
    assert importlib.import_module(package).__version__ == foley.__version__


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_command_prints_the_version(component):
    project = tomllib.loads((ROOT / component / "pyproject.toml").read_text())["project"]
    for command in project.get("scripts", {}):
        program = Path(sys.executable).with_name(command)
        run = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        assert run.stdout == f"{command} {foley.__version__}\n"


def test_all_components_are_found():
    assert {"core", "pipeline", "client", "server", "export"} <= set(COMPONENTS)


def test_client_imports_without_heavy_packages():
    program = f"""
import sys
HEAVY = {HEAVY!r}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Blocked())
import foley_client, foley_client.cli
print(sorted(name for name in sys.modules if name.split(".")[0] in HEAVY))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def requirements(distribution: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Return the names of all distributions that installing `distribution` installs here, itself included."""
    if (distribution, extras) in seen:
        return set()
    seen.add((distribution, extras))
    names = {distribution}
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:  # for another platform, or of an extra that is not installed
        return names
    for requirement in map(Requirement, lines):
        needed = (
            (requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}) if requirement.marker else [True]
        )
        if any(needed):
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            names |= requirements(name, frozenset(requirement.extras), seen)
    return names


def test_client_requires_core_and_no_heavy_packages():
    names = requirements("foley-client", frozenset(), set())
    assert {"foley-core", "foley-pipeline", "tritonclient", "grpcio", "numpy"} <= names
    heavy = re.compile(
        r"torch.*|scipy|onnx.*|nvidia-.*|tensorrt.*|triton|transformers|diffusers|opencv.*|foley-(server|export|training|bench)"
    )
    assert not [name for name in names if heavy.fullmatch(name)]


def test_make_demo_installs_server_without_torch(tmp_path):
    command = ["make", "--dry-run", "demo", f"VENV={tmp_path}"]
    recipe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installed = [Requirement(f"foley-{path}") for path in re.findall(r"-e '?([\w\[\]]+)", recipe)]
    assert len(re.findall("pip install", recipe)) == 1
    names = set().union(*(requirements(one.name, frozenset(one.extras), set()) for one in installed))
    assert {"foley-client", "foley-server", "nvidia-pytriton", "onnxruntime", "opencv-python-headless"} <= names
    heavy = re.compile(r"torch.*|onnx|nvidia-cu.*|triton|transformers|diffusers|foley-(export|training|bench)")
    assert not [name for name in names if heavy.fullmatch(name)]


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_documents_exist(document):
    folders = "|".join((*COMPONENTS, "tests", "docs", "deploy", "examples", "model_repository", "proto"))
    named = re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", document.read_text())
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_handwritten_models_are_stages():
    table = stages(Manifest(name="paper"))
    folders = [path.name for path in (ROOT / "model_repository").iterdir() if path.is_dir()]
    assert {table[name].kind for name in folders} == {"python"}


def error_classes() -> list[type[errors.FoleyError]]:
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.FoleyError) and value.__module__ == errors.__name__
    ]


@pytest.mark.parametrize("error", error_classes())
def test_every_error_has_exit_code_and_grpc_status(error):
    assert 1 <= error.exit_code <= 255
    assert error.grpc_status in grpc.StatusCode.__members__
    assert error.grpc_status != "OK"
    assert error.__doc__


def test_error_tree_in_docstring_matches_classes():
    drawn: dict[str, tuple[str | None, int, str]] = {}
    ancestors: list[tuple[int, str]] = []  # column and name, from the root down
    assert errors.__doc__
    for line in errors.__doc__.splitlines():
        match = re.match(r"\s+[│├└─ ]*(?P<name>[A-Z]\w+)(?:\s+exit (?P<code>\d+)\s+(?P<status>[A-Z_]+))?", line)
        if not match:
            continue
        column = match.start("name")
        while ancestors and ancestors[-1][0] >= column:
            ancestors.pop()
        parent = ancestors[-1][1] if ancestors else None
        if match["code"]:
            code, status = int(match["code"]), match["status"]
        else:
            assert parent, line
            _, code, status = drawn[parent]
        drawn[match["name"]] = (parent, code, status)
        ancestors.append((column, match["name"]))
    real = {
        error.__name__: (
            error.__base__.__name__ if error is not errors.FoleyError else None,
            error.exit_code,
            error.grpc_status,
        )
        for error in error_classes()
    }
    assert drawn == real


def test_every_error_class_is_in_the_tree():
    """No component defines an error that the tree does not show."""
    tree = {error.__name__ for error in error_classes()}
    strays = {
        (str(file.relative_to(ROOT)), node.name)
        for folder in ALLOWED
        for file in (ROOT / folder).rglob("*.py")
        if file != ROOT / "core/foley/errors.py"
        for node in ast.walk(ast.parse(file.read_bytes(), file))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in tree | {"Exception", "RuntimeError", "ValueError"}
    }
    assert not strays
