"""Error, time and memory of every network in every backend, and their sums for a clip."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from foley.bundle import Bundle, Half
from foley.errors import FoleyError
from foley.metrics import relative_l2
from foley.stages import networks
from foley_bench import inputs
from foley_bench.baseline.sound import STEPS
from foley_bench.gpu.backends import BACKENDS, Call, Workload, tensors
from foley_bench.gpu.device import Device
from foley_bench.machine import describe
from foley_bench.measurement import measure as timings
from foley_bench.report import Report, format_ms, stacked_bars, table
from foley_bench.roofline import count_flop
from foley_export.make import load_network

TOLERANCE = 0.05  # relative L2 error above which a backend's time does not count


def measure(
    bundle: Bundle,
    device: Device,
    half: Half,
    rounds: int,
    batch: int,
    only: Sequence[str],
    log: Callable[[str], None],
) -> Report:
    """Time every network of a clip in every backend.

    Args:
        bundle: The bundle with its graphs and engines; backends whose files are missing are skipped.
        device: Where the networks run.
        half: Precision of the half-precision backends.
        rounds: Timed calls of each network in each backend.
        batch: Rows of the denoiser; the other networks of the sound, and the text, run with one.
        only: Measure these networks alone, and no clip; empty for all.
        log: Called with a line of progress.
    """
    before, rates = device.describe(), device.matrix_flop_per_s()
    rate = rates.get({"fp16": "float16", "bf16": "bfloat16"}[half], rates["float32"])
    found: dict[str, Any] = {}
    with torch.inference_mode(), torch.device(device.name):
        for name in inputs.CALLS:
            if name in networks(bundle.manifest) and (not only or name in only):  # DIS runs on the processor
                found[name] = _network(bundle, name, device, half, rounds, batch, rate, log)
    steps = bundle.manifest.sampling.steps
    whole = {} if only else _clips(found, steps)
    document = {
        **describe(bundle),
        "gpu": {"before": before, "after": device.describe()},
        "settings": {"precision": half, "rounds": rounds, "batch": batch, "steps": steps},
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda},
        "matrix_flop_per_s": dict(rates),
        "networks": found,
        "clip": whole,
    }
    return Report(
        title=f"On a GPU: {bundle.manifest.name}, {before['name']}",
        description="Every network on random inputs on the device; all backends are called in turn and timed by the "
        "device; medians after warm-up, clocks not fixed. Errors are relative to this project's network in float32. "
        f"The bound is the time that the arithmetic takes at {rate / 1e12:.1f} TFLOP/s, the best rate of a large "
        f"matrix product in {half}.",
        document=document,
        tables=[_networks_table(found), *([_clip_table(whole, steps)] if whole else []), _skipped_table(found)],
        pictures={
            f"Seconds of a clip with {steps} steps.": stacked_bars(
                {"networks": [one[f"seconds_{steps}_steps"] for one in whole.values()]}, list(whole), "seconds"
            )
        }
        if whole
        else {},
    )


def _network(
    bundle: Bundle,
    name: str,
    device: Device,
    half: Half,
    rounds: int,
    batch: int,
    rate: float,
    log: Callable[[str], None],
) -> dict[str, Any]:
    rows = batch if name == "denoiser" else 1
    with torch.device("cpu"):  # random numbers and weights are the same on every device
        network = load_network(bundle, name)
        workload = Workload(bundle, network, inputs.sample(network, rows), device, half)
    reference = _reference(workload)
    flop = count_flop(lambda: workload.network(*workload.inputs))
    backends: dict[str, Any] = {}
    calls: dict[str, Call] = {}
    for backend, prepare in BACKENDS.items():
        if backend == "baseline" and rows > 1:
            backends[backend] = {"skipped": "the official pipeline does not batch"}
            continue
        log(f"{name}: {backend}")
        try:
            backends[backend], calls[backend] = _prepare(prepare, workload, reference)
        except FoleyError as reason:
            backends[backend] = {"skipped": str(reason)}
        except (RuntimeError, ValueError, OSError) as error:  # of a compiler, a driver, out of memory: the others go on
            backends[backend] = {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        device.empty_cache()
    found = timings(calls, rounds, clock=device.clock, warm_up=device.warm_up)
    for backend, timing in found.items():
        backends[backend] |= {**timing.as_dict(), "to_bound": timing.median_s * rate / flop}
        if "baseline" in found:
            backends[backend]["speedup"] = found["baseline"].median_s / timing.median_s
    return {"flop": flop, "rows": rows, "backends": backends}


def _prepare(
    prepare: Callable[[Workload], Call], workload: Workload, reference: Sequence[torch.Tensor]
) -> tuple[dict[str, Any], Call]:
    before, started = workload.device.used_bytes(), time.perf_counter()
    call = prepare(workload)
    # the baseline has the first outputs only
    pairs = zip(call(), reference, strict=False)
    error = max(relative_l2(found.float().cpu().numpy(), expected.float().cpu().numpy()) for found, expected in pairs)
    if not math.isfinite(error):
        raise FoleyError("its outputs are not finite")
    figures = {
        "error": error,
        "within_tolerance": error < TOLERANCE,
        "prepare_s": time.perf_counter() - started,
        "memory_bytes": max(0, workload.device.used_bytes() - before),
    }
    return figures, call


def _reference(workload: Workload) -> Sequence[torch.Tensor]:
    """Return the outputs in float32 without TF32, which PyTorch enables for convolutions by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return [tensor.clone() for tensor in tensors(workload.network(*workload.inputs))]


def _clips(found: Mapping[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """Return the seconds of a clip with the official steps and with `steps`, for every backend with all networks.

    The speed-ups compare equal steps: the first with the official number, the second with `steps`.
    """
    clips: dict[str, dict[str, float]] = {}
    for backend in BACKENDS:
        medians = {name: one["backends"][backend].get("median_s") for name, one in found.items()}
        if None in medians.values():
            continue
        for count in (STEPS, steps):
            calls = {name: count if name == "denoiser" else inputs.CALLS[name] for name in medians}
            clip_s = sum(calls[name] * medians[name] for name in medians)
            clips.setdefault(backend, {})[f"seconds_{count}_steps"] = clip_s
            if "baseline" in clips:
                clips[backend][f"speedup_{count}_steps"] = clips["baseline"][f"seconds_{count}_steps"] / clip_s
    return clips


def _networks_table(found: Mapping[str, Any]) -> Table:
    return table(
        "Networks",
        ["network, backend", "ms", "speed-up", "time /\nbound", "error", "MiB", "set-up\ns"],
        [
            [
                f"{name}, {backend}" + ("" if figures["within_tolerance"] else ": WRONG"),
                format_ms(figures),
                f"{figures['speedup']:.2f}" if "speedup" in figures else "",
                f"{figures['to_bound']:.1f}",
                f"{figures['error']:.1e}",
                f"{figures['memory_bytes'] / 2**20:.0f}",
                f"{figures['prepare_s']:.1f}",
            ]
            for name, about in found.items()
            for backend, figures in about["backends"].items()
            if "median_s" in figures
        ],
    )


def _clip_table(clips: Mapping[str, Mapping[str, float]], steps: int) -> Table:
    columns = [f"{key}_{count}_steps" for count in (STEPS, steps) for key in ("seconds", "speedup")]
    return table(
        "Networks of a 10 s clip, without decoding",
        ["backend", *(f"{key}\n{count} steps" for count in (STEPS, steps) for key in ("s", "speed-up"))],
        [[backend, *(f"{one[key]:.3f}" if key in one else "" for key in columns)] for backend, one in clips.items()],
    )


def _skipped_table(found: Mapping[str, Any]) -> Table:
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, about in found.items():
        for backend, figures in about["backends"].items():
            if "skipped" in figures:
                reasons.setdefault((backend, figures["skipped"]), []).append(name)
    rows = [[backend, reason, ", ".join(names)] for (backend, reason), names in reasons.items()]
    return table("Skipped", ["backend", "reason", "networks"], rows)
