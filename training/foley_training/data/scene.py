"""Scenes: a stick that hits or scratches an object, after the Greatest Hits data set.

Owens et al., "Visually Indicated Sounds" (CVPR 2016). A scene is drawn from a seed; frames, sound and caption are
generated from it, so that they agree. Splits never share a seed.
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
"""A dark room, a warm lamp and another stick; used only by the split `test-night`."""

SCRATCHES = 0.35  # fraction of clips with scratches
_LAST_S = 9.2  # latest start of a contact, so that the sound decays within the clip
_LIFT_S = 0.30  # minimum time between two contacts, for lifting and lowering the stick


@dataclass(frozen=True)
class Contact:
    """One contact of the stick with the object.

    Attributes:
        start_s: Start in seconds.
        duration_s: Duration in seconds; 0 for a hit.
        strength: Relative speed of the stick, 0 to 1: at the impact, or along the object in a scratch.
        x: Position on the object, -1 (left edge) to 1 (right edge).
        direction: Initial direction of a scratch: -1 or 1.
    """

    start_s: float
    duration_s: float
    strength: float
    x: float
    direction: int


@dataclass(frozen=True)
class Scene:
    """One clip of 10 s. `seed` determines everything not listed here: shades, noise, partials of the sound."""

    seed: tuple[int, ...]
    material: Material
    action: Action
    size: float  # of the object, 0 (small, high-pitched) to 1 (large, low-pitched)
    style: Style
    contacts: tuple[Contact, ...]

    def random(self, purpose: int) -> np.random.Generator:
        """Return the random stream of this scene for one purpose."""
        return np.random.default_rng([*self.seed, purpose])


def make_scene(split: Split, index: int, seed: int = 0, material: Material | None = None) -> Scene:
    """Return scene number `index` of a split.

    Args:
        split: The split.
        index: Number of the scene.
        seed: Selects another sequence of scenes.
        material: The material; drawn at random if None.
    """
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
    tempo_s = random.uniform(0.05, 0.9)  # mean pause between contacts
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
