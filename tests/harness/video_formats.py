"""Videos in each format that is read, as FFmpeg writes them: frames of even grey that become brighter."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

PAL, NTSC = Fraction(25), Fraction(30_000, 1001)
FRAMES = 40

# name: (muxer, encoder, pixel format, size, frame rate). wtv and rm stand for old formats. dhav, cine, vvc, av1 and vc1
# are missing, because FFmpeg cannot write them.
VIDEOS = {
    "pal.mxf": ("mxf", "mpeg2video", "yuv420p", (64, 48), PAL),
    "ntsc.mxf": ("mxf", "mpeg2video", "yuv420p", (64, 48), NTSC),
    "reordered.mxf": ("mxf", "libx264", "yuv420p", (64, 48), NTSC),
    "pal.dv": ("dv", "dvvideo", "yuv420p", (720, 576), PAL),
    "ntsc.dv": ("dv", "dvvideo", "yuv411p", (720, 480), NTSC),
    "ntsc.gxf": ("gxf", "mpeg2video", "yuv420p", (720, 480), NTSC),
    "pal.gxf": ("gxf", "mpeg2video", "yuv420p", (720, 576), PAL),
    "a.y4m": ("yuv4mpegpipe", "rawvideo", "yuv420p", (64, 48), NTSC),
    "a.apng": ("apng", "apng", "gray", (64, 48), PAL),
    "a.png": ("apng", "apng", "gray", (64, 48), PAL),
    "a.ivf": ("ivf", "libvpx", "yuv420p", (64, 48), NTSC),
    "av1.ivf": ("ivf", "libsvtav1", "yuv420p", (64, 64), PAL),
    "a.nut": ("nut", "libx264", "yuv420p", (64, 48), NTSC),
    "a.ogv": ("ogg", "libvpx", "yuv420p", (64, 48), NTSC),
    "a.rm": ("rm", "rv20", "yuv420p", (64, 48), PAL),
    "a.wmv": ("asf", "wmv2", "yuv420p", (64, 48), PAL),
    "a.wtv": ("wtv", "mpeg2video", "yuv420p", (64, 48), NTSC),
    "a.vob": ("vob", "mpeg2video", "yuv420p", (64, 48), NTSC),
    "a.m2ts": ("mpegts", "libx264", "yuv420p", (64, 48), NTSC),
    "a.3gp": ("3gp", "h263", "yuv420p", (176, 144), PAL),
    "a.h264": ("h264", "libx264", "yuv420p", (64, 48), NTSC),
    "a.hevc": ("hevc", "libx265", "yuv420p", (64, 48), NTSC),
    "a.m2v": ("mpeg2video", "mpeg2video", "yuv420p", (64, 48), NTSC),
    "a.m4v": ("m4v", "mpeg4", "yuv420p", (64, 48), NTSC),
    # these streams have no frame rate, so it is 25
    "a.mjpeg": ("mjpeg", "mjpeg", "yuvj420p", (64, 48), PAL),
    "a.obu": ("obu", "libsvtav1", "yuv420p", (64, 64), PAL),
    "a.avif": ("avif", "libsvtav1", "yuv420p", (64, 64), PAL),
}


def level(number: int) -> int:
    """The brightness of a frame: 5 more than that of the frame before."""
    return 20 + 5 * number


def write_video(path: Path, muxer: str, encoder: str, pixels: str, size: tuple[int, int], rate: Fraction) -> Path:
    options = {"svtav1-params": "lp=1"} if encoder == "libsvtav1" else {}
    with av.open(str(path), "w", format=muxer) as output:
        stream = output.add_stream(encoder, rate=rate, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        stream.codec_context.time_base, stream.bit_rate = 1 / rate, 4_000_000
        for number in range(FRAMES):
            grey = np.full(size[::-1], level(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="gray").reformat(format=pixels)
            frame.pts, frame.time_base = number, 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
