"""The object's reaction to the stick: cloth dents, water ripples and splashes, grains jump."""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from foley_training.data import motion
from foley_training.data.canvas import COLUMNS, ROWS, Floats, Image, disc
from foley_training.data.objects import ObjectShape, water_mask
from foley_training.data.scene import Contact, Scene

_GRAVITY = 900.0  # px/s^2


class Reaction:
    """The moving parts of a scene except the stick; `still` is the image without them, [HEIGHT, WIDTH, 3]."""

    def __init__(
        self, scene: Scene, obj: ObjectShape, reach: float, light: Floats, still: Image, random: np.random.Generator
    ) -> None:
        self.obj, self.still, self.material = obj, still, scene.material
        touches = np.array([touch for c in scene.contacts for touch in _touches(c, reach)]).reshape(-1, 3)
        self.times_s, self.along, self.strength = touches.T
        self.particles = _particles(scene, obj, touches, light, random)
        rows = slice(int(obj.y - obj.depth / 2), int(obj.y + obj.depth / 2) + 2)
        columns = slice(int(max(0, obj.x - obj.half)), int(obj.x + obj.half) + 2)
        self.window = rows, columns
        self.mask = water_mask(obj)[self.window]

    def frame_at(self, time_s: float) -> Image:
        """Return the room and the object at a time, without the stick."""
        if self.material == "water":
            return self._rippled(time_s)
        if self.material == "cloth":
            return self._dented(time_s)
        return self.still

    def draw_particles(self, image: Image, time_s: float) -> None:
        """Draw the flying drops and grains in place."""
        start_s, x, y, speed_x, speed_y, radius, *_ = self.particles.T
        age = time_s - start_s
        flying = (age > 0) & (age < 2 * -speed_y / _GRAVITY)
        if flying.any():
            age = age[flying]
            positions = np.stack([x[flying] + speed_x[flying] * age, y[flying] + speed_y[flying] * age], axis=1)
            positions[:, 1] += _GRAVITY / 2 * age**2
            for position, size, colour in zip(positions, radius[flying], self.particles[flying, 6:], strict=True):
                disc(image, position, size, colour)

    def _rippled(self, time_s: float) -> Image:
        age = time_s - self.times_s
        alive = np.flatnonzero((age > 0) & (age < 0.8))
        if not alive.size:
            return self.still
        rows, columns = ROWS[self.window] - self.obj.y, COLUMNS[self.window] - self.obj.x
        flat = 2 * self.obj.half / self.obj.depth
        height = np.zeros_like(rows)
        for i in alive:
            front = np.hypot(columns - self.along[i], rows * flat) - 110 * age[i]
            height += self.strength[i] * np.exp(-4 * age[i]) * np.cos(front / 2.2) * np.exp(-((front / 14) ** 2))
        image = self.still.copy()
        lifted = image[self.window] + (110 * height * self.mask)[..., None]
        image[self.window] = np.clip(lifted, 0, 255).astype(np.uint8)
        return image

    def _dented(self, time_s: float) -> Image:
        age = time_s - self.times_s
        alive = np.flatnonzero((age > 0) & (age < 0.4))
        if not alive.size:
            return self.still
        i = alive[-1]
        depth = 9 * self.strength[i] * np.exp(-age[i] / 0.12)
        x, y = self.obj.x + self.along[i], self.obj.surface(self.along[i])
        rows = slice(int(y) - 12, int(y) + 24)
        columns = slice(int(max(0, x - 40)), int(x) + 40)
        across = np.exp(-(((COLUMNS[rows, columns] - x) / 16) ** 2))
        down = np.clip(1 - np.abs(ROWS[rows, columns] - y) / 24, 0, 1)
        source = (ROWS[rows, columns] - depth * across * down).astype(np.float32)
        image = self.still.copy()
        image[rows, columns] = cv2.remap(self.still, COLUMNS[rows, columns].copy(), source, cv2.INTER_LINEAR)
        return image


def _touches(contact: Contact, reach: float) -> Iterator[tuple[float, float, float]]:
    """Yield time, position (pixels along the object) and strength of every disturbance of the object."""
    if not contact.duration_s:
        yield contact.start_s, contact.x * reach, 0.3 + 0.7 * contact.strength
    times_s = np.arange(contact.start_s, contact.start_s + contact.duration_s, 1 / 15)
    for time_s, along in zip(times_s, motion.stroke(contact, times_s, reach), strict=True):
        yield time_s, along, 0.2 + 0.3 * contact.strength


def _particles(
    scene: Scene, obj: ObjectShape, touches: npt.NDArray[np.float64], light: Floats, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return the drops and grains: initial time, position and velocity, radius and RGB, [n, 9]."""
    if scene.material not in ("water", "gravel"):
        return np.empty((0, 9))
    touch = np.repeat(touches, (2 + 14 * touches[:, 2] ** 2).astype(int), axis=0)
    time_s, along, strength = touch.T
    count = len(touch)
    speed = random.uniform(0.3, 1.0, count) * (60 + 170 * strength)
    angle = random.normal(0, 0.5, count)
    shade = random.uniform(0.7, 1.1, (count, 1))
    colour = (np.array([190, 215, 240]) if scene.material == "water" else np.array([165, 152, 132])) * shade * light
    radius = random.uniform(0.8, 2.2, count)
    x, y = obj.x + along + random.normal(0, 3, count), obj.surface(along)
    speed_x, speed_y = speed * np.sin(angle), -speed * np.cos(angle)
    return np.column_stack([time_s, x, y, speed_x, speed_y, radius, np.clip(colour, 0, 255)])
