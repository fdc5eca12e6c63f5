"""`foley-bench convergence`: distance of RAFT's flow from its final result after each update.

Video2RMS reads flow as bytes, 255 levels over -20 to 20 pixels, so a difference below half a level is invisible. The
figures count the values that differ by more from the result of all updates. Updates start from no motion, and from the
result of the previous pair, as in `OpticalFlowWarm`.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from torch import Tensor

from foley import clip
from foley.bundle import Bundle
from foley.errors import BundleError, MediaError
from foley.manifest import OpticalFlowConfig
from foley.media import read_frames
from foley_bench.machine import describe
from foley_bench.report import Report, lines, table
from foley_export.make import load_network
from foley_export.networks.optical_flow import Estimate, OpticalFlow, Pairs
from foley_pipeline.progress import StageTimer

LEVEL_PX = 2 * clip.LARGEST_FLOW / 255
MAX_VISIBLE = 0.01  # the share of visibly different values up to which a number of updates is called sufficient
STARTS = ("no motion", "pair before")
COLUMNS = {"visible_percent": "visible\n%", "mean_levels": "mean\nlevels", "p99_levels": "p99\nlevels"}

Distances = npt.NDArray[np.float32]  # [updates, values], in levels


def measure(bundle: Bundle, video: Path, pairs: int, timer: StageTimer) -> Report:
    """Measure all updates of the first `pairs` pairs of frames after the first pair, in PyTorch.

    Raises:
        BundleError: If the bundle has no RAFT.
        MediaError: If `video` cannot be used or has fewer than three frames.
    """
    config = bundle.manifest.optical_flow
    if not isinstance(config, OpticalFlowConfig):
        raise BundleError(f"the bundle {bundle.root} has no RAFT; choose a bundle with RAFT, such as bundles/paper")
    network = load_network(bundle, "optical_flow")
    assert isinstance(network, OpticalFlow)
    distances: dict[str, list[Distances]] = {start: [] for start in STARTS}
    with timer.stage("pairs", pairs) as stage, torch.inference_mode():
        for before, after in _consecutive_pairs(network, video, pairs + 1):
            ends = [_updates(network, pair, pair.initial_estimate()) for pair in (before, after)]
            full = network.upsample(ends[1][-1])
            warm_start = after.initial_estimate()._replace(flow=ends[0][-1].flow)
            for start, estimates in zip(STARTS, (ends[1], _updates(network, after, warm_start)), strict=True):
                distances[start].append(np.stack([_levels(network.upsample(one), full) for one in estimates]))
            stage.advance()
    if not distances[STARTS[0]]:
        raise MediaError(f"{video} has fewer than three frames; choose a longer video")
    updates = {start: _figures(np.concatenate(found, axis=1)) for start, found in distances.items()}
    document = {
        **describe(bundle),
        "settings": {"video": video.name, "pairs": len(distances[STARTS[0]]), "updates": config.updates},
        "updates": updates,
        "sufficient_updates": {start: _sufficient(rows) for start, rows in updates.items()},
    }
    return Report(
        title=f"RAFT's updates: {bundle.manifest.name}",
        description=f"Flow after each update, compared with {config.updates} updates from zero motion; "
        f"{len(distances[STARTS[0]])} pairs of {video.name}. Visible: differs by more than half a quantisation level "
        f"of {LEVEL_PX:.3f} pixels. Seeded weights give no meaningful result, because their updates do not converge.",
        document=document,
        tables=[_table(document)],
        pictures={
            "Share of values that differ visibly from the full run.": lines(
                range(1, config.updates + 1),
                {f"from {start}": [row["visible_percent"] for row in rows] for start, rows in updates.items()},
                "updates",
                "visibly different (%)",
            )
        },
    )


def _consecutive_pairs(network: OpticalFlow, video: Path, pairs: int) -> Iterator[tuple[Pairs, Pairs]]:
    """Yield every two consecutive pairs among the first `pairs` pairs of frames."""
    before: Pairs | None = None
    last: npt.NDArray[np.uint8] | None = None
    for frame in islice(read_frames(video), pairs + 1):
        if last is not None:
            current = network.encode_pairs(torch.from_numpy(np.stack([last, frame])))
            if before is not None:
                yield before, current
            before = current
        last = frame


def _updates(network: OpticalFlow, pair: Pairs, estimate: Estimate) -> list[Estimate]:
    found = []
    for _ in range(network.updates):
        estimate = network.update(pair, estimate)
        found.append(estimate)
    return found


def _levels(flow: Tensor, full: Tensor) -> Distances:
    """Return the absolute difference of two clamped flows [1, 2, h, w] in quantisation levels: [values]."""
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


def _sufficient(rows: list[dict[str, float]]) -> int | None:
    """Return the smallest number of updates after which at most `MAX_VISIBLE` of the values differ, or None."""
    few = [row["visible_percent"] <= 100 * MAX_VISIBLE for row in rows]
    return next((number for number in range(1, len(rows) + 1) if all(few[number - 1 :])), None)


def _table(document: Mapping[str, Any]) -> Table:
    sufficient = ", ".join(
        f"{number or 'none'} from {start}" for start, number in document["sufficient_updates"].items()
    )
    return table(
        "RAFT's updates",
        ["updates", *(f"{start}\n{column}" for start in STARTS for column in COLUMNS.values())],
        [
            [str(number), *(f"{row[key]:.3g}" for row in rows for key in COLUMNS)]
            for number, rows in enumerate(zip(*document["updates"].values(), strict=True), 1)
        ],
        f"Sufficient (at most {MAX_VISIBLE:.0%} visible afterwards): {sufficient}. Set them as `first_updates` and "
        "`warm_updates` in the manifest, then export again.",
    )
