"""Checks of the networks that generate sound: UNet with ControlNet, DDIM trajectories, VAE, vocoder."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch

from foley import loudness, solvers
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.network import Network
from foley_export.networks.vae_decoder import VaeDecoder
from foley_export.networks.vae_encoder import VaeEncoder
from foley_export.networks.vocoder import Vocoder
from foley_export.presets import PAPER
from foley_export.verification.check import Comparisons, Forward, NetworkCheck
from foley_export.verification.comparison import Comparison, exact
from foley_export.verification.vectors import Vector, Vectors


def _sized(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """Return `network` with other fixed shapes in its stage; its graph is exported for these."""
    inputs, outputs = (
        tuple(replace(tensor, shape=shapes.get(tensor.name, tensor.shape)) for tensor in tensors)
        for tensors in (network.stage.inputs, network.stage.outputs)
    )
    network.stage = replace(network.stage, inputs=inputs, outputs=outputs)
    return network


def _without_guidance(network: Denoiser, vectors: Vectors) -> Comparisons:
    vector = vectors["unet_controlnet"]
    control = network.control(torch.from_numpy(vector["rms"][:, 0, :, 0]))
    yield Comparison("control", control.numpy(), vector["control"])
    inputs = (torch.from_numpy(vector[name]) for name in ("latents", "timesteps", "embedding"))
    yield Comparison(
        "noise without ControlNet", network.predict_noise(*inputs).numpy(), vector["noise_without_control"]
    )


def _noise(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["unet_controlnet"]
    rows = len(vector["latents"])
    (noise,) = forward(
        vector["latents"],
        vector["timesteps"][:, None],
        vector["rms"][:, 0, :, 0],
        vector["embedding"],
        np.zeros_like(vector["embedding"]),
        np.ones((rows, 1), np.float32),  # guidance 1: conditional branch only
    )
    yield Comparison("noise", noise, vector["noise"])


def _trajectory_eta_0(forward: Forward, vectors: Vectors) -> Comparisons:
    yield from _trajectory(forward, vectors["ddim_trajectory"], eta=0.0, noise=())


def _trajectory_eta_1(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["ddim_trajectory_eta1"]
    yield from _trajectory(forward, vector, float(vector["eta"]), vector["noise"])


def _trajectory(forward: Forward, vector: Vector, eta: float, noise: Iterable[np.ndarray]) -> Comparisons:
    envelope = vector["rms"].reshape(1, -1)
    guidance = np.full((1, 1), vector["guidance"], np.float32)
    timesteps = []

    def denoise(latents: np.ndarray, timestep: int) -> np.ndarray:
        timesteps.append(timestep)
        step = np.array([[timestep]])
        (noise,) = forward(latents[None], step, envelope, vector["embedding"], vector["negative_embedding"], guidance)
        return noise[0]

    steps = len(vector["timesteps"])
    latents = np.stack(list(solvers.ddim(denoise, vector["x_T"][0], steps, eta, noise)))
    yield exact(f"timesteps, eta {eta:g}", np.array(timesteps), vector["timesteps"])
    for step, (ours, official) in enumerate(zip(latents, vector["latents"], strict=True), start=1):
        yield Comparison(f"guided latents, eta {eta:g}, step {step}", ours, official)
    yield Comparison(f"guided latents, eta {eta:g}, final", latents[-1:], vector["final"])


def _scale_factor(network: VaeDecoder, vectors: Vectors) -> Comparisons:
    yield exact("scale factor", np.array(network.scale_factor), vectors["vae_decoder"]["scale_factor"])


def _mel(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["vae_decoder"]
    (mel,) = forward(vector["latents"])
    yield Comparison("log-mel", mel, vector["mel"][:, 0])


def _posterior(network: VaeEncoder, vectors: Vectors) -> Comparisons:
    vector = vectors["vae_encoder"]
    mean, logvar = network(torch.from_numpy(vector["mel"][:, 0]))
    yield Comparison("posterior mean", mean.numpy(), vector["mean"])
    yield Comparison("posterior log variance", logvar.numpy(), vector["logvar"])


def _whole_waveform(network: Vocoder, vectors: Vectors) -> Comparisons:
    vector = vectors["vocoder"]
    waveform = network.untrimmed(torch.from_numpy(vector["mel"][:, 0])).numpy()
    yield Comparison("waveform with its tail", waveform, vector["waveform"][:, 0])
    normalised = loudness.apply(waveform[0], np.empty(0, np.float32), "peak")
    yield Comparison("waveform at the official peak", normalised, vector["waveform_peak_normalised"])


def _waveform(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["vocoder"]
    (waveform,) = forward(vector["mel"][:, 0])
    yield Comparison("waveform", waveform, vector["waveform"][:, 0, : waveform.shape[1]])


# two of the vectors are shorter than the clip length of the served graphs
_SHORT_LATENTS = {"latents": (8, 64, 16), "mel": (256, 64)}
_SHORT_MEL = {"mel": (128, 64), "waveform": (128 * 160,)}

CHECKS = (
    NetworkCheck(
        "denoiser", lambda: Denoiser(PAPER), (_noise, _trajectory_eta_0, _trajectory_eta_1), (_without_guidance,)
    ),
    NetworkCheck("vae_decoder", lambda: _sized(VaeDecoder(PAPER), _SHORT_LATENTS), (_mel,), (_scale_factor,)),
    NetworkCheck("vae_encoder", lambda: VaeEncoder(PAPER), intermediates=(_posterior,)),
    NetworkCheck("vocoder", lambda: _sized(Vocoder(PAPER), _SHORT_MEL), (_waveform,), (_whole_waveform,)),
)
