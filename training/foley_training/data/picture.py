"""Renders the frames of a scene: a stick over an object in a room, filmed by a camera."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from foley import clip
from foley_training.data import motion
from foley_training.data.canvas import HEIGHT, MARGIN, WIDTH, Image
from foley_training.data.objects import draw_object, place_object
from foley_training.data.reaction import Reaction
from foley_training.data.room import draw_room, make_lighting
from foley_training.data.scene import HELD_OUT_STYLE, Material, Scene
from foley_training.data.stick import Stick

PURPOSE = 3  # random stream of the scene
_EXPOSURES = 3  # sub-frames averaged for motion blur
_SHUTTER_S = 1 / 60
_REACH = 0.75  # maximum distance of the stick from the middle, as a fraction of half the object's width
_REBOUND: dict[Material, float] = {
    "wood": 0.55,
    "metal": 0.6,
    "glass": 0.55,
    "cloth": 0.4,
    "water": 0.4,
    "gravel": 0.4,
}


def render(scene: Scene) -> Iterator[Image]:
    """Yield the 300 frames of a scene, uint8 RGB [256, 344, 3]; frame k is at k / 30 s."""
    random = scene.random(PURPOSE)
    times_s = np.arange(clip.CLIP_FRAMES) / clip.FRAME_RATE_HZ
    obj = place_object(scene, random)
    reach = _REACH * obj.half
    lighting = make_lighting(scene, obj, random)
    room, wall = draw_room(scene, obj, random)
    stick = Stick.sample(scene, wall, random)
    draw_object(room, scene, obj, random)
    still = np.clip(room * lighting, 0, 255).astype(np.uint8)

    exposures_s = (times_s[:, None] + np.linspace(-0.5, 0.5, _EXPOSURES) * _SHUTTER_S).ravel()
    along, above = motion.tip_positions(scene.contacts, exposures_s, reach, _REBOUND[scene.material], random)
    tips = np.stack([obj.x + along, obj.surface(along) - above, above], axis=1)
    tips = tips.reshape(clip.CLIP_FRAMES, _EXPOSURES, 3)
    stick_light = lighting[int(obj.y) - 40, int(obj.x)]

    reaction = Reaction(scene, obj, reach, stick_light, still, random)
    shake = _shake(times_s, random)
    noise = _Noise(random, random.uniform(5, 8) if scene.style == HELD_OUT_STYLE else random.uniform(1, 4))
    for time_s, exposures, shift in zip(times_s, tips, shake, strict=True):
        scene_image = reaction.frame_at(time_s)
        image = _mean([stick.draw_over(scene_image, x, y, height, stick_light) for x, y, height in exposures])
        reaction.draw_particles(image, time_s)
        yield noise.add_to(_crop(image, shift), random)


def _mean(images: Sequence[Image]) -> Image:
    mean = images[0]
    for i, image in enumerate(images[1:], 1):
        mean = np.asarray(cv2.addWeighted(mean, i / (i + 1), image, 1 / (i + 1), 0), np.uint8)
    return mean


def _shake(times_s: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the camera offset in pixels right and down, [n, 2]; zero in most scenes, as on a tripod."""
    width = random.uniform(0.5, 2.5) if random.random() < 0.3 else 0.0
    rates_hz, phases = random.uniform(0.3, 2.5, (2, 3, 1)), random.uniform(0, 6.28, (2, 3, 1))
    return np.asarray(width * np.sin(2 * np.pi * rates_hz * times_s + phases).mean(axis=1).T)


def _crop(image: Image, shift: npt.NDArray[np.float64]) -> Image:
    """Return the part of the canvas in view of the camera: [256, 344, 3]."""
    if not shift.any():
        return image[MARGIN:-MARGIN, MARGIN:-MARGIN]
    centre = (WIDTH - 1) / 2 + shift[0], (HEIGHT - 1) / 2 + shift[1]
    return np.asarray(cv2.getRectSubPix(image, (clip.FRAME_WIDTH, clip.FRAME_HEIGHT), centre), np.uint8)


class _Noise:
    """Gaussian camera noise: a random crop of a larger tile for every frame."""

    def __init__(self, random: np.random.Generator, deviation: float) -> None:
        tile = random.standard_normal((400, 500, 3), np.float32) * deviation
        self._positive = np.clip(tile.round(), 0, 255).astype(np.uint8)
        self._negative = np.clip(-tile.round(), 0, 255).astype(np.uint8)

    def add_to(self, image: Image, random: np.random.Generator) -> Image:
        """Return the image with added noise, clipped to 0 to 255."""
        height, width = image.shape[:2]
        row, column = random.integers(400 - height), random.integers(500 - width)
        part = slice(row, row + height), slice(column, column + width)
        return np.asarray(cv2.subtract(cv2.add(image, self._positive[part]), self._negative[part]), np.uint8)
