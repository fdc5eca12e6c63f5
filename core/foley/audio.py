"""Reads the audio of media files: prompts, recordings, and the audio track of the source video."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import ceil, gcd
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.filter import Graph
from numpy.typing import NDArray

from foley.clip import SAMPLE_RATE_HZ
from foley.container import DEFAULT_LIMITS, Limits, MediaFile, open_media, too_large
from foley.errors import MediaError

Samples: TypeAlias = NDArray[np.float32]

# A sample rate outside this range is a corrupt header; the resampler's filter would be extremely long.
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 768_000
_TAPS = 256  # of the resampling filter, at the lower rate


@dataclass(frozen=True)
class DecodedAudio:
    """A decoded audio track.

    Attributes:
        samples: float32 [channels, n] in [-1, 1], mono or stereo; more channels are mixed down to stereo.
        rate: Sample rate in Hz.
        start_s: PTS of the first sample, in seconds.
    """

    samples: Samples
    rate: int
    start_s: float

    def from_time(self, time_s: float) -> Samples:
        """Return the samples from the PTS `time_s` on, [channels, n]; silence before the first sample."""
        late = round((self.start_s - time_s) * self.rate)
        return np.pad(self.samples, ((0, 0), (max(0, late), 0)))[:, max(0, -late) :]


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
    return np.asarray(read_sound(path, limits, rate, mono=True).samples[0])


def read_sound(
    path: Path, limits: Limits = DEFAULT_LIMITS, rate: int | None = None, mono: bool = False
) -> DecodedAudio:
    """Read the first audio track of a file.

    Args:
        path: Any media file with audio.
        limits: Limits on the file.
        rate: Sample rate of the result in Hz; None: the track's sample rate.
        mono: Whether to return the mean of the channels.

    Raises:
        MediaError: The file is missing or damaged, or has no audio.
        MediaTooLarge: The file exceeds `limits`.
    """
    with open_media(path, limits) as file:
        frames = audio_frames(file, file.audio_stream())
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{file.name} has an empty audio track; record or export it again")
        channels = 1 if len(first.layout.channels) == 1 else 2
        rate = rate or int(first.sample_rate)
        start_s = first.time or 0.0
        resampler = AudioResampler("fltp", "mono" if channels == 1 else "stereo", rate)
        try:
            resampled = (_to_array(block) for frame in _chain(first, frames) for block in resampler.resample(frame))
            blocks = [block.mean(axis=0, keepdims=True) if mono else block for block in resampled]
        except ValueError as error:  # raised for frames whose format changes; FFmpegError is a ValueError too
            raise file.damaged("the format of its audio changes") from error
    samples = np.concatenate(blocks, axis=1) if blocks else np.empty((channels, 0), np.float32)
    del blocks
    if samples.shape[1] == 0:
        raise MediaError(f"{file.name} has an empty audio track; record or export it again")
    if not np.isfinite(samples).all():
        raise file.damaged("its audio has values that are not finite")
    return DecodedAudio(samples, rate, start_s)


def resampled(samples: Samples, rate: int, new_rate: int) -> Iterator[Samples]:
    """Resample one channel without delay; it is silent before its first and after its last sample.

    Up to 0.95 of the source's Nyquist frequency (7.6 kHz at 16 kHz), a higher rate keeps the level within 0.001 dB,
    with images and noise below -110 dB.

    Args:
        samples: float32 [n].
        rate: Sample rate of `samples` in Hz.
        new_rate: Sample rate of the result in Hz.

    Yields:
        Blocks of about a second or less, float32 [m], none of them empty; together round(n * new_rate / rate) samples.
    """
    blocks = (samples[offset : offset + rate] for offset in range(0, len(samples), rate))
    if rate == new_rate:
        yield from blocks
        return
    # libswresample mirrors the input at both ends, so zeros are added there and cut off afterwards. Their length is a
    # whole number of samples at both rates.
    step = rate // gcd(rate, new_rate)
    taps = _TAPS * max(1, ceil(rate / new_rate))
    zeros = np.zeros(ceil(taps / step) * step, np.float32)
    skip, left = len(zeros) * new_rate // rate, round(len(samples) * new_rate / rate)
    for block in _filtered(chain([zeros], blocks, [zeros]), rate, new_rate):
        wanted = block[skip : skip + left]
        skip -= min(skip, len(block))
        left -= len(wanted)
        if len(wanted):
            yield wanted


def _filtered(blocks: Iterable[Samples], rate: int, new_rate: int) -> Iterator[Samples]:
    """Resample with libswresample, whose default filter is not good enough: 0.4 dB and -27 dB at 0.9 of Nyquist."""
    graph = Graph()
    options = f"filter_size={_TAPS}:filter_type=kaiser:kaiser_beta=12:phase_shift={_HIGHEST_RATE_HZ.bit_length()}"
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate))
    sink = graph.add("abuffersink")
    graph.link_nodes(source, graph.add("aresample", f"osr={new_rate}:{options}"), sink).configure()
    for block in chain(blocks, [None]):
        if block is None:
            source.push(None)
        else:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None]), "flt", "mono")
            frame.sample_rate = rate
            source.push(frame)
        with suppress(av.BlockingIOError, av.EOFError):  # no more output for now, or at all
            while True:
                yield _to_array(sink.pull())[0]


def audio_frames(file: MediaFile, stream: Any) -> Iterator[Any]:
    """Decode an audio stream within the limits, counting decoded samples so that a forged header has no effect.

    Yields:
        The frames.

    Raises:
        MediaError: The stream is damaged.
        MediaTooLarge: It exceeds the limits of `file`.
    """
    seconds, samples = 0.0, 0
    for packet in file.packets(stream):
        for frame in file.decode(packet):
            if not _LOWEST_RATE_HZ <= frame.sample_rate <= _HIGHEST_RATE_HZ:
                raise file.damaged(f"its sample rate, {frame.sample_rate} Hz, is not valid")
            seconds += frame.samples / frame.sample_rate
            samples += frame.samples * len(frame.layout.channels)
            if seconds > file.limits.duration_s:
                raise too_large(
                    "duration_s",
                    f"the audio of {file.name} is longer than the limit of {file.limits.duration_s:g} s; cut it",
                )
            if samples > file.limits.samples:
                raise too_large(
                    "samples", f"{file.name} has more than {file.limits.samples} samples; lower its sample rate"
                )
            yield frame


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    """Yield all frames, then None, which flushes the resampler."""
    yield first
    yield from rest
    yield None


def _to_array(frame: Any) -> Samples:
    return np.asarray(frame.to_ndarray(), dtype=np.float32)
