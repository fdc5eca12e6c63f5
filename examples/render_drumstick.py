"""Render a silent clip of a drumstick that hits three objects and scratches a fourth.

    python examples/render_drumstick.py [-o examples/drumstick.mp4] [--seconds 8] [--seed 0]

The clip is made for trying Video-Foley without a camera. `hits` gives the times at which sound should be heard.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, FPS = 480, 360, 30
TABLE_Y = 262.0  # pixels from the top; objects stand on it
STICK_RADIUS = 5.0  # pixels, at the tip
LIGHT = np.array([-0.5, -0.6, 0.62])

Picture = NDArray[np.float32]  # [HEIGHT, WIDTH, 3] in 0..1
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)


@dataclass(frozen=True)
class Thing:
    """A box or ball on the table: where it stands and what colour it is."""

    x: float
    width: float
    height: float
    colour: tuple[float, float, float]
    round: bool = False

    @property
    def top(self) -> float:
        """Height of the upper side, in pixels from the top of the picture."""
        return TABLE_Y - self.height


THINGS = (
    Thing(75, 86, 62, (0.62, 0.36, 0.18)),  # a wooden block
    Thing(185, 76, 76, (0.72, 0.20, 0.16), round=True),  # a ball
    Thing(292, 78, 92, (0.45, 0.52, 0.58)),  # a tin
    Thing(405, 110, 30, (0.22, 0.42, 0.30)),  # a rough slab, which is scratched
)
SCRATCHED = THINGS[3]


@dataclass(frozen=True)
class Hit:
    """One contact of the stick: a blow when `length_s` is 0, otherwise strokes that last so long."""

    time_s: float
    thing: Thing
    strength: float  # 0..1
    length_s: float = 0.0


def hits(seed: int, seconds: float) -> list[Hit]:
    """The contacts of a clip, in order: blows at irregular times and, about every seventh time, strokes."""
    random = np.random.default_rng(seed)
    contacts: list[Hit] = []
    time_s = 0.6
    until_strokes = 3
    while True:
        strokes = until_strokes == 0
        length_s = random.uniform(1.0, 1.4) if strokes else 0.0
        if time_s + length_s > seconds - 0.3:
            return contacts
        thing = SCRATCHED if strokes else THINGS[random.integers(3)]
        contacts.append(Hit(time_s, thing, random.uniform(0.45, 1.0), length_s))
        until_strokes = 6 if strokes else until_strokes - 1
        time_s += length_s + random.uniform(0.28, 0.85)


def tip_at(time_s: float, contacts: list[Hit]) -> tuple[float, float]:
    """Where the stick's tip is, in pixels (x, y): swung from one contact to the next, stopped short by each."""
    for contact in contacts:
        since = time_s - contact.time_s
        if 0 <= since <= contact.length_s and contact.length_s:
            swing = np.sin(2 * np.pi * 2.5 * since) * min(1.0, since / 0.1)
            return contact.thing.x + 38 * swing, contact.thing.top
    before = [c for c in contacts if c.time_s + c.length_s <= time_s]
    after = [c for c in contacts if c.time_s > time_s]
    last = before[-1] if before else None
    coming = after[0] if after else None
    start_x, start_y = _contact_point(last, at_end=True) if last else (230.0, 90.0)
    end_x, end_y = _contact_point(coming) if coming else (230.0, 90.0)
    start_s = last.time_s + last.length_s if last else 0.0
    end_s = coming.time_s if coming else start_s + 1.0
    phase = min(1.0, (time_s - start_s) / (end_s - start_s))
    strength = coming.strength if coming else 0.4
    # Up fast after the rebound, slowly over the highest point, then down faster and faster until the impact.
    lift = (60 + 70 * strength) * np.sin(np.pi * phase**0.8) ** 0.75
    glide = phase * phase * (3 - 2 * phase)
    return start_x + (end_x - start_x) * glide, start_y + (end_y - start_y) * glide - lift


def _contact_point(contact: Hit, at_end: bool = False) -> tuple[float, float]:
    swing = np.sin(2 * np.pi * 2.5 * contact.length_s) if at_end and contact.length_s else 0.0
    return contact.thing.x + 38 * swing, contact.thing.top


def paint(picture: Picture, mask: NDArray[np.float32], colour: Picture | NDArray[np.float32]) -> None:
    """Lay `colour` over the picture where `mask` (0..1) says, in place."""
    picture += mask[..., None] * (colour - picture)


def edge(distance: NDArray[np.float32], softness: float = 1.0) -> NDArray[np.float32]:
    """A mask of the points at a negative distance, smooth over `softness` pixels."""
    return np.clip(0.5 - distance / softness, 0, 1)


def room(random: np.random.Generator) -> Picture:
    """The wall, the table with its grain, and the things on it with their shadows."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.float32)
    glow = np.exp(-(((COLUMNS - 150) / 260) ** 2) - ((ROWS - 60) / 190) ** 2)
    picture[:] = np.array([0.30, 0.33, 0.38]) * (0.62 + 0.55 * glow[..., None])
    grain = np.cumsum(random.normal(0, 1, HEIGHT))[:, None] * 0.004 + 0.018 * np.sin(COLUMNS / 23 + ROWS / 3)
    table = np.array([0.48, 0.35, 0.24]) * (0.75 + grain + 0.4 * (ROWS - TABLE_Y) / (HEIGHT - TABLE_Y))[..., None]
    paint(picture, edge(TABLE_Y - 16 - ROWS, 3), table.astype(np.float32))
    for thing in THINGS:
        across = (COLUMNS - thing.x - 16) / (0.62 * thing.width)
        down = (ROWS - TABLE_Y) / 11
        paint(picture, 0.55 * np.exp(-(across**4) - down**2), np.float32([0.05, 0.04, 0.04]))
        stand(picture, thing, random)
    return picture


def stand(picture: Picture, thing: Thing, random: np.random.Generator) -> None:
    """Paint one thing, lit from the upper left."""
    x = (COLUMNS - thing.x) / (thing.width / 2)
    y = (ROWS - TABLE_Y + thing.height / 2) / (thing.height / 2)
    if thing.round:
        distance = (np.hypot(x, y) - 1) * thing.width / 2
        depth = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
        light = np.clip(x * LIGHT[0] + y * LIGHT[1] + depth * LIGHT[2], 0, 1)
    else:
        distance = np.maximum((np.abs(x) - 1) * thing.width / 2, (np.abs(y) - 1) * thing.height / 2)
        light = np.clip(0.55 - 0.22 * x - 0.15 * y + 0.3 * edge(y + 1 - 10 / thing.height, 0.06), 0, 1)
    texture = random.normal(0, 0.05, (HEIGHT, WIDTH)) if thing is SCRATCHED else 0.02 * np.sin(ROWS / 2.5 + x * 2)
    colour = np.array(thing.colour) * (0.35 + 0.95 * light + texture)[..., None] + 0.55 * light[..., None] ** 14
    paint(picture, edge(distance, 1.5), colour.astype(np.float32))


def stick(picture: Picture, tip: tuple[float, float]) -> None:
    """Paint the stick with its round tip; the hand that holds it is out of the picture."""
    x, y = tip[0], tip[1] - STICK_RADIUS
    direction = np.array([430 - x, -170 - y])
    direction = direction / np.hypot(*direction)
    along = (COLUMNS - x) * direction[0] + (ROWS - y) * direction[1]
    across = (ROWS - y) * direction[0] - (COLUMNS - x) * direction[1]
    radius = STICK_RADIUS + 0.02 * np.maximum(along, 0)
    shaft = np.maximum(np.abs(across) - radius, -along)
    bead = np.hypot(along / 1.5, across) - STICK_RADIUS * 1.5
    light = np.clip(0.75 - 0.5 * across / radius, 0.2, 1.3)[..., None]
    colour = np.float32([0.86, 0.70, 0.46]) * light + 0.25 * np.clip(light - 0.9, 0, 1)
    paint(picture, edge(np.minimum(shaft, bead), 1.5), colour.astype(np.float32))


def render(path: Path, seconds: float, seed: int) -> None:
    """Write the clip as H.264 without a sound track."""
    random = np.random.default_rng(seed)
    contacts = hits(seed, seconds)
    background = room(random)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "22", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(round(seconds * FPS)):
            picture = background.copy()
            stick(picture, tip_at(index / FPS, contacts))
            picture += random.normal(0, 0.012, (HEIGHT, WIDTH, 1))  # the camera's noise
            image = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render a silent clip of a drumstick at work.")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "drumstick.mp4")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the clip (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the times and places of the hits (default: 0)")
    options = parser.parse_args()
    render(options.output, options.seconds, options.seed)
