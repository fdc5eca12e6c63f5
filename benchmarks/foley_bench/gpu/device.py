"""Time and memory on a device: by its own events on a GPU; by the clock on a processor, to try the script there."""

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

WARM_UP = 5
MATRIX_SIZE = 4096
NVIDIA_SMI = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,memory.total"
)


class Device:
    """Where the networks run: "cuda", or "cpu"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gpu = name.startswith("cuda")

    def seconds(self, call: Callable[[], object], repeats: int) -> list[float]:
        """How long each of `repeats` calls took, after `WARM_UP` others."""
        for _ in range(WARM_UP if self.is_gpu else 1):
            call()
        return [self.once(call) for _ in range(repeats)]

    def once(self, call: Callable[[], object]) -> float:
        """Seconds of one call, as the device saw them."""
        if not self.is_gpu:
            started = time.perf_counter()
            call()
            return time.perf_counter() - started
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def used_bytes(self) -> int:
        """Memory of the device that is in use, by whomever; 0 on a processor."""
        if not self.is_gpu:
            return 0
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free

    def forget(self) -> None:
        """Give back what PyTorch keeps for later."""
        if self.is_gpu:
            torch.cuda.empty_cache()

    def matrix_flop_per_s(self) -> Mapping[str, float]:
        """The best rate in a large matrix product, by the type of its numbers."""
        rates = {}
        for dtype in (torch.float32, torch.float16, torch.bfloat16) if self.is_gpu else (torch.float32,):
            a, b = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE, device=self.name).to(dtype)
            least = min(self.seconds(partial(torch.mm, a, b), 20 if self.is_gpu else 2))
            rates[str(dtype).removeprefix("torch.")] = 2 * MATRIX_SIZE**3 / least
        return rates

    def describe(self) -> Mapping[str, str]:
        """What the driver says of the GPU and its clocks now; they are left as they are found."""
        if not self.is_gpu:
            return {"name": "processor"}
        command = ["nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader"]
        try:
            line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            return {"name": torch.cuda.get_device_name()}
        return dict(zip(NVIDIA_SMI.split(","), (value.strip() for value in line.split(",")), strict=False))


def median(seconds: list[float]) -> float:
    """The middle one."""
    return statistics.median(seconds)
