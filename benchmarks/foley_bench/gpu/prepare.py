"""Makes the graphs in half precision and the engines that are timed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from foley import bundle as bundles
from foley.bundle import Bundle, Half
from foley.errors import FoleyError
from foley_export.make import make_graphs
from foley_export.tensorrt.build import build_engines


def prepare(root: Path, half: Half, say: Callable[[str], None]) -> Bundle:
    """Make the graphs and engines that the bundle at `root` lacks for the installed backends.

    A failure is passed to `say`; the backend that lacks its file is skipped later.
    """
    has_tensorrt = importlib.util.find_spec("tensorrt") is not None
    if not (has_tensorrt or has_cuda_provider()):
        return bundles.read(root)
    try:
        for one in ("fp32", half):
            if bundles.read(root).missing_graphs(one):
                for stage in make_graphs(root, one):
                    say(f"{stage}: exporting to {one}")
        if has_tensorrt:
            for stage, decision in build_engines(root, half, "latency"):
                say(f"{stage}: engine: {decision}")
    except FoleyError as error:
        say(str(error))
    return bundles.read(root)


def has_cuda_provider() -> bool:
    """Whether the ONNX Runtime that is installed runs on GPUs."""
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
