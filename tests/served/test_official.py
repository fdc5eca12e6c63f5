"""Official files -> import -> ONNX -> Triton -> `foley generate`: the output matches PyTorch."""

import shutil
import subprocess
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import RobertaTokenizer

from foley import bundle as bundles
from foley import envelope_file, loudness
from foley.audio import read_audio
from foley.bundle import graph_file, weights_file
from foley.envelope import Floats, frames, samples
from foley.manifest import Manifest
from foley.media import probe, read_frames
from foley.sampler import Sampling, Step, sample
from foley.stages import networks
from foley_export import importer, make
from foley_export.import_plan import Files, plan
from foley_export.networks import NETWORKS
from foley_export.onnx_export import export
from foley_export.presets import PAPER, TINY
from foley_export.weights import fill
from foley_pipeline.video2rms import clip_features

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
SALT = "import:"
SCALE_FACTOR = 0.75  # in the files that the fixture `published` writes
SAMPLING = Sampling("ddim", steps=4, guidance=2.0, seed=11)
NOT_NEEDED = ("optical_flow_warm", "clap_audio")
TEXT, NEGATIVE = "a stick hits metal", "music"


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def import_bundle(preset: Manifest, files: Files, destination: Path) -> None:
    """Import with the command at the official size, and with the library at sizes that the command rejects."""
    if preset is PAPER:
        options = chain.from_iterable(files.checkpoints.items())
        run(BIN / "foley-export", "import", *options, "--tokenizer", files.tokenizer, "-o", destination)
    else:
        list(importer.write(plan(preset, files), destination))


def make_graphs(preset: Manifest, bundle: Path, other: Path) -> None:
    """Export the graphs; at the small size, copy graphs that the sound does not need, to save half a minute."""
    if preset is PAPER:
        run(BIN / "foley-export", "onnx", bundle)
        return
    ours = bundles.read(bundle)
    for stage in networks(preset):
        graph = ours.path(graph_file(stage))
        if stage in NOT_NEEDED:
            shutil.copy(other / graph_file(stage), graph)
        else:
            export(make.load_network(ours, stage), ours.path(weights_file(stage)), graph)
    make.write_manifest(bundle, ours.manifest)


@torch.inference_mode()
def torch_envelope(manifest: Manifest, video: Path) -> Floats:
    """Run Video2RMS and its feature extractors in PyTorch with seeded weights; returns [frames at 100 Hz]."""
    flow, rgb, flow_features, video2rms = (
        fill(NETWORKS[stage](manifest), SALT)
        for stage in ("optical_flow", "rgb_features", "flow_features", "video2rms")
    )
    pictures = list(read_frames(video))
    rows = []
    for pair in zip(pictures, [*pictures[1:], pictures[-1]], strict=True):
        images = torch.from_numpy(np.stack(pair))
        rows.append(torch.cat([rgb(images), flow_features(flow(images))], dim=1)[0].numpy())
    features = clip_features(np.stack(rows[:-1]), rows[-1])
    envelope, _ = video2rms(torch.from_numpy(features)[None])
    return envelope[0].numpy()[: frames(probe(video).duration_s)]


@torch.inference_mode()
def torch_sound(manifest: Manifest, tokenizer: RobertaTokenizer, envelope: Floats, length: int) -> Floats:
    """Run RMS2Sound in PyTorch with `--loudness peak`; returns [length] samples at 16 kHz."""
    clap, denoiser, vae, vocoder = (
        fill(NETWORKS[stage](manifest), SALT) for stage in ("clap_text", "denoiser", "vae_decoder", "vocoder")
    )
    tokens = tokenizer([TEXT, NEGATIVE], padding=True, return_tensors="pt")
    embedding, negative = clap(tokens["input_ids"], tokens["attention_mask"])
    control = torch.zeros(1, 1024)
    control[0, : len(envelope)] = torch.from_numpy(envelope)

    def denoise(latents: Floats, step: Step) -> Floats:
        return denoiser(
            torch.from_numpy(latents)[None],
            torch.tensor([[step.timestep]]),
            control,
            embedding[None],
            negative[None],
            torch.tensor([[SAMPLING.guidance]]),
        )[0].numpy()

    *_, latents = sample(denoise, SAMPLING)
    waveform = vocoder(vae(torch.from_numpy(latents)[None]))[0].numpy()[:length]
    return loudness.apply(waveform, envelope, "peak")


@pytest.mark.parametrize(
    "preset",
    [TINY, pytest.param(PAPER, marks=pytest.mark.timeout(3600))],
    ids=lambda preset: preset.name,
)
@pytest.mark.long
def test_imported_bundle_matches_torch(preset, published, media, tiny_bundle, tmp_path):
    video, sound, curve = media / "fps2997.mp4", tmp_path / "sound.wav", tmp_path / "curve.json"
    files = Files(*published(preset))
    bundle = tmp_path / "bundle"
    import_bundle(preset, files, bundle)
    make_graphs(preset, bundle, tiny_bundle)

    run(BIN / "foley", "envelope", video, "--bundle", bundle, "-o", curve)
    sampling = (
        "--sampler",
        "ddim",
        "--steps",
        SAMPLING.steps,
        "--guidance",
        SAMPLING.guidance,
        "--seed",
        SAMPLING.seed,
    )
    prompt = ("--text", TEXT, "--negative-text", NEGATIVE)
    run(BIN / "foley", "generate", video, "--bundle", bundle, *prompt, *sampling, "--loudness", "peak", "-o", sound)

    manifest = preset.model_copy(
        update={"vae_decoder": preset.vae_decoder.model_copy(update={"scale_factor": SCALE_FACTOR})}
    )
    duration_s = probe(video).duration_s
    expected_curve = torch_envelope(manifest, video)
    # the classes are further apart than the six decimals of the file, so no class differs
    np.testing.assert_allclose(envelope_file.read(curve), expected_curve, rtol=0, atol=1e-6)
    tokenizer = RobertaTokenizer.from_pretrained(files.tokenizer)
    expected = torch_sound(manifest, tokenizer, expected_curve, samples(duration_s))
    actual = read_audio(sound)
    assert actual.shape == expected.shape
    assert len(np.unique(expected_curve)) > 1
    assert np.linalg.norm(actual - expected) <= 5e-4 * np.linalg.norm(expected)
