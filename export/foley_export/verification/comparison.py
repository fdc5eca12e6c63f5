"""Compares arrays computed here with those of the official implementation."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foley.metrics import relative_l2

Engine = Literal["numpy", "torch", "onnx", "fp16", "bf16"]

TOLERANCE: dict[Engine, float] = {"numpy": 1e-6, "torch": 1e-4, "onnx": 5e-4, "fp16": 1e-2, "bf16": 1e-1}
"""Maximum relative L2 error: float32 against the official results, and half precision against float32."""


@dataclass(frozen=True)
class Comparison:
    """Two arrays of the same shape that should be equal, and the tolerances.

    Attributes:
        what: Name of the comparison in the report.
        ours: The array computed here.
        official: The array of the official implementation.
        relative: Maximum relative L2 error, |ours - official| / |official|; None: the engine's `TOLERANCE`.
        absolute: Maximum absolute error of any element.
    """

    what: str
    ours: np.ndarray
    official: np.ndarray
    relative: float | None = None
    absolute: float = math.inf


def exact(what: str, ours: np.ndarray, official: np.ndarray) -> Comparison:
    """Compare for exact equality: classes, tables, bytes."""
    return Comparison(what, ours, official, relative=0.0, absolute=0.0)


def half(what: str, ours: np.ndarray, official: np.ndarray) -> Comparison:
    """Compare at float16, for vectors stored as float16 to save space."""
    return Comparison(f"{what}, at float16", ours.astype(np.float16), official)


def within_one_level(what: str, ours: np.ndarray, official: np.ndarray, relative: float | None = None) -> Comparison:
    """Compare bytes truncated from floats, which may differ by one level where a float is close to an integer."""
    return Comparison(what, ours, official, relative, absolute=1.0)


@dataclass(frozen=True)
class Result:
    """One row of the report: the outcome of a comparison, or the `problem` that prevented it."""

    module: str
    what: str
    engine: Engine
    passed: bool
    absolute: float = math.nan
    relative: float = math.nan
    tolerance: str = ""
    problem: str = ""


def compare(module: str, engine: Engine, comparison: Comparison) -> Result:
    """Measure both errors in float64. NaN never passes."""
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
