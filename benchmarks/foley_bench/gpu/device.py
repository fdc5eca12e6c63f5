"""Timing and memory of a device: CUDA events on a GPU, the wall clock on a CPU."""

import subprocess
from collections.abc import Callable, Mapping
from functools import partial

import torch

from foley_bench.measurement import measure, wall_clock

MATRIX_SIZES = {True: 4096, False: 1024}  # on a GPU, on a CPU
NVIDIA_SMI = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,memory.total"
)


class Device:
    """The device that the networks run on: "cuda" or "cpu"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gpu = name.startswith("cuda")

    @property
    def warm_up(self) -> int:
        """Number of untimed rounds before the timed ones."""
        return 5 if self.is_gpu else 1

    def clock(self, call: Callable[[], object]) -> float:
        """Return the duration of one call in seconds, measured by the device."""
        if not self.is_gpu:
            return wall_clock(call)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def used_bytes(self) -> int:
        """Return the device memory in use by all processes; 0 on a CPU."""
        if not self.is_gpu:
            return 0
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free

    def empty_cache(self) -> None:
        """Empty PyTorch's cache of device memory."""
        if self.is_gpu:
            torch.cuda.empty_cache()

    def matrix_flop_per_s(self) -> Mapping[str, float]:
        """Return the best rate of a large matrix product by dtype."""
        rates, size = {}, MATRIX_SIZES[self.is_gpu]
        for dtype in (torch.float32, torch.float16, torch.bfloat16) if self.is_gpu else (torch.float32,):
            a, b = torch.randn(2, size, size, device=self.name).to(dtype)
            calls = {"mm": partial(torch.mm, a, b)}
            timing = measure(calls, 20 if self.is_gpu else 2, clock=self.clock, warm_up=self.warm_up)["mm"]
            rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / min(timing.seconds)
        return rates

    def describe(self) -> Mapping[str, str]:
        """Return name, driver, clocks, power and temperature of the GPU from nvidia-smi."""
        if not self.is_gpu:
            return {"name": "processor"}
        command = ["nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader"]
        try:
            line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            return {"name": torch.cuda.get_device_name()}
        return dict(zip(NVIDIA_SMI.split(","), (value.strip() for value in line.split(",")), strict=False))
