"""Sound tracks that are encoded: the new sound, a mix with the source's track, and tracks that cannot be copied."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import OutputContainer

from foley.audio import Samples, audio_frames
from foley.container import Limits, open_media
from foley.errors import MediaError, MediaTooLarge
from foley.output_format import OutputFormat
from foley.sound_format import BitDepth

_LOSSLESS = {  # encoder and sample format, by muxer and bit depth; None: the usual encoder of the format
    ("matroska", None): ("flac", "s16"),
    ("matroska", "16"): ("flac", "s16"),
    ("matroska", "24"): ("flac", "s32"),
    ("matroska", "32f"): ("pcm_f32le", "flt"),
    ("mov", "16"): ("pcm_s16le", "s16"),
    ("mov", "24"): ("pcm_s24le", "s32"),
    ("mov", "32f"): ("pcm_f32le", "flt"),
}
_LOSSLESS_CODECS = frozenset({"flac", "alac", "wavpack", "tta", "ape", "truehd", "mlp"})
_BITS_PER_SAMPLE, _MAX_BIT_RATE = 4, 160_000  # of lossy encoders, for each channel: 64 kbit/s at 16 kHz
# Layouts that AAC and Opus have another form of, with the same loudspeakers.
_USUAL_LAYOUTS = {"5.1(side)": "5.1", "5.0(side)": "5.0", "quad(side)": "quad"}
_CENTRE = "FC"
_GAP_S = 0.005  # longer than the rounding of time stamps


class EncodedSound:
    """A sound track that is encoded while its packets are read.

    Args:
        output: The output, without a header yet.
        kind: The format of the output.
        rate: Sample rate in Hz. An encoder that does not support it uses the next higher one that it supports.
        layout: FFmpeg's name of the channel layout. If the encoder does not support it, the sound is mixed to stereo.
        bit_depth: Bit depth, if the format has a lossless encoder; None: the usual encoder of the format.

    Attributes:
        stream: The stream in the output.
        layout: Channel layout of the stream.
        is_lossy: Whether the encoder has no bit depth.
    """

    def __init__(
        self, output: OutputContainer, kind: OutputFormat, rate: int, layout: str, bit_depth: BitDepth | None = None
    ) -> None:
        name, sample_format = _LOSSLESS.get((kind.muxer, bit_depth), (kind.audio_encoder, "fltp"))
        allowed = av.codec.Codec(name, "w").audio_rates
        if allowed and rate not in allowed:
            rate = min((r for r in allowed if r > rate), default=max(allowed))
        self.rate, self.is_lossy = rate, sample_format == "fltp"
        usual = _USUAL_LAYOUTS.get(layout, layout) if self.is_lossy else layout
        self.layout = usual if _encodes(kind, name, rate, usual) else "stereo"
        stream: Any = output.add_stream(name, rate=rate, layout=self.layout)
        if self.is_lossy:
            channels = len(stream.codec_context.layout.channels)
            stream.bit_rate = channels * min(_BITS_PER_SAMPLE * rate, _MAX_BIT_RATE)
        else:
            stream.format = sample_format
        self._source_layout = usual
        self._clips = sample_format != "flt"
        self.stream = stream

    def packets(self, blocks: Iterator[Samples], start_s: float) -> Iterator[Any]:
        """Encode a sound.

        Args:
            blocks: The sound, float32 [channels, n] each, at `self.rate`.
            start_s: PTS of its first sample, in seconds.

        Yields:
            The packets of the stream.
        """
        pts = round(start_s * self.rate)
        if self.stream.codec_context.name == "libopus":
            pts -= 1  # its delay is 6.5 ms, which Matroska rounds twice, to 8 ms
        for block in blocks:
            samples = np.clip(block, -1, 1) if self._clips else block
            # Interleaved: PyAV reads and writes the planes from the eighth on out of bounds.
            interleaved = np.ascontiguousarray(samples.T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(interleaved, "flt", self._source_layout)
            frame.sample_rate, frame.time_base, frame.pts = self.rate, Fraction(1, self.rate), pts
            pts += block.shape[1]
            yield from self.stream.encode(frame)
        yield from self.stream.encode(None)


def _encodes(kind: OutputFormat, name: str, rate: int, layout: str) -> bool:
    return kind.holds(lambda output: output.add_stream(name, rate=rate, layout=layout))


def blocks_of(samples: Samples, rate: int) -> Iterator[Samples]:
    """Yield float32 [channels, n] in blocks of one second."""
    for offset in range(0, samples.shape[1], rate):
        yield samples[:, offset : offset + rate]


class SourceSound:
    """A sound track of the source.

    Each iteration decodes it from the start, in blocks, at a constant rate and with a constant layout.

    Args:
        path: The file.
        limits: Limits on the file.
        index: Index of the stream in the file.

    Attributes:
        rate: Sample rate in Hz.
        layout: FFmpeg's name of the channel layout.
        channels: FFmpeg's names of the channels.
        start_s: PTS of the first sample, in seconds.
        bit_depth: Bit depth that keeps it, if its codec is lossless.
        damaged_s: Where a damage ended the last iteration, in seconds; None: it was read to its end.

    Raises:
        MediaError: The track is empty, or cannot be decoded.
    """

    def __init__(self, path: Path, limits: Limits, index: int) -> None:
        self._path, self._limits, self._index = path, limits, index
        first = next(self._frames(), None)
        if first is None:
            raise MediaError("it is empty")
        self.rate, self.layout = int(first.sample_rate), first.layout.name
        self.channels = [channel.name for channel in first.layout.channels]
        self.start_s = first.time or 0.0
        self.damaged_s: float | None = None
        try:
            AudioResampler("flt", self.layout, self.rate).resample(first)
        except ValueError as error:  # among them FFmpegError
            raise MediaError(f"its {len(self.channels)} channels are not those of loudspeakers") from error

    def blocks(self, rate: int) -> Iterator[Samples]:
        """Decode the track, until its end or its first damage, with silence in its gaps.

        Yields:
            float32 [channels, n] at `rate` Hz.

        Raises:
            MediaTooLarge: The track exceeds the limits.
        """
        resampler, form, done_s, self.damaged_s = None, None, self.start_s, None
        try:
            for frame in self._frames():
                late_s = 0.0 if frame.time is None else frame.time - done_s
                changed = (frame.format.name, frame.layout.name, frame.sample_rate) != form
                if resampler and (changed or late_s > _GAP_S):  # broadcasts change from stereo to surround and back
                    yield from self._resampled(resampler, None)
                    resampler = None
                if late_s > _GAP_S:
                    silence = np.broadcast_to(np.float32(0), (len(self.channels), round(late_s * rate)))
                    yield from blocks_of(silence, rate)  # a hostile gap can be years long
                    done_s += late_s
                if resampler is None:
                    resampler = AudioResampler("flt", self.layout, rate)
                    form = frame.format.name, frame.layout.name, frame.sample_rate
                done_s += frame.samples / frame.sample_rate
                yield from self._resampled(resampler, frame)
            if resampler:
                yield from self._resampled(resampler, None)
        except MediaTooLarge:
            raise
        except (MediaError, ValueError):  # FFmpegError is a ValueError or an OSError
            self.damaged_s = done_s

    def _resampled(self, resampler: AudioResampler, frame: Any) -> Iterator[Samples]:
        for block in resampler.resample(frame):
            yield self._checked(block)

    def _checked(self, block: Any) -> Samples:
        samples = np.asarray(block.to_ndarray(), np.float32).reshape(-1, len(self.channels)).T
        if not np.isfinite(samples).all():
            raise MediaError(f"{self._path.name} is damaged: its audio has values that are not finite; export it again")
        return samples

    def _frames(self) -> Iterator[Any]:
        with open_media(self._path, self._limits) as file:
            stream = file.container.streams[self._index]
            if stream.codec_context is None:
                raise MediaError("its codec cannot be decoded")
            context: Any = stream.codec_context
            self.bit_depth = _bit_depth(context.codec.canonical_name, context.format)
            yield from audio_frames(file, stream)


def _bit_depth(codec: str, samples: av.AudioFormat | None) -> BitDepth | None:
    if samples is None or not (codec in _LOSSLESS_CODECS or codec.startswith("pcm_")):
        return None
    return "32f" if samples.name.startswith("flt") else "24" if samples.bits > 16 else "16"


def mixed(own: SourceSound, new: Callable[[], Iterator[Samples]], rate: int, start_s: float) -> Iterator[Samples]:
    """Mix a new sound with a track of the source.

    The new sound is added to the centre channel if there is one, else to all channels. The sum is scaled down if it
    would clip, so both are read twice.

    Args:
        own: The source's track.
        new: Returns the blocks of the new sound, float32 [m] each, from the start.
        rate: Sample rate of `new` and of the mix, in Hz.
        start_s: PTS of the first sample of `new`, in seconds.

    Yields:
        Blocks of the mix, float32 [channels, m], as long as the new sound.
    """
    gains = np.ones((len(own.channels), 1), np.float32)
    if _CENTRE in own.channels and len(own.channels) > 1:
        gains[:] = 0
        gains[own.channels.index(_CENTRE)] = 1
    peak = max((float(np.abs(block).max()) for block in _sums(own, new(), rate, start_s, gains)), default=0.0)
    for block in _sums(own, new(), rate, start_s, gains):
        yield block / max(1.0, peak)


def _sums(own: SourceSound, new: Iterator[Samples], rate: int, start_s: float, gains: Samples) -> Iterator[Samples]:
    late = round((own.start_s - start_s) * rate)
    silence = np.broadcast_to(np.float32(0), (len(own.channels), max(0, late)))
    skip, added = max(0, -late), _Reader(new)
    for block in chain(blocks_of(silence, rate), own.blocks(rate)):
        dropped = min(skip, block.shape[1])
        skip -= dropped
        addend = added.read(block.shape[1] - dropped)
        if addend.size:
            yield block[:, dropped : dropped + addend.size] + gains * addend
    while (addend := added.read(rate)).size:
        yield gains * addend


class _Reader:
    """Reads a sound in blocks of other lengths than those in which it is made.

    Args:
        blocks: The sound, float32 [m] each.
    """

    def __init__(self, blocks: Iterator[Samples]) -> None:
        self._blocks, self._left = blocks, np.empty(0, np.float32)

    def read(self, count: int) -> Samples:
        """Return the next `count` samples, or fewer at the end."""
        parts = [self._left]
        while sum(map(len, parts)) < count and (block := next(self._blocks, None)) is not None:
            parts.append(block)
        joined = np.concatenate(parts)
        self._left = joined[count:]
        return joined[:count]
