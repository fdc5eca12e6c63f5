"""The bundle that ships is whole, small, the preset's, and its graphs are what `foley-export onnx` makes of it."""

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

WEIGHTS_BYTES = 25_000_000  # at most, of all weights together


@pytest.fixture(scope="module")
def demo(repository: Path) -> bundles.Bundle:
    return bundles.read(repository / "bundles" / "demo")


def test_every_file_is_the_one_that_the_manifest_means(demo: bundles.Bundle) -> None:
    bundles.verify(demo)
    assert not demo.missing_graphs()
    there = {path.relative_to(demo.root).as_posix() for path in demo.root.rglob("*") if path.is_file()}
    assert there == {*demo.manifest.files, MANIFEST}


def test_sizes_are_those_of_the_preset(demo: bundles.Bundle) -> None:
    learned = {"sources": (), "files": {}, "vae_decoder": DEMO.vae_decoder}
    assert demo.manifest.model_copy(update=learned) == DEMO
    scaled = {"scale_factor": demo.manifest.vae_decoder.scale_factor}
    assert demo.manifest.vae_decoder == DEMO.vae_decoder.model_copy(update=scaled)
    assert demo.manifest.sources


def test_weights_are_half_and_small(demo: bundles.Bundle) -> None:
    files = list(demo.root.rglob("*.safetensors"))
    assert len(files) == len(weighted_networks(demo.manifest)) + 1  # and the regression baseline
    assert sum(path.stat().st_size for path in files) <= WEIGHTS_BYTES
    for path in files:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        assert "F16" in dtypes
        assert dtypes <= {"F16", "I64"}, path  # counters and tables of batch normalisation and attention


FAST_EXPORTS = {"clap_text", "vae_decoder", "vocoder"}


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=[] if stage in FAST_EXPORTS else [pytest.mark.long])  # all together take a minute
        for stage in networks(DEMO)
    ],
)
def test_graphs_are_what_the_export_makes(demo: bundles.Bundle, tmp_path: Path, stage: str) -> None:
    weights = tmp_path / weights_file(stage)
    weights.parent.mkdir()
    shutil.copy(demo.path(weights_file(stage)), weights)
    export(load_network(demo, stage), weights, tmp_path / graph_file(stage))
    shipped, shipped_tables = apart(demo.path(graph_file(stage)))
    made, made_tables = apart(tmp_path / graph_file(stage))
    assert made == shipped
    assert made_tables.keys() == shipped_tables.keys()
    for name, table in made_tables.items():
        np.testing.assert_allclose(table, shipped_tables[name], rtol=1e-6, atol=1e-7, err_msg=name)


def apart(graph: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A graph without the tables in it, and those: another processor may round their last bit another way."""
    model = onnx.load(graph, load_external_data=False)
    model.producer_version = ""  # of PyTorch, with the name of its build
    tables = {}
    for tensor in model.graph.initializer:
        if tensor.raw_data:
            tables[tensor.name] = numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")
    return model, tables
