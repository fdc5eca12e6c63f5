"""Training data of the diffusion stages: latents, computed once by the trained VAE, and CLAP embeddings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from foley import clip
from foley.bars import track
from foley_export.networks.clap_audio import ClapAudio
from foley_export.networks.vae_encoder import VaeEncoder
from foley_training.sounds import Sounds
from foley_training.stages.clap import embed_spectrograms

_BATCH = 4


@dataclass(frozen=True)
class Latents:
    """Latents and embeddings of `n` clips, memory-mapped.

    Latents are sampled from a normal distribution with this mean and standard deviation.
    """

    sounds: Sounds
    mean: npt.NDArray[np.float16]  # [n, 8, 256, 16]
    deviation: npt.NDArray[np.float16]  # [n, 8, 256, 16]
    embeddings: npt.NDArray[np.float32]  # [n, 512]
    scale_factor: float  # latents times this have unit variance (Rombach et al. 2022, appendix G)


@torch.no_grad()
def latents(path: Path, sounds: Sounds, encoder: VaeEncoder, audio: ClapAudio) -> Latents:
    """Return the latents of `sounds`, read from files prefixed `path`, or computed and cached there.

    The networks must be on one device; the latents are computed on it.
    """
    mean_path, deviation_path, embeddings_path = (
        path.with_name(f"{path.name}-{name}.npy") for name in ("mean", "deviation", "embeddings")
    )
    if not embeddings_path.is_file():
        shape = (len(sounds.scenes), clip.LATENT_CHANNELS, clip.LATENT_FRAMES, clip.LATENT_BINS)
        mean = np.lib.format.open_memmap(mean_path, "w+", np.float16, shape)
        deviation = np.lib.format.open_memmap(deviation_path, "w+", np.float16, shape)
        embeddings = np.empty((len(sounds.scenes), clip.EMBEDDING_DIM), np.float32)
        device = next(encoder.parameters()).device
        for first in track(range(0, len(sounds.scenes), _BATCH), "latents"):
            rows = slice(first, first + _BATCH)
            mel, clap_mel = (
                torch.from_numpy(array[rows].astype(np.float32)).to(device) for array in (sounds.mels, sounds.clap_mels)
            )
            with torch.autocast(device.type, torch.bfloat16):
                mu, logvar = encoder(mel.contiguous())
                embeddings[rows] = embed_spectrograms(audio, clap_mel).float().cpu().numpy()
            mean[rows] = mu.float().cpu().numpy()
            deviation[rows] = (0.5 * logvar.float()).exp().cpu().numpy()
        mean.flush()
        deviation.flush()
        with embeddings_path.open("wb") as file:  # written last: its presence marks all files as complete
            np.save(file, embeddings)
    mean, deviation = np.load(mean_path, mmap_mode="r"), np.load(deviation_path, mmap_mode="r")
    subset = slice(0, 256)
    variance = np.var(mean[subset], dtype=np.float64) + np.mean(np.square(deviation[subset], dtype=np.float64))
    return Latents(sounds, mean, deviation, np.load(embeddings_path), float(1 / np.sqrt(variance)))
