"""What happens in a clip: a stick that hits or scratches an object, in the spirit of the Greatest Hits data set.

Owens et al., "Visually Indicated Sounds" (CVPR 2016). A scene is drawn from a seed; the picture, the sound and
the text are made of it, so that they agree. The splits never share a seed.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from foley import clip

Material = Literal["wood", "metal", "glass", "cloth", "water", "gravel"]
Action = Literal["hit", "scratch"]
Split = Literal["train", "validation", "test", "test-night"]
Style = Literal["plain", "gradient", "stripes", "speckles", "night"]

MATERIALS: tuple[Material, ...] = get_args(Material)
ACTIONS: tuple[Action, ...] = get_args(Action)
SPLITS: tuple[Split, ...] = get_args(Split)
STYLES: tuple[Style, ...] = ("plain", "gradient", "stripes", "speckles")
HELD_OUT_STYLE: Style = "night"
"""A dark room, a warm lamp, another stick: the style of the split `test-night` and of no other."""

SCRATCHES = 0.35  # share of the clips
_LAST_S = 9.2  # no contact after it: the sound dies away within the clip
_LIFT_S = 0.30  # the least time between two contacts: the stick is lifted and comes down


@dataclass(frozen=True)
class Contact:
    """Once that the stick touches the object.

    Attributes:
        start_s: the moment of contact, in seconds.
        duration_s: how long it stays: 0 for a hit.
        strength: 0 to 1: the speed of the stick, at the moment of contact or along the object.
        x: where on the object, -1 (its left edge) to 1.
        direction: which way a scratch goes: -1 or 1.
    """

    start_s: float
    duration_s: float
    strength: float
    x: float
    direction: int


@dataclass(frozen=True)
class Scene:
    """One clip of 10 s. `seed` draws all that has no name here: shades, noise, partials of the sound."""

    seed: tuple[int, ...]
    material: Material
    action: Action
    size: float  # of the object, 0 (small, high) to 1 (large, low)
    style: Style
    contacts: tuple[Contact, ...]

    def random(self, purpose: int) -> np.random.Generator:
        """Random numbers of this scene alone; each purpose has its own."""
        return np.random.default_rng([*self.seed, purpose])


def make_scene(split: Split, index: int, seed: int = 0, material: Material | None = None) -> Scene:
    """Scene number `index` of a split. `seed` chooses another run of scenes; `material` is drawn if it is None."""
    key = (SPLITS.index(split), seed, index)
    random = np.random.default_rng(key)
    drawn_material = MATERIALS[random.integers(len(MATERIALS))]
    drawn_style = STYLES[random.integers(len(STYLES))]
    action: Action = "scratch" if random.random() < SCRATCHES else "hit"
    return Scene(
        seed=key,
        material=material or drawn_material,
        action=action,
        size=float(random.random()),
        style=HELD_OUT_STYLE if split == "test-night" else drawn_style,
        contacts=_contacts(random, action),
    )


def _contacts(random: np.random.Generator, action: Action) -> tuple[Contact, ...]:
    contacts = []
    time_s = random.uniform(0.3, 1.5)
    tempo_s = random.uniform(0.05, 0.9)  # of the pauses: some people are quick, some are slow
    while time_s < _LAST_S:
        duration_s = random.uniform(0.3, 1.2) if action == "scratch" else 0.0
        duration_s = min(duration_s, clip.CLIP_SECONDS - 0.3 - time_s)
        contacts.append(
            Contact(time_s, duration_s, random.uniform(0.1, 1.0), random.uniform(-0.7, 0.7), random.choice((-1, 1)))
        )
        time_s += (
            duration_s + _LIFT_S + random.exponential(tempo_s) + (random.uniform(1, 2.5) * (random.random() < 0.1))
        )
    return tuple(contacts)
