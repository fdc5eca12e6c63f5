"""The canvas that scenes are painted on, a frame with a margin, and drawing functions for it."""

import cv2
import numpy as np
import numpy.typing as npt

from foley import clip

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Canvas = npt.NDArray[np.float32]
"""[HEIGHT, WIDTH, 3] RGB, 0 to 255."""
Colour = npt.NDArray[np.float64]
"""[3] RGB, 0 to 255."""

MARGIN = 6  # pixels around the frame, for camera shake
HEIGHT, WIDTH = clip.FRAME_HEIGHT + 2 * MARGIN, clip.FRAME_WIDTH + 2 * MARGIN
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)

FRACTION = 4
"""Fractional bits of the coordinates from `fixed`: OpenCV's `shift`."""


def fixed(pixels: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Convert coordinates to OpenCV's fixed-point numbers."""
    return np.round(np.asarray(pixels) * (1 << FRACTION)).astype(np.int32)


def disc(image: Image, centre: npt.ArrayLike, radius: float, colour: npt.NDArray[np.floating]) -> None:
    """Draw a disc around `centre` (x, y) in place; all in pixels."""
    cv2.circle(image, fixed(centre).tolist(), int(fixed(radius)), colour.tolist(), -1, cv2.LINE_AA, FRACTION)


def paint(canvas: Canvas, mask: Floats, colour: npt.ArrayLike) -> None:
    """Blend `colour` [3] or [HEIGHT, WIDTH, 3] over the canvas in place, with `mask` (0 to 1) as alpha."""
    canvas += mask[..., None] * (np.asarray(colour, np.float32) - canvas)


def edge(distance: Floats, softness: float = 1.2) -> Floats:
    """Return a mask of the points at negative signed distance, antialiased over `softness` pixels."""
    return np.clip(0.5 - distance / softness, 0, 1)


def grain(random: np.random.Generator, width: float, height: float) -> Floats:
    """Return smooth noise [HEIGHT, WIDTH], mean 0, standard deviation 1, with grains of `width` x `height` pixels."""
    coarse = (max(2, int(HEIGHT / height)), max(2, int(WIDTH / width)))
    noise = cv2.resize(random.standard_normal(coarse, np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.asarray(noise / noise.std())


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return the RGB colour of a hue in OpenCV's units of 2 degrees, saturation 0 to 1 and value 0 to 255."""
    pixel = np.array([[[hue, 255 * saturation, value]]]).astype(np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)
