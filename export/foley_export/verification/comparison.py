"""What was computed here beside what the official implementation computed, and how far apart the two are."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foley.metrics import relative_l2

Engine = Literal["numpy", "torch", "onnx", "fp16", "bf16"]

TOLERANCE: dict[Engine, float] = {"numpy": 1e-6, "torch": 1e-4, "onnx": 5e-4, "fp16": 1e-2, "bf16": 1e-1}
"""Largest relative L2 error: of float32 results, and of half precision against float32."""


@dataclass(frozen=True)
class Comparison:
    """Two arrays that should be equal, of one shape, and how equal.

    Attributes:
        relative: largest relative L2 error, |ours - official| / |official|; None: the engine's `TOLERANCE`.
        absolute: largest error of any single value.
    """

    what: str
    ours: np.ndarray
    official: np.ndarray
    relative: float | None = None
    absolute: float = math.inf


def exact(what: str, ours: np.ndarray, official: np.ndarray) -> Comparison:
    """Every value the same: classes, tables, bytes."""
    return Comparison(what, ours, official, relative=0.0, absolute=0.0)


def half(what: str, ours: np.ndarray, official: np.ndarray) -> Comparison:
    """For vectors that are stored as float16 to save space: ours is rounded to float16 too."""
    return Comparison(f"{what}, at float16", ours.astype(np.float16), official)


def levels(what: str, ours: np.ndarray, official: np.ndarray, relative: float | None = None) -> Comparison:
    """For bytes that are truncated from floats: where a float is a hair off a whole number, one level lies between."""
    return Comparison(what, ours, official, relative, absolute=1.0)


@dataclass(frozen=True)
class Result:
    """One row of the table: the outcome of a comparison, or the `problem` that kept it from being made."""

    module: str
    what: str
    engine: Engine
    passed: bool
    absolute: float = math.nan
    relative: float = math.nan
    tolerance: str = ""
    problem: str = ""


def compare(module: str, engine: Engine, comparison: Comparison) -> Result:
    """Measure both errors in float64. Values that are not numbers never pass."""
    ours, official = np.asarray(comparison.ours), np.asarray(comparison.official)
    if ours.shape != official.shape or not official.size:
        problem = f"the official shape is {official.shape}, ours {ours.shape}"
        return Result(module, comparison.what, engine, passed=False, problem=problem)
    allowed = TOLERANCE[engine] if comparison.relative is None else comparison.relative
    difference = np.abs(ours.astype(np.float64) - official.astype(np.float64))
    absolute = float(difference.max(initial=0.0))
    relative = relative_l2(ours, official)
    return Result(
        module,
        comparison.what,
        engine,
        passed=bool(relative <= allowed and absolute <= comparison.absolute),
        absolute=absolute,
        relative=relative,
        tolerance=_describe(allowed, comparison.absolute),
    )


def _describe(relative: float, absolute: float) -> str:
    if relative == 0:
        return "exact"
    return f"{relative:.0e}" if math.isinf(absolute) else f"{relative:.0e}, {absolute:g} level"
