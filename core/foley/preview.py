"""A stand-in for a video that a browser cannot play: the frames that the networks see, as H.264 in MP4."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from foley.clip import FRAME_HEIGHT, FRAME_RATE_HZ, FRAME_WIDTH
from foley.container import DEFAULT_LIMITS, Limits
from foley.media import VideoInfo, read_frames

_MOST_STRETCH = 16  # of a pixel's width to its height; the file's field for it ends at 65,535


def write_preview(source: Path, destination: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Write the picture of `source` to `destination`, 30 fps from its first frame on, upright, without sound.

    It has 344 x 256 pixels, stretched in showing to the shape of the source's.

    Raises MediaError when the source cannot be read, and MediaTooLarge when it passes `limits`.
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
    """Width of a pixel as it is to be shown, in heights."""
    shape = Fraction(info.width * FRAME_HEIGHT, info.height * FRAME_WIDTH)
    return min(max(shape, Fraction(1, _MOST_STRETCH)), Fraction(_MOST_STRETCH)).limit_denominator(1000)
