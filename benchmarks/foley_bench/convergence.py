"""RAFT's updates: what each still changes, so that the least number of them can be chosen on trained weights.

Video2RMS sees flow as bytes, 255 levels over -20 to 20 pixels: a change below half a level is invisible. Counted are
the values that an update leaves more than that away from where the full number of updates ends; started from no
motion, and from where the pair before ended, as in `OpticalFlowWarm`.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import Tensor

from foley import clip
from foley.bundle import Bundle
from foley.errors import BundleError, MediaError
from foley.manifest import OpticalFlowConfig
from foley.media import read_frames
from foley_bench.machine import describe
from foley_bench.report import Report
from foley_client import Watch
from foley_export.make import load_network
from foley_export.networks.optical_flow import Estimate, OpticalFlow, Pairs

LEVEL_PX = 2 * clip.LARGEST_FLOW / 255
INVISIBLE = 0.01  # the share of visibly different values up to which a number of updates is called enough
STARTS = ("no motion", "pair before")

Distances = npt.NDArray[np.float32]  # [updates, values], in levels


def measure(bundle: Bundle, video: Path, pairs: int, watch: Watch) -> Report:
    """Follow the updates of the first `pairs` pairs of `video`'s frames after the first; in PyTorch.

    Raises:
        BundleError: the bundle has no RAFT.
        MediaError: `video` cannot be used, or has fewer than three frames.
    """
    config = bundle.manifest.optical_flow
    if not isinstance(config, OpticalFlowConfig):
        raise BundleError(f"the bundle {bundle.root} has no RAFT; choose one that has, such as bundles/paper")
    network = load_network(bundle, "optical_flow")
    assert isinstance(network, OpticalFlow)
    distances: dict[str, list[Distances]] = {start: [] for start in STARTS}
    with watch.stage("pairs", pairs) as stage, torch.inference_mode():
        for before, after in _neighbours(network, video, pairs + 1):
            ends = [_updates(network, pair, pair.start()) for pair in (before, after)]
            full = network.upsample(ends[1][-1])
            moving = after.start()._replace(flow=ends[0][-1].flow)
            for start, estimates in zip(STARTS, (ends[1], _updates(network, after, moving)), strict=True):
                distances[start].append(np.stack([_levels(network.upsample(one), full) for one in estimates]))
            stage.advance()
    if not distances[STARTS[0]]:
        raise MediaError(f"{video} has fewer than three frames; choose a longer video")
    updates = {start: _figures(np.concatenate(found, axis=1)) for start, found in distances.items()}
    document = {
        **describe(bundle),
        "settings": {"video": video.name, "pairs": len(distances[STARTS[0]]), "updates": config.updates},
        "updates": updates,
        "enough_updates": {start: _enough(rows) for start, rows in updates.items()},
    }
    return Report(
        title=f"RAFT's updates: {bundle.manifest.name}",
        lead=f"Flow after each update, against {config.updates} updates from no motion, {len(distances[STARTS[0]])} "
        f"pairs of {video.name}. Visible: more than half a level of {LEVEL_PX:.3f} pixels away. With seeded weights "
        "this says nothing of RAFT: its updates converge with the published ones.",
        document=document,
        tables=[_table(document)],
        pictures={"Share of the values that are visibly away from the full run.": _plot(updates)},
    )


def _neighbours(network: OpticalFlow, video: Path, pairs: int) -> Iterator[tuple[Pairs, Pairs]]:
    """Every two pairs of frames that follow each other, of the first `pairs`."""
    before: Pairs | None = None
    last: npt.NDArray[np.uint8] | None = None
    for frame in islice(read_frames(video), pairs + 1):
        if last is not None:
            seen = network.look(torch.from_numpy(np.stack([last, frame])))
            if before is not None:
                yield before, seen
            before = seen
        last = frame


def _updates(network: OpticalFlow, pair: Pairs, estimate: Estimate) -> list[Estimate]:
    found = []
    for _ in range(network.updates):
        estimate = network.update(pair, estimate)
        found.append(estimate)
    return found


def _levels(flow: Tensor, full: Tensor) -> Distances:
    """How far flows [1, 2, h, w] are apart, in levels of a byte, where both are cut off as the bytes are: [values]."""
    limit = clip.LARGEST_FLOW
    apart: Distances = (flow.clamp(-limit, limit) - full.clamp(-limit, limit)).abs().flatten().numpy() / LEVEL_PX
    return apart


def _figures(distances: Distances) -> list[dict[str, float]]:
    return [
        {
            "visible_percent": float(100 * np.mean(row > 0.5)),
            "mean_levels": float(row.mean()),
            "p99_levels": float(np.percentile(row, 99)),
        }
        for row in distances
    ]


def _enough(rows: list[dict[str, float]]) -> int | None:
    """The least number of updates from which on hardly a value is visibly away; None if there is none."""
    few = [row["visible_percent"] <= 100 * INVISIBLE for row in rows]
    return next((number for number in range(1, len(rows) + 1) if all(few[number - 1 :])), None)


def _table(document: Mapping[str, Any]) -> Table:
    enough = {start: "none" if number is None else number for start, number in document["enough_updates"].items()}
    shown = Table(
        box=box.SIMPLE_HEAD,
        title="RAFT's updates",
        caption=f"Enough, at most {INVISIBLE:.0%} visible from there on: "
        + ", ".join(f"{number} from {start}" for start, number in enough.items())
        + ". Put them as `first_updates` and `warm_updates` into the manifest, and export again.",
        caption_justify="left",
    )
    shown.add_column("updates", justify="right", vertical="bottom")
    for start in STARTS:
        for heading in ("visible\n%", "mean\nlevels", "p99\nlevels"):
            shown.add_column(f"{start}\n{heading}", justify="right", vertical="bottom")
    for number, rows in enumerate(zip(*document["updates"].values(), strict=True), 1):
        cells = [f"{row[key]:.3g}" for row in rows for key in ("visible_percent", "mean_levels", "p99_levels")]
        shown.add_row(str(number), *cells)
    return shown


def _plot(updates: Mapping[str, list[dict[str, float]]]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for start, rows in updates.items():
        axes.plot(range(1, len(rows) + 1), [row["visible_percent"] for row in rows], "o-", label=f"from {start}")
    axes.axhline(100 * INVISIBLE, color="0.5", linestyle=":")
    axes.set(xlabel="updates", ylabel="visibly away (%)", ylim=(0, None))
    axes.legend(frameon=False)
    return figure
