"""`foley-export verify` passes equal values, fails different ones, and names what it cannot read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foley_export import cli, verification
from foley_export.networks.bn_inception import FlowFeatures
from foley_export.presets import PAPER
from foley_export.verification import CHECKS
from foley_export.verification.comparison import Comparison, compare, exact, half, within_one_level
from foley_export.verification.vectors import Vectors
from foley_export.weights import fill, seeded_tensor

METRICS, FLOW_FEATURES = (next(c for c in CHECKS if c.module == name) for name in ("metrics", "flow_features"))
VECTOR = "label_smoothing_and_metrics.npz"


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A folder with a correct vector for METRICS."""
    classes = np.arange(40)[None]
    (tmp_path / "vectors").mkdir()
    np.savez(
        tmp_path / "vectors" / VECTOR,
        logits=np.eye(64, dtype=np.float32)[classes].transpose(0, 2, 1),
        classes=classes,
        rms_continuous=np.zeros((1, 40), np.float32),
        event_l1=np.float32(verification.tables.envelope.class_levels()[:40].mean()),
        **{f"accuracy_pm{tolerance}": np.float32(1) for tolerance in (0, 2, 5, 8)},
    )
    return tmp_path


@pytest.fixture
def verify(monkeypatch, capsys):
    """Run `foley-export verify` with only METRICS; return exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(verification, "CHECKS", (METRICS,))
        monkeypatch.setattr(sys, "argv", ["foley-export", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


def test_equal_values_pass(reference, verify):
    code, table, errors = verify("--vectors", reference)
    assert code == 0, errors
    assert table.count("pass") == 5
    assert "FAIL" not in table
    assert "not checked" not in table


def test_different_value_fails_and_others_are_checked(reference, verify):
    change(reference, accuracy_pm2=np.float32(0.5))
    code, table, errors = verify("--vectors", reference)
    assert code == 1
    assert (table.count("pass"), table.count("FAIL")) == (4, 1)
    assert errors.splitlines()[-1].startswith("error: 1 of 5 comparisons failed")


def test_unread_vectors_are_named(reference, verify):
    change(reference, surplus=np.zeros(3))
    shutil.copy(reference / "vectors" / VECTOR, reference / "vectors" / "another.npz")
    code, table, _ = verify("--vectors", reference)
    assert code == 0
    assert f"not checked: another.npz, {VECTOR}: surplus" in table


def write_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def write_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def write_pickle(path: Path) -> None:
    np.savez(path, logits=np.array([{}], dtype=object))


def write_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "missing"),
        (write_truncated, "damaged"),
        (write_flipped, "damaged"),
        (write_pickle, "damaged"),
        (write_array, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: np.savez(path, logits=np.zeros((1, 64, 4))), "no array 'classes'"),
        (lambda path: np.savez(path, logits=np.zeros(4), classes=np.zeros(3)), "failed with"),
    ],
)
def test_unusable_vector_fails(reference, verify, damage, message):
    damage(reference / "vectors" / VECTOR)
    code, table, _ = verify("--vectors", reference)
    assert code == 1
    assert "FAIL" in table
    assert message in " ".join(table.split())


@pytest.mark.parametrize("folder", ["nowhere", "vectors"])
def test_rejects_folder_without_vectors(reference, verify, folder):
    code, table, errors = verify("--vectors", reference / folder)
    assert (code, table) == (2, "")
    assert "--vectors" in errors


def test_folder_is_required_without_default(monkeypatch, tmp_path, verify):
    monkeypatch.setattr(verification.vectors, "_BESIDE_CHECKOUT", tmp_path / "none")
    code, _, errors = verify()
    assert code == 2
    assert "--vectors" in errors


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_missing_vectors_fail_in_ci_and_skip_elsewhere(repository, tmp_path, ci, code):
    tests = repository / "tests" / "reference" / "test_checkpoint_keys.py"
    suite = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "CI": ci, "FOLEY_REFERENCE": str(tmp_path)},
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert suite.returncode == code, suite.stdout
    assert "no reference data in" in suite.stdout


def test_weights_depend_on_salt():
    plain, salted = seeded_tensor("layer.weight", (4, 3)), seeded_tensor("layer.weight", (4, 3), "x")
    assert not np.allclose(plain, salted)
    np.testing.assert_array_equal(salted, seeded_tensor("layer.weight", (4, 3), "x"))
    np.testing.assert_array_equal(salted, seeded_tensor("xlayer.weight", (4, 3)))  # the seed is salt + key


@pytest.fixture(scope="module")
def salted(tmp_path_factory) -> Vectors:
    """Vectors of the flow network with weights of the salt "x"."""
    flow = np.random.default_rng(0).integers(0, 256, (2, 2, 256, 344), np.uint8)
    network = fill(FlowFeatures(PAPER), "x")
    images = torch.from_numpy(flow).permute(0, 2, 3, 1)
    with torch.inference_mode():
        arrays = {
            "network_input": network.network_input(images[:1]).numpy().astype(np.float16),
            "features": network(images).numpy(),
        }
    folder = tmp_path_factory.mktemp("salted")
    (folder / "vectors").mkdir()
    np.savez(folder / "vectors" / "bninception_flow.npz", flow_uint8=flow, **arrays)
    np.savez(
        folder / "vectors" / "jpeg_round_trip.npz",
        flow_uint8=flow[:1],
        flow_after_jpeg=flow[1:],
        flow_features=arrays["features"][:1],
        flow_features_after_jpeg=arrays["features"][1:],
    )
    return Vectors(folder)


def test_module_and_graph_use_the_salt_of_the_vectors(salted):
    passed = {(result.what, result.engine): result.passed for result in FLOW_FEATURES.run(salted, "x", onnx=True)}
    outputs = ("features", "features before JPEG", "features after JPEG")
    compared = [("network input", "torch"), *((what, engine) for engine in ("torch", "onnx") for what in outputs)]
    assert passed == dict.fromkeys(compared, True)


def test_failed_export_is_a_failure(salted, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verification.check, "export_graph", fail)
    *others, last = FLOW_FEATURES.run(salted, "x", onnx=True)
    assert all(result.passed for result in others)
    assert not last.passed
    assert "No space left" in last.problem


def test_vectors_of_another_salt_fail(salted):
    passed = {result.what: result.passed for result in FLOW_FEATURES.run(salted, "y")}
    # the input does not depend on weights
    assert passed.pop("network input")
    assert passed == {"features": False, "features before JPEG": False, "features after JPEG": False}


ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("comparison", "passed"),
    [
        (Comparison("within", ONES * 1.00005, ONES), True),
        (Comparison("beyond", ONES * 1.0002, ONES), False),
        (Comparison("both zero", ONES * 0, ONES * 0), True),
        (Comparison("official zero", ONES * 1e-20, ONES * 0), False),
        (Comparison("not a number", ONES * np.nan, ONES), False),
        (Comparison("neither is a number", ONES * np.nan, ONES * np.nan), False),
        (Comparison("another shape", ONES[None], ONES), False),
        (Comparison("nothing", ONES[:0], ONES[:0]), False),
        (exact("equal", ONES, ONES), True),
        (exact("last bit", ONES, np.nextafter(ONES, 2)), False),
        (half("rounds alike", ONES + np.float32(1e-4), ONES.astype(np.float16)), True),
        (half("rounds otherwise", ONES + np.float32(1e-3), ONES.astype(np.float16)), False),
        (
            within_one_level("one level in a great many", np.append(np.full(99_999, 128), 127), np.full(100_000, 128)),
            True,
        ),
        (within_one_level("two levels", np.append(np.full(99_999, 128), 126), np.full(100_000, 128)), False),
        (within_one_level("a level too often", np.full(9, 127), np.full(9, 128)), False),
    ],
    ids=lambda value: value.what if isinstance(value, Comparison) else "",
)
def test_comparison_passes_within_tolerance(comparison, passed):
    assert compare("module", "torch", comparison).passed == passed


def change(reference: Path, **arrays: np.ndarray) -> None:
    """Add `arrays` to the vector, replacing those of the same name."""
    path = reference / "vectors" / VECTOR
    with np.load(path) as old:
        np.savez(path, **{**old, **arrays})
