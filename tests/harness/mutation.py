"""Small intact media files of many formats, and mutations of their bytes."""

import random
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

# extension -> (video encoder, audio encoder)
_FORMATS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", None),
    "webm": ("libvpx-vp9", None),
    "avi": ("mpeg4", None),
    "mov": ("mjpeg", None),
    "ts": ("mpeg2video", None),
    "gif": ("gif", None),
    "flv": ("flv1", None),
    "wav": (None, None),
    "flac": (None, None),
    "ogg": (None, None),
    "m4a": (None, "aac"),
}
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seed_files(folder: Path) -> Mapping[str, bytes]:
    """Write an intact file of every format, a few KB each, to `folder`, and return the contents by extension."""
    return {ending: _write(folder / f"seed.{ending}", *encoders) for ending, encoders in _FORMATS.items()}


def mutate(rng: random.Random, files: list[bytes]) -> bytes:
    """Return one of `files` after one to four mutations."""
    content = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(_MUTATORS)(rng, content, files)
    return bytes(content)


def _flip(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    for _ in range(rng.randrange(1, 40)):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _cut(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    return content[: rng.randrange(len(content) + 1)]


def _zero(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    start, end = _span(rng, content)
    content[start:end] = bytes(end - start)
    return content


def _garbage(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    start, end = _span(rng, content)
    content[start:end] = rng.randbytes(rng.randrange(2_000))
    return content


def _repeat(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    start, end = _span(rng, content)
    return content[:end] + content[start:end] * rng.choice((1, 2, 50)) + content[end:]


def _splice(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    other = rng.choice(files)
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other)) :]


def _forge(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    """Write extreme 32-bit integers near the start, where headers store sizes, counts, rates and durations."""
    for _ in range(rng.randrange(1, 5)):
        if len(content) > 8:
            at = rng.randrange(min(len(content) - 4, 2_000))
            content[at : at + 4] = rng.choice(_EXTREMES).to_bytes(4, rng.choice(("big", "little")))
    return content


def _only_the_head(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    return content[: rng.choice((4, 12, 40))] + rng.randbytes(rng.randrange(5_000))


_MUTATORS = (_flip, _flip, _cut, _zero, _garbage, _repeat, _splice, _forge, _forge, _only_the_head)


def _span(rng: random.Random, content: bytearray) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 16, 200, 3_000)))


def _write(path: Path, picture: str | None, sound: str | None) -> bytes:
    wave = (8_000 * np.sin(np.arange(8_000) / 9)).astype(np.int16)
    if not picture and not sound:
        soundfile.write(path, wave, 16_000)
        return path.read_bytes()
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream(picture, 25) if picture else None
        audio: Any = file.add_stream(sound, 16_000, layout="mono") if sound else None
        if video:
            video.width, video.height = 64, 48
            video.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(str(picture), "yuv420p")
            for i in range(12):
                image = np.full((48, 64, 3), 16 * i, np.uint8)
                image[2 * i : 2 * i + 6, 10:40] = 250
                file.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(video.encode())
        if audio:
            frame = av.AudioFrame.from_ndarray(wave[None], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            file.mux(audio.encode(frame))
            file.mux(audio.encode())
    return path.read_bytes()
