"""How a scene looks: a stick over an object in a room, as a camera sees it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from foley import clip
from foley_training.data import motion
from foley_training.data.objects import (
    COLUMNS,
    HEIGHT,
    MARGIN,
    ROWS,
    WIDTH,
    Canvas,
    Floats,
    Thing,
    draw,
    grain,
    hsv,
    place,
    water_mask,
)
from foley_training.data.scene import HELD_OUT_STYLE, Contact, Material, Scene

Image = npt.NDArray[np.uint8]
Colour = npt.NDArray[np.float64]

PURPOSE = 3  # of the scene's random numbers
_EXPOSURES = 3  # sub-frames that are averaged: motion blur
_SHUTTER_S = 1 / 60
_REBOUND: dict[Material, float] = {
    "wood": 0.55,
    "metal": 0.6,
    "glass": 0.55,
    "cloth": 0.4,
    "water": 0.4,
    "gravel": 0.4,
}
_STICKS = ((205, 160, 100), (140, 85, 45), (85, 50, 30), (190, 70, 40), (225, 190, 130), (40, 38, 36))
_NIGHT_STICKS = ((235, 235, 225), (120, 165, 240))
_FIXED = 4  # fractional bits of the coordinates that OpenCV draws with
_GRAVITY = 900.0  # px/s^2, of drops and grains


def render(scene: Scene) -> Iterator[Image]:
    """The 300 frames of a scene, uint8 RGB [256, 344, 3]; frame k shows the time k / 30 s."""
    random = scene.random(PURPOSE)
    times_s = np.arange(clip.CLIP_FRAMES) / clip.FRAME_RATE_HZ
    thing = place(scene, random)
    reach = 0.75 * thing.half
    light = _light(scene, thing, random)
    room, wall = _room(scene, thing, random)
    stick = _Stick.choose(scene, wall, random)
    draw(room, scene, thing, random)
    still = np.clip(room * light, 0, 255).astype(np.uint8)

    exposures_s = (times_s[:, None] + np.linspace(-0.5, 0.5, _EXPOSURES) * _SHUTTER_S).ravel()
    along, above = motion.tip(scene.contacts, exposures_s, reach, _REBOUND[scene.material], random)
    tips = np.stack([thing.x + along, thing.surface(along) - above, above], axis=1)
    tips = tips.reshape(clip.CLIP_FRAMES, _EXPOSURES, 3)
    lit = light[int(thing.y) - 40, int(np.clip(thing.x, 0, WIDTH - 1))]

    surface = _Surface(scene, thing, reach, lit, still, random)
    shake = _shake(times_s, random)
    noise = _Noise(random, random.uniform(5, 8) if scene.style == HELD_OUT_STYLE else random.uniform(1, 4))
    for k, time_s in enumerate(times_s):
        moved = surface.at(time_s)
        image = _mean([stick.over(moved, x, y, height, lit) for x, y, height in tips[k]])
        surface.spray(image, time_s)
        yield noise.over(_seen(image, shake[k]), random)


def _light(scene: Scene, thing: Thing, random: np.random.Generator) -> Floats:
    """The light everywhere, as a factor for the colours: [HEIGHT, WIDTH, 3]."""
    if scene.style == HELD_OUT_STYLE:
        lamp_x, lamp_y = thing.x + random.uniform(-50, 50), random.uniform(-90, -40)
        angle = np.arctan2(COLUMNS - lamp_x, ROWS - lamp_y) - np.arctan2(thing.x - lamp_x, thing.y - lamp_y)
        cone = np.exp(-((np.abs(angle) / random.uniform(0.42, 0.55)) ** 4))
        warm = np.array([1.15, random.uniform(0.8, 0.9), random.uniform(0.45, 0.6)], np.float32)
        return np.asarray(cone[..., None] * warm + np.array([0.12, 0.14, 0.22], np.float32), np.float32)
    temperature = random.uniform(-0.12, 0.12)
    colour = random.uniform(0.75, 1.12) * np.array([1 + temperature, 1, 1 - temperature])
    direction, slope = random.uniform(0, 2 * np.pi), random.uniform(0, 0.25)
    falling = np.cos(direction) * (COLUMNS / WIDTH - 0.5) + np.sin(direction) * (ROWS / HEIGHT - 0.5)
    return np.asarray((1 + slope * 2 * falling)[..., None] * colour, np.float32)


def _room(scene: Scene, thing: Thing, random: np.random.Generator) -> tuple[Canvas, Colour]:
    """The wall in the scene's style and a table before it, and the wall's mean colour."""
    colour, other = (hsv(random.uniform(0, 180), random.uniform(0, 0.4), random.uniform(70, 225)) for _ in range(2))
    share = np.zeros((HEIGHT, WIDTH), np.float32)
    if scene.style == "gradient":
        angle = random.uniform(0, 2 * np.pi)
        share = 0.5 + np.cos(angle) * (COLUMNS / WIDTH - 0.5) + np.sin(angle) * (ROWS / HEIGHT - 0.5)
    elif scene.style == "stripes":
        angle, period = random.uniform(0, np.pi), random.uniform(14, 50)
        share = 0.5 + 2 * np.sin((np.cos(angle) * COLUMNS + np.sin(angle) * ROWS) * 2 * np.pi / period)
    elif scene.style == "speckles":
        size = random.uniform(4, 14)
        share = 0.5 + 1.5 * (grain(random, size, size) - random.uniform(0.2, 0.8))
    elif scene.style == HELD_OUT_STYLE:
        share = 0.3 + 0.2 * grain(random, 60, 40)
    share = np.clip(share, 0, 1)[..., None]
    plaster = 1 + random.uniform(0.02, 0.04) * grain(random, 3, 3) + random.uniform(0.015, 0.04) * grain(random, 9, 9)
    wall = (colour + (other - colour) * share * random.uniform(0.4, 1)) * plaster[..., None]
    table = hsv(random.uniform(0, 180), random.uniform(0.05, 0.35), random.uniform(60, 200))
    back = thing.y + random.uniform(-6, 0.6 * thing.body + thing.depth / 2)
    shade = 0.85 + 0.3 * (ROWS - back) / (HEIGHT - back) + 0.03 * grain(random, 12, 2)
    room = np.where((back < ROWS)[..., None], table * shade[..., None], wall)
    return room.astype(np.float32), wall.mean(axis=(0, 1))


@dataclass(frozen=True)
class _Stick:
    """A drumstick: it tapers towards its tip, a bead, and is held beyond its other end."""

    colour: Colour
    side: int  # of the hand: -1 left, 1 right
    elevation: float  # radians
    lean: float  # how much the stick turns when its tip is lifted
    length: float  # px
    radius: float  # px, at the tip
    bead: float  # px

    @classmethod
    def choose(cls, scene: Scene, wall: Colour, random: np.random.Generator) -> "_Stick":
        """A stick that can be told from the wall."""
        if scene.style == HELD_OUT_STYLE:
            colours = np.array(_NIGHT_STICKS, np.float64)
        else:
            colours = np.array(_STICKS, np.float64)
            difference = np.abs(colours - wall).sum(axis=1)
            colours = colours[difference >= min(150, np.sort(difference)[-2])]
        radius = random.uniform(3.2, 5.4)
        return cls(
            colour=random.choice(colours) * random.uniform(0.9, 1.1),
            side=int(random.choice((-1, 1))),
            elevation=random.uniform(0.2, 0.95),
            lean=random.uniform(0.3, 0.8),
            length=random.uniform(130, 280),
            radius=radius,
            bead=radius * random.uniform(1.05, 1.6),
        )

    def over(self, image: Image, x: float, y: float, above: float, light: Floats) -> Image:
        """The image with the stick before it; its bead touches (x, y), `above` pixels over the surface."""
        image = image.copy()
        elevation = self.elevation - self.lean * above / self.length
        direction = np.array([self.side * np.cos(elevation), -np.sin(elevation)])
        normal = np.array([-direction[1], direction[0]]) * self.side  # down, the dark side
        tip = np.array([x, y - self.bead])
        end = tip + self.length * direction
        for width, offset, shade in ((1.0, 0.0, 0.5), (0.78, -0.18, 1.0), (0.2, -0.4, 1.3)):
            colour = np.clip(self.colour * shade * light, 0, 255).tolist()
            at_tip, at_end = self.radius, 1.7 * self.radius
            corners = (
                tip + normal * at_tip * (offset + width),
                tip + normal * at_tip * (offset - width),
                end + normal * at_end * (offset - width),
                end + normal * at_end * (offset + width),
            )
            cv2.fillConvexPoly(image, _fixed(corners), colour, cv2.LINE_AA, _FIXED)
            centre = _fixed(tip + normal * self.bead * offset)
            cv2.circle(image, centre.tolist(), round(self.bead * width * 16), colour, -1, cv2.LINE_AA, _FIXED)
        return image


class _Surface:
    """How the object answers: cloth gives way, water ripples and splashes, grains jump."""

    def __init__(
        self, scene: Scene, thing: Thing, reach: float, light: Floats, still: Image, random: np.random.Generator
    ) -> None:
        self.thing, self.still, self.material = thing, still, scene.material
        touches = np.array([touch for c in scene.contacts for touch in _touches(c, reach)])
        self.times_s, self.along, self.strength = touches.T
        self.loose = _loose(scene, thing, touches, light, random)
        rows = slice(int(thing.y - thing.depth / 2), int(thing.y + thing.depth / 2) + 2)
        columns = slice(int(max(0, thing.x - thing.half)), int(thing.x + thing.half) + 2)
        self.window = rows, columns
        self.mask = water_mask(thing)[self.window]

    def at(self, time_s: float) -> Image:
        """The room and the object at a time, without the stick."""
        if self.material == "water":
            return self._rippled(time_s)
        if self.material == "cloth":
            return self._dented(time_s)
        return self.still

    def spray(self, image: Image, time_s: float) -> None:
        """Draw what flies about, in place."""
        start_s, x, y, speed_x, speed_y, radius, *_ = self.loose.T
        age = time_s - start_s
        flying = (age > 0) & (age < 2 * -speed_y / _GRAVITY)
        if flying.any():
            age = age[flying]
            places = np.stack([x[flying] + speed_x[flying] * age, y[flying] + speed_y[flying] * age], axis=1)
            places[:, 1] += _GRAVITY / 2 * age**2
            for place, size, colour in zip(_fixed(places), radius[flying], self.loose[flying, 6:], strict=True):
                cv2.circle(image, place.tolist(), round(size * 16), colour.tolist(), -1, cv2.LINE_AA, _FIXED)

    def _rippled(self, time_s: float) -> Image:
        age = time_s - self.times_s
        alive = np.flatnonzero((age > 0) & (age < 0.8))
        if not alive.size:
            return self.still
        rows, columns = ROWS[self.window] - self.thing.y, COLUMNS[self.window] - self.thing.x
        flat = 2 * self.thing.half / self.thing.depth
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
        x, y = self.thing.x + self.along[i], self.thing.surface(self.along[i])
        rows = slice(int(y) - 12, int(y) + 24)
        columns = slice(int(max(0, x - 40)), int(x) + 40)
        across = np.exp(-(((COLUMNS[rows, columns] - x) / 16) ** 2))
        down = np.clip(1 - np.abs(ROWS[rows, columns] - y) / 24, 0, 1)
        source = (ROWS[rows, columns] - depth * across * down).astype(np.float32)
        image = self.still.copy()
        image[rows, columns] = cv2.remap(self.still, COLUMNS[rows, columns].copy(), source, cv2.INTER_LINEAR)
        return image


def _touches(contact: Contact, reach: float) -> Iterator[tuple[float, float, float]]:
    """When, where (pixels along the object) and how hard the object is disturbed."""
    if not contact.duration_s:
        yield contact.start_s, contact.x * reach, 0.3 + 0.7 * contact.strength
    times_s = np.arange(contact.start_s, contact.start_s + contact.duration_s, 1 / 15)
    for time_s, along in zip(times_s, motion.stroke(contact, times_s, reach), strict=True):
        yield time_s, along, 0.2 + 0.3 * contact.strength


def _loose(
    scene: Scene, thing: Thing, touches: npt.NDArray[np.float64], light: Floats, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Drops and grains: time, place and velocity at the start, radius and RGB, [n, 9]."""
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
    x, y = thing.x + along + random.normal(0, 3, count), thing.surface(along)
    speed_x, speed_y = speed * np.sin(angle), -speed * np.cos(angle)
    return np.column_stack([time_s, x, y, speed_x, speed_y, radius, np.clip(colour, 0, 255)])


def _mean(images: Sequence[Image]) -> Image:
    mean = images[0]
    for i, image in enumerate(images[1:], 1):
        mean = np.asarray(cv2.addWeighted(mean, i / (i + 1), image, 1 / (i + 1), 0), np.uint8)
    return mean


def _shake(times_s: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Where the camera looks, pixels right and down: [n, 2]. Most cameras stand on a tripod."""
    width = random.uniform(0.5, 2.5) if random.random() < 0.3 else 0.0
    rates_hz, phases = random.uniform(0.3, 2.5, (2, 3, 1)), random.uniform(0, 6.28, (2, 3, 1))
    return np.asarray(width * np.sin(2 * np.pi * rates_hz * times_s + phases).mean(axis=1).T)


def _seen(image: Image, shift: npt.NDArray[np.float64]) -> Image:
    """The part of the canvas that the camera sees: [256, 344, 3]."""
    if not shift.any():
        return image[MARGIN:-MARGIN, MARGIN:-MARGIN]
    centre = (WIDTH - 1) / 2 + shift[0], (HEIGHT - 1) / 2 + shift[1]
    return np.asarray(cv2.getRectSubPix(image, (clip.FRAME_WIDTH, clip.FRAME_HEIGHT), centre), np.uint8)


class _Noise:
    """The camera's noise: Gaussian, cut anew for every frame from a larger tile."""

    def __init__(self, random: np.random.Generator, deviation: float) -> None:
        tile = random.standard_normal((400, 500, 3), np.float32) * deviation
        self._more = np.clip(tile.round(), 0, 255).astype(np.uint8)
        self._less = np.clip(-tile.round(), 0, 255).astype(np.uint8)

    def over(self, image: Image, random: np.random.Generator) -> Image:
        """The image with noise, its values cut off at 0 and 255."""
        height, width = image.shape[:2]
        row, column = random.integers(400 - height), random.integers(500 - width)
        part = slice(row, row + height), slice(column, column + width)
        return np.asarray(cv2.subtract(cv2.add(image, self._more[part]), self._less[part]), np.uint8)


def _fixed(points: npt.ArrayLike) -> npt.NDArray[np.int32]:
    return np.round(np.asarray(points) * (1 << _FIXED)).astype(np.int32)
