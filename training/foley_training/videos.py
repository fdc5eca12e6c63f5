"""Training data of the feature networks: frames and flow of a split, and their labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from foley import clip, envelope
from foley.bars import track
from foley.dis_flow import DisFlow
from foley.manifest import DisFlowConfig
from foley_training.data.picture import render
from foley_training.data.scene import MATERIALS, Scene, Split, make_scene
from foley_training.data.sound import synthesise

SIZE = 224  # height and width of BN-Inception's input
PAIRS = clip.CLIP_FRAMES - 1
PAIRS_PER_CLIP = 72  # training pairs per clip
_OFFSETS = (-2, -1, 0, 1, 2)  # frames around a pair whose loudness is a label
_PROXIMITY_S = 0.15  # time constant of the proximity to a contact, before and after it
DYNAMICS = len(_OFFSETS) + 4

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pairs:
    """`n` pairs of consecutive frames, memory-mapped: the second frame and the flow to it, at network input size."""

    rgb: Images  # [n, 224, 224, 3]
    flow: Images  # [n, 224, 224, 2]
    material: npt.NDArray[np.int64]  # [n]
    dynamics: npt.NDArray[np.float32]  # [n, 9], see `dynamics`


def pairs(folder: Path, split: Split, clips: int, config: DisFlowConfig) -> Pairs:
    """Return random pairs of each of the first `clips` clips, read from `folder`, or generated and cached there."""
    arrays = {name: folder / f"{split}-{clips}-pairs-{name}.npy" for name in ("rgb", "flow", "material", "dynamics")}
    if not all(path.is_file() for path in arrays.values()):
        folder.mkdir(parents=True, exist_ok=True)
        count = clips * PAIRS_PER_CLIP
        temporary = {name: path.with_suffix(".tmp") for name, path in arrays.items()}
        rgb = np.lib.format.open_memmap(temporary["rgb"], "w+", np.uint8, (count, SIZE, SIZE, 3))
        flow = np.lib.format.open_memmap(temporary["flow"], "w+", np.uint8, (count, SIZE, SIZE, 2))
        material, labels = np.empty(count, np.int64), np.empty((count, DYNAMICS), np.float32)
        for i in track(range(clips), "pairs"):
            scene = make_scene(split, i)
            indices = np.sort(scene.random(_PURPOSE).choice(PAIRS, PAIRS_PER_CLIP, replace=False))
            rows = slice(i * PAIRS_PER_CLIP, (i + 1) * PAIRS_PER_CLIP)
            for row, (image, motion) in zip(
                range(rows.start, rows.stop), network_inputs(scene, config, indices), strict=True
            ):
                rgb[row], flow[row] = image, motion
            material[rows] = MATERIALS.index(scene.material)
            labels[rows] = dynamics(scene)[indices]
        for name, array in (("material", material), ("dynamics", labels)):
            with temporary[name].open("wb") as file:
                np.save(file, array)
        rgb.flush()
        flow.flush()
        for name, path in arrays.items():
            temporary[name].replace(path)
    return Pairs(**{name: np.load(path, mmap_mode="r") for name, path in arrays.items()})


_PURPOSE = 9  # random stream of the scene that selects the pairs


def network_inputs(
    scene: Scene, config: DisFlowConfig, indices: npt.NDArray[np.int64]
) -> Iterator[tuple[Images, Images]]:
    """Yield the second frame [224, 224, 3] and the flow [224, 224, 2] of the pairs `indices` (ascending) of a clip.

    Resized by Pillow, which the networks' graphs reproduce bit-exactly.
    """
    selected, method = set(indices.tolist()), DisFlow(config)
    previous: Images | None = None
    for i, frame in enumerate(islice(render(scene), int(max(selected)) + 2)):
        if previous is not None and i - 1 in selected:
            flow = method.flow(np.stack([previous, frame]))[0]
            yield _resize(frame), np.stack([_resize(flow[..., axis]) for axis in range(2)], -1)
        previous = frame


def _resize(image: Images) -> Images:
    return np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def dynamics(scene: Scene) -> npt.NDArray[np.float32]:
    """Return labels of what happens around every pair, [299, 9], each 0 to 1.

    Columns 0 to 4: mu-law loudness from two frames before to two frames after. Then, for the next and for the last
    contact: proximity in time, and proximity times strength. Pair k ends at the frame of (k + 1) / 30 s.
    """
    times = (np.arange(PAIRS) + 1) / clip.FRAME_RATE_HZ
    loudness = envelope.mu_law(envelope.measure(synthesise(scene)))
    columns = []
    for offset in _OFFSETS:
        at = np.round((times + offset / clip.FRAME_RATE_HZ) * clip.ENVELOPE_RATE_HZ).astype(np.int64)
        columns.append(loudness[at.clip(0, len(loudness) - 1)])
    starts = np.array([contact.start_s for contact in scene.contacts])
    ends = np.array([contact.start_s + contact.duration_s for contact in scene.contacts])
    strengths = np.array([contact.strength for contact in scene.contacts])
    until, since = starts - times[:, None], times[:, None] - ends
    touching = (until <= 0) & (since <= 0)
    for distance in (np.where(touching, 0, until), np.where(touching, 0, since)):
        proximity = np.where(distance >= 0, np.exp(-np.maximum(distance, 0) / _PROXIMITY_S), 0)
        columns += [proximity.max(1), (proximity * strengths).max(1)]
    return np.stack(columns, 1).astype(np.float32)
