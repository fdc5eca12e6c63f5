"""Bundles are verified before use: every fault is a BundleError that names the file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from foley import bundle
from foley.errors import BundleError
from foley.manifest import DisFlowConfig, Manifest, OpticalFlowConfig
from foley.stages import networks, stages

CONTENT = {"networks/denoiser.onnx": b"graph", "networks/denoiser.safetensors": b"weights", bundle.TOKENIZER: b"{}"}


def write(root: Path, **changes: object) -> Path:
    """Write a valid bundle with `changes` in its manifest."""
    for path, content in CONTENT.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    files = {path: bundle.file_sha256(root / path) for path in CONTENT}
    document = json.loads(Manifest(name="small", files=files).model_dump_json()) | changes
    (root / bundle.MANIFEST).write_text(json.dumps(document))
    return root


def test_valid_bundle_is_read_and_verified(tmp_path):
    opened = bundle.read(write(tmp_path))
    bundle.verify(opened)
    assert opened.manifest.name == "small"
    assert opened.path("networks/denoiser.onnx").read_bytes() == b"graph"
    assert set(opened.missing_graphs()) == set(networks(opened.manifest)) - {"denoiser"}


def write_manifest(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / bundle.MANIFEST).write_bytes(content)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "missing": lambda root: (root / bundle.MANIFEST).unlink(),
    "folder": lambda root: ((root / bundle.MANIFEST).unlink(), (root / bundle.MANIFEST).mkdir()),
    "empty": write_manifest(b""),
    "not JSON": write_manifest(b"name: small"),
    "binary": write_manifest(bytes(range(256))),
    "list": write_manifest(b"[]"),
    "deeply nested": write_manifest(b'{"name":' + b"[" * 100_000),
    "huge": lambda root: (root / bundle.MANIFEST).open("r+b").truncate(2**40),
    "unknown key": lambda root: write(root, novelty=1),
    "unknown nested key": lambda root: write(root, vocoder={"wdith": 64}),
    "unknown schema version": lambda root: write(root, schema_version=2),
    "no name": write_manifest(b'{"schema_version": 1}'),
    "path as name": lambda root: write(root, name="../x"),
    "zero size": lambda root: write(root, denoiser={"width": 0}),
    "size of wrong type": lambda root: write(root, denoiser={"width": "wide"}),
    "file without hash": lambda root: write(root, files={"a": None}),
}


@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_invalid_manifest_is_named(tmp_path, damage):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(BundleError) as raised:
        bundle.read(tmp_path)
    assert str(tmp_path / bundle.MANIFEST) in str(raised.value)


def test_invalid_key_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"vocoder\.wdith"):
        bundle.read(write(tmp_path, vocoder={"wdith": 64}))


@pytest.mark.parametrize(
    ("optical_flow", "expected"),
    [
        ({}, OpticalFlowConfig()),
        ({"updates": 3}, OpticalFlowConfig(updates=3)),
        ({"preset": "medium"}, DisFlowConfig(preset="medium")),
    ],
)
def test_optical_flow_is_a_network_or_dis(tmp_path, optical_flow, expected):
    manifest = bundle.read(write(tmp_path, optical_flow=optical_flow)).manifest
    assert manifest.optical_flow == expected
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert ("optical_flow" in networks(manifest)) == isinstance(expected, OpticalFlowConfig)
    assert "optical_flow" in stages(manifest)


@pytest.mark.parametrize(
    ("optical_flow", "message"),
    [
        ({"preset": "slow"}, r"optical_flow.*preset: Input should be 'ultrafast', 'fast' or 'medium'"),
        ({"preset": "fast", "updates": 3}, r"optical_flow.*updates: Extra inputs"),
        ({"updates": 0}, r"optical_flow.*updates: Input should be greater than 0"),
        ({"presets": "fast"}, r"optical_flow.*presets: Extra inputs"),
        ("fast", r"optical_flow"),
    ],
)
def test_invalid_optical_flow_is_reported(tmp_path, optical_flow, message):
    with pytest.raises(BundleError, match=message):
        bundle.read(write(tmp_path, optical_flow=optical_flow))


def test_missing_folder_is_named_with_remedy(tmp_path):
    with pytest.raises(BundleError, match="foley-export init") as raised:
        bundle.read(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(raised.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"weighty"),
        lambda path: path.write_bytes(b"weight"),
        lambda path: path.write_bytes(b""),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["missing", "changed", "truncated", "empty", "folder"],
)
def test_file_that_differs_from_manifest_is_named(tmp_path, damage):
    opened = bundle.read(write(tmp_path))
    damage(tmp_path / "networks/denoiser.safetensors")
    with pytest.raises(BundleError) as raised:
        bundle.verify(opened)
    assert str(tmp_path.resolve() / "networks/denoiser.safetensors") in str(raised.value)


@pytest.mark.parametrize("name", ["../secret", "networks/../../secret", "ABSOLUTE", "link"])
def test_rejects_path_outside_the_bundle(tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    root = tmp_path / "bundle"
    write(root)
    (root / "link").symlink_to(secret)
    name = str(secret) if name == "ABSOLUTE" else name
    opened = bundle.read(write(root, files={name: bundle.file_sha256(secret)}))
    with pytest.raises(BundleError, match="outside") as raised:
        bundle.verify(opened)
    assert name in str(raised.value)


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 5_000], ids=["empty", "dot", "NUL", "too long"])
def test_rejects_invalid_file_name(tmp_path, name):
    opened = bundle.read(write(tmp_path, files={name: "0" * 64}))
    with pytest.raises(BundleError):
        bundle.verify(opened)


def test_digest_depends_on_content_not_location(tmp_path):
    first = bundle.read(write(tmp_path / "a"))
    assert bundle.read(write(tmp_path / "b")).digest == first.digest
    changed = {**first.manifest.files, "networks/denoiser.onnx": "0" * 64}
    digests = {
        first.digest,
        bundle.read(write(tmp_path / "c", files=changed)).digest,
        bundle.read(write(tmp_path / "d", sampling={"steps": 26})).digest,
        bundle.read(write(tmp_path / "e", vae_decoder={"scale_factor": 0.5})).digest,
    }
    assert len(digests) == 4
