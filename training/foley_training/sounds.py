"""The sounds of a split, generated once and cached on disk, so that memory use is constant and stages share them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from foley import clip, envelope
from foley.bars import track
from foley_export.mel import log_mel
from foley_export.networks import clap_frontend
from foley_training.data.scene import Scene, Split, make_scene
from foley_training.data.sound import synthesise

CLAP_FRAMES = 1_001
_FULL_SCALE = 32_767


@dataclass(frozen=True)
class Sounds:
    """`n` clips of 10.24 s, memory-mapped."""

    scenes: list[Scene]
    waveforms: npt.NDArray[np.int16]  # [n, 163840]
    mels: npt.NDArray[np.float16]  # [n, 1024, 64], AudioLDM's log-mel
    clap_mels: npt.NDArray[np.float16]  # [n, 1001, 64], CLAP's
    envelopes: npt.NDArray[np.float32]  # [n, 1024]

    def waveform(self, index: int) -> npt.NDArray[np.float32]:
        """Return the waveform of clip `index` as float32 in [-1, 1]."""
        return self.waveforms[index].astype(np.float32) / _FULL_SCALE

    def random_crop(self, random: np.random.Generator, frames: int) -> tuple[int, int]:
        """Draw a random clip and the first frame, a multiple of four, of a piece of it that contains a contact."""
        index = int(random.integers(len(self.scenes)))
        contacts = self.scenes[index].contacts
        contact_frame = contacts[random.integers(len(contacts))].start_s * clip.ENVELOPE_RATE_HZ
        first = int(np.clip(contact_frame - random.uniform(0, frames), 0, clip.PADDED_ENVELOPE - frames))
        return index, first - first % clip.LATENT_REDUCTION


def sounds(folder: Path, split: Split, count: int) -> Sounds:
    """Return the first `count` sounds of a split, read from `folder`, or generated and cached there."""
    arrays = {name: folder / f"{split}-{count}-{name}.npy" for name in ("waveforms", "mels", "clap_mels", "envelopes")}
    scenes = [make_scene(split, i) for i in range(count)]
    if not all(path.is_file() for path in arrays.values()):
        folder.mkdir(parents=True, exist_ok=True)
        _generate(scenes, arrays)
    return Sounds(scenes, **{name: np.load(path, mmap_mode="r") for name, path in arrays.items()})


@torch.no_grad()
def _generate(scenes: list[Scene], paths: dict[str, Path]) -> None:
    shapes = {
        "waveforms": (np.int16, (clip.PADDED_SAMPLES,)),
        "mels": (np.float16, (clip.PADDED_ENVELOPE, clip.MEL_BINS)),
        "clap_mels": (np.float16, (CLAP_FRAMES, clap_frontend.MEL_BINS)),
        "envelopes": (np.float32, (clip.PADDED_ENVELOPE,)),
    }
    temporary = {name: path.with_suffix(".tmp") for name, path in paths.items()}
    arrays = {
        name: np.lib.format.open_memmap(temporary[name], "w+", dtype, (len(scenes), *shape))
        for name, (dtype, shape) in shapes.items()
    }
    to_clap_mel = ClapFrontend()
    for i, scene in enumerate(track(scenes, "sounds")):
        stored = np.round(synthesise(scene) * _FULL_SCALE).astype(np.int16)
        waveform = stored.astype(np.float32) / _FULL_SCALE
        arrays["waveforms"][i] = stored
        arrays["mels"][i] = log_mel(torch.from_numpy(waveform)[None])[0].numpy()
        arrays["clap_mels"][i] = to_clap_mel(torch.from_numpy(waveform)[None])[0].numpy()
        arrays["envelopes"][i] = envelope.measure(waveform)
    for name, array in arrays.items():
        array.flush()
        temporary[name].replace(paths[name])


class ClapFrontend(torch.nn.Module):
    """CLAP's front end (`foley_export.networks.clap_frontend`) with an FFT in place of the convolution."""

    filters: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.upsample = clap_frontend.SincUpsample(clap_frontend.SAMPLE_RATE_HZ // clip.SAMPLE_RATE_HZ)
        self.register_buffer("filters", clap_frontend.LogMel().filters)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the log-mel in dB [batch, 1001, 64] of 16 kHz waveforms [batch, 163840]."""
        high = self.upsample(waveform)[:, : clap_frontend.SAMPLES]
        n_fft = clap_frontend.LogMel.n_fft
        window = torch.hann_window(n_fft, device=waveform.device)
        spectrum = torch.stft(
            high, n_fft, clap_frontend.LogMel.hop, window=window, pad_mode="reflect", return_complex=True
        )
        mel = spectrum.abs().square().transpose(1, 2) @ self.filters
        return 10 * mel.clamp(min=1e-10).log10()
