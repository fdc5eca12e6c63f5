"""The bundle `demo` is complete and small, matches its preset, and has the graphs that `foley-export onnx` writes."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from foley import bundle as bundles
from foley.bundle import MANIFEST, graph_file, weights_file
from foley.stages import networks, weighted_networks
from foley_export.make import load_network
from foley_export.onnx_export import export
from foley_export.presets import DEMO

WEIGHTS_BYTES = 25_000_000  # maximum of all weights together


@pytest.fixture(scope="module")
def demo(repository: Path) -> bundles.Bundle:
    return bundles.read(repository / "bundles" / "demo")


def test_files_match_manifest(demo: bundles.Bundle) -> None:
    bundles.verify(demo)
    assert not demo.missing_graphs()
    files = {path.relative_to(demo.root).as_posix() for path in demo.root.rglob("*") if path.is_file()}
    assert files == {*demo.manifest.files, MANIFEST}


def test_manifest_matches_preset(demo: bundles.Bundle) -> None:
    learned = {"sources": (), "files": {}, "vae_decoder": DEMO.vae_decoder}
    assert demo.manifest.model_copy(update=learned) == DEMO
    scaled = {"scale_factor": demo.manifest.vae_decoder.scale_factor}
    assert demo.manifest.vae_decoder == DEMO.vae_decoder.model_copy(update=scaled)
    assert demo.manifest.sources


def test_weights_are_small_and_half_precision(demo: bundles.Bundle) -> None:
    files = list(demo.root.rglob("*.safetensors"))
    assert len(files) == len(weighted_networks(demo.manifest)) + 1  # including the regression baseline
    assert sum(path.stat().st_size for path in files) <= WEIGHTS_BYTES
    for path in files:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        assert "F16" in dtypes
        assert dtypes <= {"F16", "I64"}, path  # int64: counters and tables of batch normalisation and attention


FAST_EXPORTS = {"clap_text", "vae_decoder", "vocoder"}


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=[] if stage in FAST_EXPORTS else [pytest.mark.long])  # all together take a minute
        for stage in networks(DEMO)
    ],
)
def test_graphs_match_export(demo: bundles.Bundle, tmp_path: Path, stage: str) -> None:
    weights = tmp_path / weights_file(stage)
    weights.parent.mkdir()
    shutil.copy(demo.path(weights_file(stage)), weights)
    export(load_network(demo, stage), weights, tmp_path / graph_file(stage))
    shipped, shipped_tables = split_tables(demo.path(graph_file(stage)))
    made, made_tables = split_tables(tmp_path / graph_file(stage))
    assert made == shipped
    assert made_tables.keys() == shipped_tables.keys()
    for name, table in made_tables.items():
        np.testing.assert_allclose(table, shipped_tables[name], rtol=1e-6, atol=1e-7, err_msg=name)


def split_tables(graph: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a graph without its embedded tables, and the tables: CPUs differ in the rounding of their last bits."""
    model = onnx.load(graph, load_external_data=False)
    model.producer_version = ""  # includes the build of PyTorch
    tables = {}
    for tensor in model.graph.initializer:
        if tensor.raw_data:
            tables[tensor.name] = numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")
    return model, tables
