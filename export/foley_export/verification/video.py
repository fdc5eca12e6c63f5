"""Checks of the networks that process video: RAFT, BN-Inception, Video2RMS."""

import numpy as np
import torch

from foley import clip
from foley.manifest import Manifest, OpticalFlowConfig
from foley_export.networks.bn_inception import FlowFeatures, RgbFeatures
from foley_export.networks.optical_flow import OpticalFlow
from foley_export.networks.video2rms import Video2RMS
from foley_export.presets import PAPER
from foley_export.verification.check import Comparisons, Forward, NetworkCheck
from foley_export.verification.comparison import Comparison, exact, half, within_one_level
from foley_export.verification.vectors import Vectors

# with random weights the flow grows at every update: after two it is still within the 20 pixels of the uint8 range
_TWO_UPDATES = Manifest(name="two-updates", optical_flow=OpticalFlowConfig(updates=2))


def _flow(network: OpticalFlow, vectors: Vectors) -> Comparisons:
    vector = vectors["raft"]
    flow = network.flow(torch.from_numpy(vector["frames"])).numpy()
    yield half("flow of the first pair", flow[:1], vector["flow_12_updates_first_pair"])
    mean = np.abs(flow).mean((1, 2, 3))
    yield Comparison("mean magnitude of every pair", mean, vector["flow_12_updates_mean_abs_per_pair"])


def _clamped(network: OpticalFlow, vectors: Vectors) -> Comparisons:
    vector = vectors["raft_12_updates"]
    clamped = network.flow(torch.from_numpy(vector["frames"])).abs() >= clip.LARGEST_FLOW
    yield Comparison("share of clamped values", clamped.float().mean().numpy(), vector["share_clamped"])


def _flow_bytes(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["raft_12_updates"]
    (flow,) = forward(vector["frames"])
    yield within_one_level("uint8 flow", flow.transpose(0, 3, 1, 2), vector["flow_uint8"])


def _flow_after_two(network: OpticalFlow, vectors: Vectors) -> Comparisons:
    vector = vectors["raft"]
    flow = network.flow(torch.from_numpy(vector["frames"])).numpy()
    yield half("flow", flow, vector["flow_2_updates"])


def _flow_bytes_after_two(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["raft"]
    (flow,) = forward(vector["frames"])
    yield within_one_level("uint8 flow", flow.transpose(0, 3, 1, 2), vector["flow_2_updates_uint8"])


def _rgb_input(network: RgbFeatures, vectors: Vectors) -> Comparisons:
    vector = vectors["bninception_rgb"]
    network_input = network.network_input(torch.from_numpy(vector["frames"][:1])).numpy()
    yield exact("network input", network_input, vector["network_input"])


def _rgb_features(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["bninception_rgb"]
    frames = vector["frames"]
    (features,) = forward(np.concatenate([frames[:1], frames]))  # the first frame of a chunk yields no features
    yield Comparison("features", features, vector["features"])


def _rgb_features_of_jpeg(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["jpeg_round_trip"]
    for when, suffix in (("before", ""), ("after", "_after_jpeg")):
        frames = vector[f"frames{suffix}"]
        (features,) = forward(np.concatenate([frames[:1], frames]))
        yield Comparison(f"features {when} JPEG", features, vector[f"rgb_features{suffix}"])


def _flow_input(network: FlowFeatures, vectors: Vectors) -> Comparisons:
    vector = vectors["bninception_flow"]
    flow = torch.from_numpy(vector["flow_uint8"][:1]).permute(0, 2, 3, 1)
    yield exact("network input", network.network_input(flow).numpy(), vector["network_input"])


def _flow_features(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["bninception_flow"]
    (features,) = forward(np.ascontiguousarray(vector["flow_uint8"].transpose(0, 2, 3, 1)))
    yield Comparison("features", features, vector["features"])


def _flow_features_of_jpeg(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["jpeg_round_trip"]
    for when, name, official in (
        ("before", "flow_uint8", "flow_features"),
        ("after", "flow_after_jpeg", "flow_features_after_jpeg"),
    ):
        (features,) = forward(np.ascontiguousarray(vector[name].transpose(0, 2, 3, 1)))
        yield Comparison(f"features {when} JPEG", features, vector[official])


def _loudness_logits(network: Video2RMS, vectors: Vectors) -> Comparisons:
    vector = vectors["video2rms"]
    logits = network.logits(torch.from_numpy(vector["features"]).float())
    yield Comparison("logits", logits.transpose(1, 2).numpy(), vector["logits"])
    yield exact("RMS at 125 Hz", network.levels[logits.argmax(-1)][0].numpy(), vector["rms_1250"])


def _loudness(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["video2rms"]
    envelope, classes = forward(vector["features"].astype(np.float32))
    yield exact("classes", classes, vector["classes"])
    yield exact("RMS resampled to 1024 frames", envelope[0], vector["rms_1024"])


CHECKS = (
    NetworkCheck("optical_flow", lambda: OpticalFlow(PAPER), (_flow_bytes,), (_flow, _clamped)),
    NetworkCheck(
        "optical_flow, 2 updates", lambda: OpticalFlow(_TWO_UPDATES), (_flow_bytes_after_two,), (_flow_after_two,)
    ),
    NetworkCheck("rgb_features", lambda: RgbFeatures(PAPER), (_rgb_features, _rgb_features_of_jpeg), (_rgb_input,)),
    NetworkCheck(
        "flow_features", lambda: FlowFeatures(PAPER), (_flow_features, _flow_features_of_jpeg), (_flow_input,)
    ),
    NetworkCheck("video2rms", lambda: Video2RMS(PAPER), (_loudness,), (_loudness_logits,)),
)
