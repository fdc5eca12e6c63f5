"""HDR10's static metadata: the display on which a video was mastered, and the brightness of its content."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from av.sidedata.sidedata import Type


def encoder_options(frame: Any, encoder: str) -> dict[str, str]:
    """Return the options that give the metadata of a decoded frame to an encoder.

    Args:
        frame: The first frame of a video.
        encoder: "libx265" or "libsvtav1"; others do not write it.
    """
    master = frame.side_data.get(Type.MASTERING_DISPLAY_METADATA)
    light = frame.side_data.get(Type.CONTENT_LIGHT_LEVEL)
    found = []
    if encoder == "libx265":
        if master:
            found.append(f"master-display={_display(bytes(master), 50_000, 10_000)}")
        if light:
            found.append(f"max-cll={_light(bytes(light))}")
        return {"x265-params": ":".join(["log-level=error", "hdr10=1", *found])} if found else {}
    if encoder == "libsvtav1":
        if master:
            found.append(f"mastering-display={_display(bytes(master), 1, 1)}")
        if light:
            found.append(f"content-light={_light(bytes(light))}")
        return {"svtav1-params": ":".join(found)} if found else {}
    return {}


def _display(data: bytes, steps: int, nit_steps: int) -> str:
    """Return AVMasteringDisplayMetadata as text.

    Args:
        data: The structure: red, green, blue and white as x and y, the least and the most light; each as a fraction.
        steps: Colours are in units of 1 / steps.
        nit_steps: Light is in units of 1 / nit_steps cd/m2.
    """
    numbers = [Fraction(top, bottom or 1) for top, bottom in struct.iter_unpack("=ii", data[:80])]
    (red, green, blue), white = [numbers[i : i + 2] for i in (0, 2, 4)], numbers[6:8]
    lowest, highest = numbers[8:10]

    def pair(values: Sequence[Fraction], scale: int) -> str:
        return ",".join(str(round(value * scale)) if scale > 1 else f"{float(value):.5f}" for value in values)

    colours = "".join(
        f"{name}({pair(values, steps)})" for name, values in [("G", green), ("B", blue), ("R", red), ("WP", white)]
    )
    return f"{colours}L({pair([highest, lowest], nit_steps)})"


def _light(data: bytes) -> str:
    """Return AVContentLightMetadata as text: the brightest pixel and the brightest mean of a frame, in cd/m2."""
    return ",".join(map(str, struct.unpack("=II", data[:8])))
