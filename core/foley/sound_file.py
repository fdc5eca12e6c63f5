"""Writes sounds, as Broadcast Wave or FLAC.

For an atomic write, pass the temporary path from `foley.output.replacing`.
"""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from foley import broadcast_wave
from foley.audio import Samples, resampled
from foley.errors import OutputError, SettingError
from foley.output import check_destination
from foley.sound_format import DEFAULT_SOUND, BitDepth, SoundFormat
from foley.sound_tags import NO_TAGS, ORIGINATOR, SoundTags

SOUND_EXTENSIONS = (".wav", ".flac")

_FULL_SCALE: dict[BitDepth, int] = {"16": 2**15, "24": 2**23}  # as decoders have it


def write_sound(
    path: Path,
    waveform: Samples,
    rate: int,
    sound: SoundFormat = DEFAULT_SOUND,
    tags: SoundTags = NO_TAGS,
) -> None:
    """Write a sound, block by block.

    16 and 24 bits are rounded without dither and clipped to [-1, 1]. 32f is not clipped: values above full scale, which
    resampling can produce between the samples of a sound at full scale, are kept.

    Args:
        path: The destination, .wav (Broadcast Wave) or .flac.
        waveform: float32 [n], [-1, 1] is full scale.
        rate: Sample rate of `waveform` in Hz.
        sound: Sample format of the file. A higher rate adds no frequencies: 16 kHz is band-limited to 8 kHz.
        tags: Metadata of the file.

    Raises:
        OutputError: The destination or the waveform is invalid.
        SettingError: The destination's format does not support `sound`.
    """
    check_destination(path, SOUND_EXTENSIONS)
    check_sound(path, sound)
    check_waveform(waveform)
    new_rate = sound.rate or rate
    blocks = resampled(waveform, rate, new_rate)
    if path.suffix.lower() == ".flac":
        _write_flac(path, blocks, new_rate, sound.bit_depth, tags)
    else:
        with path.open("wb") as file:
            count = round(len(waveform) * new_rate / rate)
            file.write(broadcast_wave.header(count, new_rate, sound.bit_depth, tags))
            for block in blocks:
                file.write(_little_endian(block, sound.bit_depth))
            file.write(b"\0" * (file.tell() % 2))


def check_sound(path: Path, sound: SoundFormat) -> None:
    """Check that a file can have this sample format.

    Raises:
        SettingError: It cannot: .flac has no floating-point samples.
    """
    if path.suffix.lower() == ".flac" and sound.bit_depth == "32f":
        raise SettingError(f"{path.name} cannot have floating-point samples; use a bit depth of 16 or 24, or .wav")


def check_waveform(waveform: Samples) -> None:
    """Check that a waveform can be written.

    Raises:
        OutputError: It is not one channel of finite samples.
    """
    if waveform.ndim != 1 or waveform.size == 0:
        raise OutputError(
            f"a sound of shape {waveform.shape} cannot be written; give one channel with at least one sample"
        )
    if not np.isfinite([waveform.min(), waveform.max()]).all():  # without an array as long as the sound
        raise OutputError("the sound has values that are not finite, so it was not written; generate it again")


def _little_endian(block: Samples, bit_depth: BitDepth) -> bytes:
    if bit_depth == "32f":
        return block.astype("<f4").tobytes()
    if bit_depth == "16":
        return _integers(block, bit_depth).astype("<i2").tobytes()
    return _integers(block, bit_depth).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def _integers(block: Samples, bit_depth: BitDepth) -> NDArray[np.int32]:
    full = _FULL_SCALE[bit_depth]
    return np.asarray(np.clip(np.rint(block.astype(np.float64) * full), -full, full - 1), np.int32)


def _write_flac(path: Path, blocks: Iterable[Samples], rate: int, bit_depth: BitDepth, tags: SoundTags) -> None:
    with av.open(f"file:{path}", "w", format="flac") as output:
        described = {
            "description": tags.line,
            "date": tags.recorded.date,
            "originator": ORIGINATOR,
            "time_reference": str(tags.time_reference(rate)),
            "foley_recipe": tags.recipe,
        }
        output.metadata.update({name: value for name, value in described.items() if value})
        stream: Any = output.add_stream("flac", rate=rate, layout="mono")
        stream.codec_context.format = "s16" if bit_depth == "16" else "s32"  # the encoder uses 24 of the 32 bits
        for block in blocks:
            integers = _integers(block, bit_depth)
            planes = integers.astype(np.int16) if bit_depth == "16" else integers << 8
            frame = av.AudioFrame.from_ndarray(planes[None], stream.codec_context.format.name, "mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), None
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
