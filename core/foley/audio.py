"""Reads the audio of media files: prompts, recordings, and the audio track of the source video."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.typing import NDArray

from foley.clip import SAMPLE_RATE_HZ
from foley.container import DEFAULT_LIMITS, Limits, damaged, decode, open_media, read_packets
from foley.errors import MediaError, MediaTooLarge

Samples: TypeAlias = NDArray[np.float32]

# A sample rate outside this range is a corrupt header; the resampler's filter would be extremely long.
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 768_000


@dataclass(frozen=True)
class Sound:
    """A decoded audio track.

    Attributes:
        samples: float32 [channels, n] in [-1, 1], mono or stereo; more channels are mixed down to stereo.
        rate: Sample rate in Hz.
        start_s: PTS of the first sample, in seconds.
    """

    samples: Samples
    rate: int
    start_s: float


def read_audio(path: Path, limits: Limits = DEFAULT_LIMITS, rate: int = SAMPLE_RATE_HZ) -> Samples:
    """Read the audio of an audio or video file as mono.

    Args:
        path: Any media file with audio.
        limits: Limits on the file.
        rate: Sample rate of the result in Hz.

    Returns:
        The mean of the channels, float32 [n] at `rate` Hz.

    Raises:
        MediaError: The file is missing or damaged, or has no audio.
        MediaTooLarge: The file exceeds `limits`.
    """
    sound = read_sound(path, limits, rate)
    return np.asarray(sound.samples.mean(axis=0), dtype=np.float32)


def read_sound(path: Path, limits: Limits = DEFAULT_LIMITS, rate: int | None = None) -> Sound:
    """Read the first audio track of a file.

    Args:
        path: Any media file with audio.
        limits: Limits on the file.
        rate: Sample rate of the result in Hz; None: the track's sample rate.

    Raises:
        MediaError: The file is missing or damaged, or has no audio.
        MediaTooLarge: The file exceeds `limits`.
    """
    with open_media(path, limits) as container:
        stream = audio_stream(container, path)
        frames = _audio_frames(container, stream, path, limits)
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{path.name} holds no sound; record or export it again")
        channels = 1 if len(first.layout.channels) == 1 else 2
        rate = rate or int(first.sample_rate)
        start_s = first.time or 0.0
        resampler = AudioResampler("fltp", "mono" if channels == 1 else "stereo", rate)
        try:
            blocks = [_to_array(block) for frame in _chain(first, frames) for block in resampler.resample(frame)]
        except ValueError as error:  # raised for frames whose format changes; FFmpegError is a ValueError too
            raise damaged(path, "its sound changes its form on the way") from error
    samples = np.concatenate(blocks, axis=1) if blocks else np.empty((channels, 0), np.float32)
    if samples.shape[1] == 0:
        raise MediaError(f"{path.name} holds no sound; record or export it again")
    if not np.isfinite(samples).all():
        raise damaged(path, "its sound holds values that are not numbers")
    return Sound(samples, rate, start_s)


def audio_stream(container: InputContainer, path: Path) -> Any:
    """Return the first audio stream of an open file.

    Raises:
        MediaError: The file has no audio stream, or its codec is not supported.
    """
    if not container.streams.audio:
        raise MediaError(f"{path.name} has no sound track; give a file with sound")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise MediaError(f"{path.name} uses a sound codec that cannot be decoded here; convert it to WAV")
    return stream


def resample(samples: Samples, rate: int, new_rate: int) -> Samples:
    """Resample float32 [channels, n], mono or stereo, to [channels, round(n * new_rate / rate)]."""
    if rate == new_rate:
        return samples
    length = round(samples.shape[1] * new_rate / rate)
    resampler = AudioResampler("fltp", layout_of(samples), new_rate)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout_of(samples))
    frame.sample_rate = rate
    blocks = [_to_array(block) for part in (frame, None) for block in resampler.resample(part)]
    return fit(np.concatenate(blocks, axis=1), length)


def fit(samples: Samples, length: int) -> Samples:
    """Truncate or zero-pad float32 [channels, n] to [channels, length]."""
    return np.pad(samples[:, :length], ((0, 0), (0, max(0, length - samples.shape[1]))))


def layout_of(samples: Samples) -> str:
    """Return FFmpeg's name of the channel layout of float32 [channels, n]."""
    return "mono" if samples.shape[0] == 1 else "stereo"


def _audio_frames(container: InputContainer, stream: Any, path: Path, limits: Limits) -> Iterator[Any]:
    """Decode the stream within the limits, counting decoded samples so that a forged header has no effect."""
    seconds, samples = 0.0, 0
    for packet in read_packets(container, path, limits):
        if packet.stream is not stream:
            continue
        for frame in decode(packet, path):
            if not _LOWEST_RATE_HZ <= frame.sample_rate <= _HIGHEST_RATE_HZ:
                raise damaged(path, f"a sample rate of {frame.sample_rate} Hz is not possible")
            seconds += frame.samples / frame.sample_rate
            samples += frame.samples * len(frame.layout.channels)
            if seconds > limits.duration_s:
                raise MediaTooLarge(
                    f"the sound of {path.name} lasts more than {limits.duration_s:g} s, which is the limit; cut it"
                )
            if samples > limits.samples:
                raise MediaTooLarge(f"{path.name} holds more than {limits.samples} samples; lower its sample rate")
            yield frame


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    """Yield all frames, then None, which flushes the resampler."""
    yield first
    yield from rest
    yield None


def _to_array(frame: Any) -> Samples:
    return np.asarray(frame.to_ndarray(), dtype=np.float32)
