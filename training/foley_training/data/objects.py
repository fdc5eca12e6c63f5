"""The objects: six materials, painted once per scene, viewed from the side and slightly from above."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foley_training.data.canvas import COLUMNS, HEIGHT, ROWS, WIDTH, Canvas, Floats, disc, edge, grain, hsv, paint
from foley_training.data.scene import Material, Scene


@dataclass(frozen=True)
class ObjectShape:
    """Position and size of an object, in pixels of the canvas.

    Attributes:
        x: Column of the middle of its surface, where the stick touches it.
        y: Row of the middle of its surface.
        half: Half of its width.
        depth: Height in the image of its surface, from front to back.
        body: Height of the part below the surface.
        sag: How much lower the surface is at its left and right edges; 0 if flat.
    """

    x: float
    y: float
    half: float
    depth: float
    body: float
    sag: float = 0.0

    def surface(self, along: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the row of the surface `along` pixels right of its middle."""
        return self.y + self.sag * (along / self.half) ** 2


def place_object(scene: Scene, random: np.random.Generator) -> ObjectShape:
    """Choose position and size of the scene's object."""
    half = (48 + 42 * scene.size) * random.uniform(0.9, 1.1)
    body = (22 + 22 * scene.size) * random.uniform(0.8, 1.2)
    depth, sag = random.uniform(8, 18), 0.0
    if scene.material in ("cloth", "gravel"):
        depth, sag = 4.0, body * 0.5
        body += 8
    elif scene.material == "water":
        depth = random.uniform(28, 40)
    x = WIDTH / 2 + random.uniform(-34, 34)
    return ObjectShape(x, random.uniform(158, 186), half, depth, body, sag)


def draw_object(canvas: Canvas, scene: Scene, obj: ObjectShape, random: np.random.Generator) -> None:
    """Paint the scene's object and its shadow in place."""
    across = (COLUMNS - obj.x - 8) / (1.15 * obj.half)
    down = (ROWS - obj.y - obj.depth / 2 - obj.body) / 9
    canvas *= (1 - 0.5 * np.exp(-(across**4) - down**2))[..., None]
    _PAINTERS[scene.material](canvas, obj, random)


def _box(obj: ObjectShape) -> tuple[Floats, Floats]:
    """Return masks of the upper and the front face of a board."""
    front_row = obj.y + obj.depth / 2
    side = np.abs(COLUMNS - obj.x) - obj.half
    slant = side + 0.6 * (front_row - ROWS)
    top = np.maximum(np.abs(ROWS - obj.y) - obj.depth / 2, slant)
    front = np.maximum(np.abs(ROWS - front_row - obj.body / 2) - obj.body / 2, side)
    return edge(top), edge(front)


def _cylinder(obj: ObjectShape) -> tuple[Floats, Floats]:
    """Return a mask of a lying tube, and the position between its upper (-1) and lower edge (1)."""
    radius = (obj.depth + obj.body) / 2
    down = (ROWS - obj.y - radius + 3) / radius  # the stick touches it just below its upper edge
    box = np.maximum((np.abs(down) - 1) * radius, np.abs(COLUMNS - obj.x) - obj.half)
    return edge(box), down


def _mound(obj: ObjectShape, steep: float, belly: float) -> tuple[Floats, Floats]:
    """Return a mask of a heap or cushion, and the row of its upper outline at every column.

    `steep` is the slope of its ends; `belly` is how far its lower outline rises there.
    """
    along = np.clip((COLUMNS - obj.x) / obj.half, -1.15, 1.15)
    upper = obj.y - 4 + obj.sag * along**2
    upper += np.maximum(0, np.abs(along) - 0.75) ** 2 * steep * obj.body
    lower = obj.y + obj.body - belly * obj.body * along**4
    return edge(np.maximum(upper - ROWS, np.maximum(ROWS - lower, (np.abs(along) - 1.08) * obj.half))), upper


def _wood(canvas: Canvas, obj: ObjectShape, random: np.random.Generator) -> None:
    brown = np.array([random.uniform(120, 190), 0, 0])
    brown[1:] = brown[0] * np.array([random.uniform(0.6, 0.72), random.uniform(0.32, 0.45)])
    bent = ROWS * random.uniform(0.7, 1.3) + 2.5 * grain(random, 120, 25)
    rings = 0.10 * np.sin(bent * 1.7) + 0.06 * np.sin(bent * 0.6 + 1) + 0.06 * grain(random, 40, 1.5)
    if random.random() < 0.35:
        mask, down = _cylinder(obj)
        paint(canvas, mask, brown * (1.0 - 0.45 * np.abs(down + 0.35) ** 1.5 + 1.4 * rings)[..., None])
        cut = np.hypot((COLUMNS - obj.x - obj.half) / 0.45, ROWS - obj.y - (obj.depth + obj.body) / 2 + 3)
        radius = (obj.depth + obj.body) / 2
        paint(canvas, edge(cut - radius), brown * (1.25 + 0.12 * np.sin(cut * 1.3))[..., None])
        return
    top, front = _box(obj)
    paint(canvas, front, brown * (0.68 + rings)[..., None])
    paint(canvas, top, brown * (1.12 + rings)[..., None])


def _metal(canvas: Canvas, obj: ObjectShape, random: np.random.Generator) -> None:
    grey = random.uniform(130, 185) * np.array([random.uniform(0.94, 1.02), 1.0, random.uniform(1.0, 1.1)])
    brush = 0.035 * grain(random, 60, 1)
    if random.random() < 0.5:
        mask, down = _cylinder(obj)
        shine = 0.5 + 0.9 * np.exp(-(((down + 0.45) / 0.16) ** 2)) + 0.35 * np.exp(-(((down - 0.55) / 0.25) ** 2))
        bands = 0.15 * np.exp(-(((np.abs(COLUMNS - obj.x) - obj.half + 8) / 3) ** 2))
        paint(canvas, mask, grey * (shine - bands + brush)[..., None])
        return
    top, front = _box(obj)
    sheen = (COLUMNS + 1.4 * ROWS - obj.x - random.uniform(180, 300)) / random.uniform(14, 26)
    sheen = 0.5 * np.exp(-(sheen**2)) + 0.25 * np.exp(-((sheen - 2.6) ** 2) * 3)
    paint(canvas, front, grey * (0.55 + brush + 0.6 * sheen)[..., None])
    paint(canvas, top, grey * (1.0 + brush + sheen)[..., None])
    paint(canvas, edge(np.abs(ROWS - obj.y - obj.depth / 2) - 0.8) * front, [240, 242, 245])


def _glass(canvas: Canvas, obj: ObjectShape, random: np.random.Generator) -> None:
    tint = np.array([random.uniform(90, 150), random.uniform(190, 225), random.uniform(185, 235)])
    streak = (COLUMNS + 0.8 * ROWS - obj.x - 170) / obj.half
    streaks = np.exp(-(((streak + 0.3) / 0.1) ** 2)) + 0.7 * np.exp(-(((streak - 0.05) / 0.05) ** 2))
    if random.random() < 0.5:  # a bottle on its side
        mask, down = _cylinder(obj)
        radius = (obj.depth + obj.body) / 2
        side = -1 if random.random() < 0.5 else 1
        beyond = side * (COLUMNS - obj.x) - obj.half
        neck = np.abs(down) * radius - radius * np.clip(1 - beyond / 10, 0.35, 1)
        mask = np.maximum(mask, edge(np.maximum(neck, np.maximum(-beyond - 4, beyond - 28))))
        rim = np.clip(np.abs(down), 0, 1) ** 6
        shine = np.exp(-(((down + 0.5) / 0.1) ** 2)) + 0.4 * np.exp(-(((down - 0.6) / 0.12) ** 2))
        paint(canvas, mask * 0.45, tint)
        paint(canvas, mask * rim * 0.6, tint * 0.45)
        paint(canvas, mask * np.clip(shine, 0, 1) * 0.85, [250, 255, 255])
        return
    top, front = _box(obj)
    paint(canvas, front * 0.42, tint)
    paint(canvas, top * 0.6, tint * 1.1)
    paint(canvas, front * np.clip(streaks, 0, 1) * 0.6, [250, 255, 255])
    side = np.abs(np.abs(COLUMNS - obj.x) - obj.half) - 1.2
    paint(canvas, front * edge(side), tint * 0.6)
    paint(canvas, np.maximum(top, front) * edge(np.abs(ROWS - obj.y - obj.depth / 2) - 1), [245, 255, 255])


def _cloth(canvas: Canvas, obj: ObjectShape, random: np.random.Generator) -> None:
    hue = random.choice([random.uniform(-35, 12), random.uniform(125, 165)])  # red to orange, violet to pink
    colour = hsv(hue % 180, random.uniform(0.6, 0.9), random.uniform(130, 215))
    mask, upper = _mound(obj, steep=5, belly=0.25)
    inside = (ROWS - upper) / (obj.body + 4)
    weave = 0.09 * np.sin(COLUMNS * random.uniform(1.3, 2.0)) * np.sin(ROWS * random.uniform(1.3, 2.0))
    folds = 0.06 * grain(random, 45, 20)
    light = 1.1 - 0.65 * np.clip(inside, 0, 1) ** 1.5 + weave + folds
    if random.random() < 0.5:
        period = random.uniform(14, 24)
        light += 0.22 * (np.sin((COLUMNS - obj.x) * 2 * np.pi / period) > 0.35)
    paint(canvas, mask, colour * light[..., None])
    paint(canvas, mask * edge(np.abs(inside - 0.55) - 0.02, 0.03), colour * 0.55)


def _water(canvas: Canvas, obj: ObjectShape, random: np.random.Generator) -> None:
    bowl = random.uniform(150, 235) * np.array([1.0, random.uniform(0.95, 1.02), random.uniform(0.92, 1.04)])
    outer = _ellipse(obj, 1.0)
    down = (ROWS - obj.y) / (obj.depth / 2 + obj.body)
    side = np.abs(COLUMNS - obj.x) / obj.half
    body = np.maximum((np.hypot(side, np.maximum(down, 0)) - 1) * obj.body, (obj.y - ROWS))
    paint(canvas, edge(body), bowl * (0.85 - 0.35 * np.clip(down, 0, 1) - 0.2 * side**2)[..., None])
    paint(canvas, edge(outer), bowl * 1.05)
    blue = np.array([random.uniform(20, 60), random.uniform(95, 140), random.uniform(170, 220)])
    waves = 0.14 * grain(random, 26, 4) - 0.25 * (ROWS - obj.y) / obj.depth
    paint(canvas, water_mask(obj), blue * (1 + waves)[..., None])
    glint = np.clip(grain(random, 22, 3) - 1.5, 0, 1)
    paint(canvas, water_mask(obj) * glint, [225, 240, 250])


def water_mask(obj: ObjectShape) -> Floats:
    """Return a mask of the water surface in the bowl."""
    return edge(_ellipse(obj, 0.92))


def _ellipse(obj: ObjectShape, scale: float) -> Floats:
    x, y = (COLUMNS - obj.x) / obj.half, (ROWS - obj.y) / (obj.depth / 2)
    return np.asarray((np.hypot(x, y) - scale) * obj.depth / 2)


def _gravel(canvas: Canvas, obj: ObjectShape, random: np.random.Generator) -> None:
    mask, upper = _mound(obj, steep=5, belly=0.05)
    warm = np.array([1.0, random.uniform(0.9, 0.97), random.uniform(0.78, 0.92)])
    stones = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    count = int(obj.half * obj.body * 0.45)
    radii = random.uniform(1.2, random.uniform(2.5, 3.8), count)
    xs = random.uniform(obj.x - 1.1 * obj.half, obj.x + 1.1 * obj.half, count)
    ys = random.uniform(obj.y - 8, obj.y + obj.body + 4, count)
    shades = np.clip(random.normal(random.uniform(115, 150), 34, (count, 1)), 45, 225) * warm
    for x, y, radius, shade in zip(xs, ys, radii, shades, strict=True):
        for size, light in ((radius + 0.8, 0.45), (radius, 1.0)):
            disc(stones, (x, y), size, shade * light)
    shade = 1.1 - 0.5 * np.clip((ROWS - upper) / obj.body, 0, 1)
    paint(canvas, mask, stones * shade[..., None])


_PAINTERS: dict[Material, Callable[[Canvas, ObjectShape, np.random.Generator], None]] = {
    "wood": _wood,
    "metal": _metal,
    "glass": _glass,
    "cloth": _cloth,
    "water": _water,
    "gravel": _gravel,
}
