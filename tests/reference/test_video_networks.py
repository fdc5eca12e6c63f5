"""The video side's networks against the official implementation, at the official size."""

import numpy as np
import pytest
import torch

from foley.manifest import Manifest
from foley_export.networks.bn_inception import FlowFeatures, RgbFeatures
from foley_export.networks.optical_flow import OpticalFlow
from foley_export.networks.video2rms import Video2RMS
from foley_export.weights import fill

PAPER = Manifest(name="paper")
TOLERANCE = 1e-4  # relative L2 error
HALF_PRECISION = 2.0**-11  # what rounding to float16 alone can add; some vectors are stored so
LEVELS_OFF_BY_ONE = 1e-4  # share of flow bytes that float rounding may truncate the other way

OFFICIAL_KEYS = {
    Video2RMS: "video2rms.json",
    RgbFeatures: "bn_inception.json",
    FlowFeatures: "bn_inception.json",
    OpticalFlow: "raft_large.json",
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("network", OFFICIAL_KEYS)
def test_state_dict_is_the_official_one(network, checkpoint_keys):
    with torch.device("meta"):
        ours = network(PAPER)
    shapes = {network.checkpoint_key(key): list(ours.checkpoint_shape(key)) for key in ours.state_dict()}
    official = {key: entry["shape"] for key, entry in checkpoint_keys(OFFICIAL_KEYS[network]).items()}
    assert shapes == official


def test_video2rms(vector, relative_error):
    arrays = vector("video2rms")
    network = fill(Video2RMS(PAPER))
    features = torch.from_numpy(arrays["features"]).float()
    assert relative_error(network.logits(features).transpose(1, 2), arrays["logits"]) <= TOLERANCE
    envelope, classes = network(features)
    assert np.array_equal(classes, arrays["classes"])
    assert relative_error(network.levels[classes][0], arrays["rms_1250"]) <= TOLERANCE
    assert relative_error(envelope[0], arrays["rms_1024"]) <= TOLERANCE


def test_rgb_features(vector, relative_error):
    arrays = vector("bninception_rgb")
    network = fill(RgbFeatures(PAPER))
    frames = torch.from_numpy(arrays["frames"])
    assert np.array_equal(network.network_input(frames[:1]), arrays["network_input"])
    chunk = torch.cat([frames[:1], frames])  # the first frame of a chunk has no row
    assert relative_error(network(chunk), arrays["features"]) <= TOLERANCE


def test_flow_features(vector, relative_error):
    arrays = vector("bninception_flow")
    network = fill(FlowFeatures(PAPER))
    flow = torch.from_numpy(arrays["flow_uint8"]).permute(0, 2, 3, 1)
    assert np.array_equal(network.network_input(flow[:1]), arrays["network_input"])
    assert relative_error(network(flow), arrays["features"]) <= TOLERANCE


@pytest.fixture(scope="module")
def raft() -> OpticalFlow:
    return fill(OpticalFlow(PAPER))


@pytest.fixture
def two_updates(raft, monkeypatch) -> OpticalFlow:
    # random weights make the flow grow with every update: after two it is still within the 20 pixels
    monkeypatch.setattr(raft, "updates", 2)
    return raft


def test_flow_after_two_updates(two_updates, vector, relative_error):
    arrays = vector("raft")
    flow = two_updates.flow(torch.from_numpy(arrays["frames"]))
    assert relative_error(flow, arrays["flow_2_updates"]) <= HALF_PRECISION


def test_flow_bytes(two_updates, vector):
    arrays = vector("raft")
    levels = two_updates(torch.from_numpy(arrays["frames"])).permute(0, 3, 1, 2).numpy().astype(int)
    off = np.abs(levels - arrays["flow_2_updates_uint8"])
    assert off.max() <= 1
    assert off.mean() <= LEVELS_OFF_BY_ONE


def test_flow_after_the_official_number_of_updates(raft, vector, relative_error):
    arrays = vector("raft")
    flow = raft.flow(torch.from_numpy(arrays["frames"][:2]))
    assert relative_error(flow, arrays["flow_12_updates_first_pair"]) <= HALF_PRECISION
    assert float(flow.abs().mean()) == pytest.approx(arrays["flow_12_updates_mean_abs_per_pair"][0], rel=TOLERANCE)
