"""Each network each way: is it right, how long does it take, how much memory; and the same for a whole clip."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from foley import clip
from foley.bundle import Bundle, Half
from foley.errors import FoleyError
from foley.stages import networks
from foley_bench.flop import count_flop
from foley_bench.gpu.device import Device, median
from foley_bench.gpu.ways import WAYS, Call, Material
from foley_bench.machine import describe
from foley_bench.official import sound
from foley_bench.report import Report
from foley_export.make import load_network

WRONG = 0.05  # a relative error above this is no answer to compare times with
TOKENS = 16
CLIP = ("optical_flow", "rgb_features", "flow_features", "video2rms", "clap_text", "denoiser", "vae_decoder", "vocoder")


def measure(
    bundle: Bundle,
    device: Device,
    half: Half,
    repeats: int,
    batch: int,
    only: Sequence[str],
    say: Callable[[str], None],
) -> Report:
    """Time every network of a clip, and a whole clip.

    Args:
        only: these networks alone, and no clip; empty: all.
        batch: rows of the denoiser; the other networks of the sound, and the text, run with one.
    """
    before, rates = device.describe(), device.matrix_flop_per_s()
    rate = rates.get({"fp16": "float16", "bf16": "bfloat16"}[half], rates["float32"])
    found: dict[str, Any] = {}
    calls: dict[str, dict[str, Call]] = {}
    with torch.inference_mode(), torch.device(device.name):
        for name in CLIP:
            if name not in networks(bundle.manifest) or (only and name not in only):
                continue  # DIS runs on the processor
            found[name], calls[name] = _network(bundle, name, device, half, repeats, batch, rate, say)
        whole = {} if only else _clips(calls, bundle, device, say)
    document = {
        **describe(bundle),
        "gpu": {"before": before, "after": device.describe()},
        "settings": {"precision": half, "repeats": repeats, "batch": batch, "steps": bundle.manifest.sampling.steps},
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda},
        "matrix_flop_per_s": dict(rates),
        "networks": found,
        "clip": whole,
    }
    return Report(
        title=f"On a GPU: {bundle.manifest.name}, {before['name']}",
        lead="Every network on random inputs that lie on the device, timed by the device, medians after warm-up, "
        "clocks as found. Errors are against this project's network in float32. The floor is the time that the "
        f"arithmetic takes at {rate / 1e12:.1f} TFLOP/s, the best rate in a large matrix product in {half}.",
        document=document,
        tables=[_table(found), _clip_table(whole), _skipped_table(found)],
        pictures={"Time of a clip, relative to the official way.": _bars(whole)} if whole else {},
    )


def _network(
    bundle: Bundle, name: str, device: Device, half: Half, repeats: int, batch: int, rate: float, say: Callable
) -> tuple[dict[str, Any], dict[str, Call]]:
    network = load_network(bundle, name)
    rows = batch if name == "denoiser" else 1
    sizes = {"frames": clip.CHUNK_PAIRS + 1, "pairs": clip.CHUNK_PAIRS, "tokens": TOKENS}
    material = Material(bundle, network, _guided(name, network.sample_inputs(rows, sizes)), device, half)
    reference = [tensor.clone() for tensor in _reference(material)]
    flop = count_flop(lambda: material.network(*material.inputs))
    ways: dict[str, Any] = {}
    calls: dict[str, Call] = {}
    for way, prepare in WAYS.items():
        if way == "official" and rows > 1:
            ways[way] = {"skipped": "the official way has no batches"}
            continue
        say(f"{name}: {way}")
        try:
            ways[way], calls[way] = _way(prepare, material, reference, flop / rate, repeats)
        except FoleyError as reason:
            ways[way] = {"skipped": str(reason)}
        except (RuntimeError, ValueError, OSError) as error:  # of a compiler, a driver, out of memory: the others go on
            ways[way] = {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        device.forget()
    baseline = ways["official"].get("seconds") or ways["eager"].get("seconds")
    for figures in ways.values():
        if baseline and "seconds" in figures:
            figures["official_to_this"] = baseline / figures["seconds"]
    return {"flop": flop, "rows": rows, "ways": ways}, calls


def _way(
    prepare: Callable[[Material], Call],
    material: Material,
    reference: Sequence[torch.Tensor],
    floor_s: float,
    repeats: int,
) -> tuple[dict[str, Any], Call]:
    before, started = material.device.used_bytes(), time.perf_counter()
    call = prepare(material)
    answer = call()
    first_s = time.perf_counter() - started
    errors = [_error(one, other) for one, other in zip(answer, reference, strict=True)]
    seconds = median(material.device.seconds(call, repeats))
    figures = {
        "seconds": seconds,
        "to_floor": seconds / floor_s,
        "error": max(errors),
        "right": bool(max(errors) < WRONG),
        "prepare_s": first_s,
        "memory_bytes": max(0, material.device.used_bytes() - before),
    }
    return figures, call


def _reference(material: Material) -> Sequence[torch.Tensor]:
    """The answer in float32 proper. The ways are timed as PyTorch runs by default, where convolutions are in TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        answer = material.network(*material.inputs)
    return answer if isinstance(answer, tuple) else (answer,)


def _guided(name: str, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The denoiser with the guidance that the official way has."""
    return [*inputs[:5], torch.full_like(inputs[5], sound.GUIDANCE)] if name == "denoiser" else inputs


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = torch.linalg.vector_norm(found.double().reshape(-1) - expected.double().reshape(-1))
    return float(difference / torch.linalg.vector_norm(expected.double()).clamp(min=1e-30))


def _clips(
    calls: Mapping[str, Mapping[str, Call]], bundle: Bundle, device: Device, say: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of all calls that a clip of 10 s makes, one after the other, for every way that has all networks."""
    chunks = math.ceil((clip.CLIP_FRAMES - 1) / clip.CHUNK_PAIRS)
    whole: dict[str, Any] = {}
    for way in WAYS:
        if not all(way in of_network for of_network in calls.values()):
            continue
        say(f"a clip: {way}")
        steps = sound.STEPS if way == "official" else bundle.manifest.sampling.steps
        times = {name: chunks if name.endswith(("flow", "features")) else 1 for name in calls} | {"denoiser": steps}
        times["clap_text"] = 2

        def run(way: str = way, times: Mapping[str, int] = times) -> None:
            for name, count in times.items():
                for _ in range(count):
                    calls[name][way]()

        whole[way] = {"seconds": device.once(run), "steps": steps, "calls": times}
    for figures in whole.values():
        figures["official_to_this"] = whole["official"]["seconds"] / figures["seconds"] if "official" in whole else None
    return whole


def _table(found: Mapping[str, Any]) -> Table:
    table = Table("network", "way", title="Networks")
    for heading in ("ms", "times as fast as official", "to the floor", "error", "MiB", "ready after s"):
        table.add_column(heading, justify="right")
    for name, about in found.items():
        for way, figures in about["ways"].items():
            if "seconds" not in figures:
                continue
            table.add_row(
                name,
                way if figures["right"] else f"{way}: WRONG",
                f"{figures['seconds'] * 1e3:.3f}",
                f"{figures.get('official_to_this', math.nan):.2f}",
                f"{figures['to_floor']:.1f}",
                f"{figures['error']:.1e}",
                f"{figures['memory_bytes'] / 2**20:.0f}",
                f"{figures['prepare_s']:.1f}",
            )
    return table


def _clip_table(whole: Mapping[str, Any]) -> Table:
    table = Table("way", "steps", title="A clip of 10 s: the networks, without decoding")
    for heading in ("seconds", "times as fast as official"):
        table.add_column(heading, justify="right")
    for way, figures in whole.items():
        ratio = figures["official_to_this"]
        table.add_row(way, str(figures["steps"]), f"{figures['seconds']:.3f}", f"{ratio:.1f}" if ratio else "")
    return table


def _skipped_table(found: Mapping[str, Any]) -> Table:
    table = Table("way", "why it was skipped", "networks", title="Skipped")
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, about in found.items():
        for way, figures in about["ways"].items():
            if "skipped" in figures:
                reasons.setdefault((way, figures["skipped"]), []).append(name)
    for (way, reason), names in reasons.items():
        table.add_row(way, reason, ", ".join(names))
    return table


def _bars(whole: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 0.8 + 0.4 * len(whole)), layout="constrained")
    axes = figure.subplots()
    base = next(iter(whole.values()))["seconds"]
    axes.barh(np.arange(len(whole)), [one["seconds"] / base for one in whole.values()], color="#2ec4b6")
    axes.set_yticks(range(len(whole)), labels=list(whole))
    axes.invert_yaxis()
    axes.set_xlabel(f"time / {next(iter(whole))}")
    return figure
