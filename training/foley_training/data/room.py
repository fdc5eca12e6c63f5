"""The background of a scene: a wall in the scene's style, a table, and the lighting."""

import numpy as np

from foley_training.data.canvas import COLUMNS, HEIGHT, ROWS, WIDTH, Canvas, Colour, Floats, grain, hsv
from foley_training.data.objects import ObjectShape
from foley_training.data.scene import HELD_OUT_STYLE, Scene


def draw_room(scene: Scene, obj: ObjectShape, random: np.random.Generator) -> tuple[Canvas, Colour]:
    """Return the wall in the scene's style with a table before it, and the wall's mean colour."""
    colour, other = (hsv(random.uniform(0, 180), random.uniform(0, 0.4), random.uniform(70, 225)) for _ in range(2))
    blend = np.zeros((HEIGHT, WIDTH), np.float32)
    if scene.style == "gradient":
        angle = random.uniform(0, 2 * np.pi)
        blend = 0.5 + np.cos(angle) * (COLUMNS / WIDTH - 0.5) + np.sin(angle) * (ROWS / HEIGHT - 0.5)
    elif scene.style == "stripes":
        angle, period = random.uniform(0, np.pi), random.uniform(14, 50)
        blend = 0.5 + 2 * np.sin((np.cos(angle) * COLUMNS + np.sin(angle) * ROWS) * 2 * np.pi / period)
    elif scene.style == "speckles":
        size = random.uniform(4, 14)
        blend = 0.5 + 1.5 * (grain(random, size, size) - random.uniform(0.2, 0.8))
    elif scene.style == HELD_OUT_STYLE:
        blend = 0.3 + 0.2 * grain(random, 60, 40)
    blend = np.clip(blend, 0, 1)[..., None]
    plaster = 1 + random.uniform(0.02, 0.04) * grain(random, 3, 3) + random.uniform(0.015, 0.04) * grain(random, 9, 9)
    wall = (colour + (other - colour) * blend * random.uniform(0.4, 1)) * plaster[..., None]
    table = hsv(random.uniform(0, 180), random.uniform(0.05, 0.35), random.uniform(60, 200))
    back = obj.y + random.uniform(-6, 0.6 * obj.body + obj.depth / 2)
    shade = 0.85 + 0.3 * (ROWS - back) / (HEIGHT - back) + 0.03 * grain(random, 12, 2)
    room = np.where((back < ROWS)[..., None], table * shade[..., None], wall)
    return room.astype(np.float32), wall.mean(axis=(0, 1))


def make_lighting(scene: Scene, obj: ObjectShape, random: np.random.Generator) -> Floats:
    """Return the lighting as factors of the colours: [HEIGHT, WIDTH, 3]."""
    if scene.style == HELD_OUT_STYLE:
        lamp_x, lamp_y = obj.x + random.uniform(-50, 50), random.uniform(-90, -40)
        angle = np.arctan2(COLUMNS - lamp_x, ROWS - lamp_y) - np.arctan2(obj.x - lamp_x, obj.y - lamp_y)
        cone = np.exp(-((np.abs(angle) / random.uniform(0.42, 0.55)) ** 4))
        warm = np.array([1.15, random.uniform(0.8, 0.9), random.uniform(0.45, 0.6)], np.float32)
        return np.asarray(cone[..., None] * warm + np.array([0.12, 0.14, 0.22], np.float32), np.float32)
    temperature = random.uniform(-0.12, 0.12)
    colour = random.uniform(0.75, 1.12) * np.array([1 + temperature, 1, 1 - temperature])
    direction, slope = random.uniform(0, 2 * np.pi), random.uniform(0, 0.25)
    falling = np.cos(direction) * (COLUMNS / WIDTH - 0.5) + np.sin(direction) * (ROWS / HEIGHT - 0.5)
    return np.asarray((1 + slope * 2 * falling)[..., None] * colour, np.float32)
