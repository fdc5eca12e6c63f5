"""The definition of the public API passes buf's lint, and the generated Python modules are current."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.api import field_behavior_pb2

from foley_pipeline.api import foley_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "pipeline" / "foley_pipeline" / "api"
BUF = Path(sys.executable).with_name("buf")


def generator(proto: Path) -> ModuleType:
    """Import `generate.py` from the folder `proto`."""
    spec = importlib.util.spec_from_file_location("generate", proto / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lint(proto: Path, image: Path) -> str:
    """Return buf's findings for the definitions in `proto`."""
    generator(proto).image(image)
    command = [BUF, "lint", image, "--path", "foley/v1/foley.proto", "--config", "buf.yaml"]
    run = subprocess.run(
        command, cwd=proto, capture_output=True, text=True, check=False, env={"HOME": str(image.parent)}
    )
    assert (run.returncode == 0) == (run.stdout == ""), run.stderr
    return run.stdout


def test_generated_modules_are_current(tmp_path):
    """`make proto` regenerates them."""
    generator(ROOT / "proto").modules(tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["foley_pb2.py", "foley_pb2.pyi", "foley_pb2_grpc.py"]
    for name in made:
        assert (API / name).read_text() == (tmp_path / name).read_text()


def test_buf_lint_passes(tmp_path):
    assert lint(ROOT / "proto", tmp_path / "image.binpb") == ""


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        ("sample_rate_hz", "SampleRate", "lower_snake_case"),
        ("PROFILE_UNSPECIFIED", "PROFILE_NONE", "UNSPECIFIED"),
        ("  // Samples a second.\n", "", "comment"),
    ],
)
def test_buf_lint_finds_planted_violation(tmp_path, good, bad, rule):
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    definition = tmp_path / "proto" / "foley" / "v1" / "foley.proto"
    text = definition.read_text()
    assert good in text
    definition.write_text(text.replace(good, bad))
    assert rule in lint(tmp_path / "proto", tmp_path / "image.binpb")


def test_every_field_has_field_behavior():
    """AIP-203 requires google.api.field_behavior, except for members of a oneof."""
    unannotated = [
        field.full_name
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if not field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        and (field.containing_oneof is None or len(field.containing_oneof.fields) == 1)
    ]
    assert unannotated == []


def test_every_enum_has_unspecified_zero():
    for enum in pb.DESCRIPTOR.enum_types_by_name.values():
        assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")
