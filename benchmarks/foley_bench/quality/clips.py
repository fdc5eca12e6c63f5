"""The clips of the evaluation: scenes that are not used in training, rendered and synthesised on demand."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from foley import clip
from foley.envelope import Floats
from foley_training.data.picture import render
from foley_training.data.scene import MATERIALS, Scene, Split, make_scene
from foley_training.data.sound import synthesise

SAMPLES = clip.CLIP_ENVELOPE * clip.HOP  # of a clip: 10 s at 16 kHz

_FIRST_CLASSIFIER_SCENE = (
    10_000  # index in the test split from which on sounds train the classifier and are not evaluated
)
CLASSIFIER_SCENES_PER_MATERIAL = 50


def scenes(split: Split, count: int, seed: int) -> list[Scene]:
    """Return the first `count` scenes of a split; `seed` selects another sequence."""
    return [make_scene(split, i, seed) for i in range(count)]


def classifier_scenes(seed: int) -> list[Scene]:
    """Return scenes of the test split that are not evaluated, equally many of every material."""
    count = CLASSIFIER_SCENES_PER_MATERIAL * len(MATERIALS)
    return [make_scene("test", _FIRST_CLASSIFIER_SCENE + i, seed, MATERIALS[i % len(MATERIALS)]) for i in range(count)]


def sound(scene: Scene) -> Floats:
    """Return the real sound of a scene: 10 s at 16 kHz, [160000]."""
    return synthesise(scene)[:SAMPLES]


def contacts_s(scene: Scene) -> npt.NDArray[np.float64]:
    """Return the start times of hits and scratches in seconds, ascending, [contacts]."""
    return np.array([contact.start_s for contact in scene.contacts])


class Rendered:
    """The frames of a scene, without a video codec."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __len__(self) -> int:
        return clip.CLIP_FRAMES

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        return render(self._scene)
