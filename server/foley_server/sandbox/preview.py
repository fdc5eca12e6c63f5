"""Previews of videos that browsers cannot play: the input frames of the networks, as H.264 in MP4."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from foley.clip import FRAME_HEIGHT, FRAME_RATE_HZ, FRAME_WIDTH
from foley.container import DEFAULT_LIMITS, Limits
from foley.media import VideoInfo, read_frames

_MOST_STRETCH = 16  # maximum pixel aspect ratio; each of its two terms is at most 65,535 in the file


def write_preview(source: Path, destination: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Encode the video of `source` to `destination`: 30 fps from its first frame, upright, without sound.

    Frames are 344 x 256 pixels; the pixel aspect ratio restores the source's aspect ratio on display.

    Raises:
        MediaError: The source cannot be read.
        MediaTooLarge: The source exceeds `limits`.
    """
    frames = read_frames(source, limits)
    with av.open(f"file:{destination}", "w", format="mp4", options={"movflags": "+faststart"}) as output:
        stream: Any = output.add_stream("libx264", rate=FRAME_RATE_HZ, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = FRAME_WIDTH, FRAME_HEIGHT, "yuv420p"
        stream.codec_context.sample_aspect_ratio = _pixel_shape(frames.info)
        for image in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))


def _pixel_shape(info: VideoInfo) -> Fraction:
    """Return the pixel aspect ratio (width / height) that restores the source's aspect ratio."""
    shape = Fraction(info.width * FRAME_HEIGHT, info.height * FRAME_WIDTH)
    return min(max(shape, Fraction(1, _MOST_STRETCH)), Fraction(_MOST_STRETCH)).limit_denominator(1000)
