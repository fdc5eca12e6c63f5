"""The official way computes the same numbers as this project's networks, only with more work."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from foley.bundle import read
from foley.manifest import Manifest, OpticalFlowConfig
from foley_bench.official import images, raft, sound, way
from foley_bench.part import Timing, timed
from foley_export.networks import NETWORKS
from foley_export.presets import TINY
from foley_export.weights import fill

BYTES = np.random.default_rng(0)
HEIGHT, WIDTH = 256, 344


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def network(stage: str, manifest: Manifest = TINY) -> torch.nn.Module:
    return fill(NETWORKS[stage](manifest), "official way:").eval()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(
    "config",
    [TINY.optical_flow, OpticalFlowConfig(updates=2)],
    ids=["tiny", "the official widths"],
)
def test_flow_of_pairs_is_that_of_the_sequence(config: OpticalFlowConfig) -> None:
    of_sequence = network("optical_flow", TINY.model_copy(update={"optical_flow": config}))
    frames = torch.from_numpy(BYTES.integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8))
    expected = of_sequence.flow(frames)
    found = torch.stack([raft.pair_flow(of_sequence, *pair) for pair in pairwise(frames)])
    assert found.abs().max() > 0.1
    assert relative_error(found, expected) < 1e-5


def test_bytes_of_the_flow_are_those_of_the_network() -> None:
    of_sequence = network("optical_flow")
    frames = torch.from_numpy(BYTES.integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8))
    (flow,) = of_sequence.flow(frames)
    assert torch.equal(raft.to_bytes(flow), of_sequence(frames)[0])


def test_guidance_of_two_calls_is_that_of_one() -> None:
    denoiser = network("denoiser")
    latents, _, envelope, embedding, negative, _ = denoiser.sample_inputs(batch=1)
    timestep = torch.tensor([[500]])
    expected, *_ = denoiser(latents, timestep, envelope, embedding, negative, torch.tensor([[sound.GUIDANCE]]))
    found = sound.guided_noise(denoiser, latents, timestep[0], envelope, embedding, negative)
    assert relative_error(found, expected) < 1e-5


def test_denoising_takes_200_steps_with_fresh_noise() -> None:
    asked: list[int] = []

    class Still:
        def control(self, envelope: torch.Tensor) -> torch.Tensor:
            return envelope

        def branch(self, latents: torch.Tensor, timestep: torch.Tensor, *_: object) -> torch.Tensor:
            asked.append(int(timestep))
            return torch.zeros_like(latents)

    condition = torch.zeros(1, 1)
    assert sum(1 for _ in sound.denoise(Still(), condition, condition, condition)) == 200  # type: ignore[arg-type]
    assert asked == [t for t in range(996, 0, -5) for _ in range(2)]


def test_a_padded_text_has_the_same_embedding() -> None:
    clap = network("clap_text")
    tokens = [0, 5, 6, 7, 2]
    expected = clap(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.long))
    assert relative_error(sound.embed(clap, tokens), expected) < 1e-5


def test_pictures_reach_the_networks_as_in_the_graphs() -> None:
    frame = BYTES.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    flow = BYTES.integers(0, 256, (HEIGHT, WIDTH, 2), np.uint8)
    rgb, of_flow = network("rgb_features"), network("flow_features")
    assert torch.equal(images.rgb_input(frame), rgb.network_input(torch.from_numpy(frame)[None])[0])
    assert torch.equal(images.flow_input(flow), of_flow.network_input(torch.from_numpy(flow)[None])[0])


def test_jpeg_keeps_shape_and_most_of_a_smooth_picture(tmp_path) -> None:
    slope = np.linspace(0, 255, WIDTH).astype(np.uint8)
    frame = np.broadcast_to(slope[None, :, None], (HEIGHT, WIDTH, 3))
    for picture, found in (
        (frame, images.through_jpeg(np.ascontiguousarray(frame), tmp_path / "img.jpg")),
        (frame[..., :2], images.flow_through_jpeg(frame[..., :2], tmp_path)),
    ):
        assert found.shape == picture.shape
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - picture).max() <= 4


def test_stages_without_a_network_need_no_weights() -> None:
    assert set(way.WORK) - set(NETWORKS) == {"decode", "jpeg", "loudness"}


def test_a_stage_is_timed_after_its_first_piece_and_scaled() -> None:
    done: list[int] = []

    def work():
        for part in range(10):
            done.append(part)
            yield 4

    timing = timed(work, whole=40, most=12)
    assert done == [0, 0, 1, 2]
    assert (timing.done, timing.whole, timing.is_scaled) == (12, 40, True)
    assert Timing(3.0, 12, 40).seconds == pytest.approx(10.0)
    assert not Timing(3.0, 40, 40).is_scaled


def test_every_stage_runs_on_the_bundle(tiny_bundle, repository) -> None:
    read(tiny_bundle)
    for stage in way.WORK:
        timing = way.measure(tiny_bundle, repository / "examples" / "steel.mp4", stage, whole=1000, most=1)
        assert timing.done >= 1
        assert timing.measured_s > 0
