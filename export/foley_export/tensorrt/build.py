"""Builds engines with TensorRT's Python API, release 11, where every network is strongly typed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes

from foley import bundle as bundles
from foley.bundle import Bundle, Half, Tuning, engine_file, graph_file
from foley.errors import BundleError, ServerUnavailable
from foley.stages import networks
from foley_export.tensorrt import engine
from foley_export.tensorrt.plan import EnginePlan, engine_plans
from foley_export.tensorrt.support import violations

MAJOR = 11


def build_engines(root: Path, precision: Half, tuning: Tuning) -> Iterator[tuple[str, str]]:
    """Build, refit or reuse the engine of every network of the bundle at `root`.

    Up-to-date engines are reused; if only the weights changed, the engine is refitted.

    Yields:
        A stage, and the action for its engine with the reason.

    Raises:
        ServerUnavailable: If there is no GPU, no TensorRT or another release of it.
        BundleError: If a graph is missing or TensorRT does not accept it.
    """
    bundle = bundles.read(root)
    bundles.verify(bundle)
    bundle.need_graphs(precision)
    builder = _Builder(bundle)
    for stage, plan in engine_plans(bundle.manifest, precision, tuning).items():
        path = bundle.path(engine_file(stage, precision, tuning))
        origin = engine.origin(bundle, plan, builder.gpu, builder.compute_capability, builder.version)
        decision, why = engine.decide(path, origin)
        yield stage, f"{decision}: {why}"
        if decision == "build":
            engine.write(path, builder.build(plan), origin)
        if decision == "refit":
            engine.write(path, builder.refit(plan, path.read_bytes()), origin)


def unsupported(bundle: Bundle, precision: Half) -> list[tuple[str, str]]:
    """Return (stage, problem) for everything that TensorRT's support matrix does not list; does not need TensorRT.

    Raises:
        BundleError: If the bundle has no graphs in this precision.
    """
    bundle.need_graphs(precision)
    return [
        (stage, problem)
        for stage in networks(bundle.manifest)
        for problem in violations(bundle.path(graph_file(stage, precision)))
    ]


class _Builder:
    """TensorRT on this machine's GPU."""

    def __init__(self, bundle: Bundle) -> None:
        self._trt = _tensorrt()
        self._bundle = bundle
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)
        self.version = str(self._trt.__version__)
        self.gpu, self.compute_capability = _gpu()

    def build(self, plan: EnginePlan) -> bytes:
        """Build the engine of `plan` and return it serialized."""
        trt = self._trt
        builder = trt.Builder(self._logger)
        network = builder.create_network()
        parser = trt.OnnxParser(network, self._logger)
        self._parse(parser, plan)
        config = builder.create_builder_config()
        config.builder_optimization_level = plan.optimization_level
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_bytes)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if plan.refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        profile = builder.create_optimization_profile()
        for name, shapes in plan.shapes.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        config.add_optimization_profile(profile)
        timing_cache = engine.timing_cache_file(self._bundle, self.compute_capability, self.version)
        cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
        built = builder.build_serialized_network(network, config)
        if built is None:
            raise BundleError(f"TensorRT {self.version} could not build {plan.stage}; see its log above")
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = timing_cache.with_suffix(".tmp")
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        temporary.replace(timing_cache)
        return bytes(built)

    def refit(self, plan: EnginePlan, built: bytes) -> bytes:
        """Return the serialized engine `built`, refitted with the bundle's current weights."""
        trt = self._trt
        loaded = trt.Runtime(self._logger).deserialize_cuda_engine(built)
        refitter = trt.Refitter(loaded, self._logger)
        parser = trt.OnnxParserRefitter(refitter, self._logger)
        graph = self._bundle.path(plan.graph)
        if not parser.refit_from_bytes(_inlined(graph), str(graph)) or not refitter.refit_cuda_engine():
            raise BundleError(
                f"TensorRT {self.version} could not refit the engine of {plan.stage}; delete the engine to rebuild it"
            )
        return bytes(loaded.serialize())

    def _parse(self, parser: Any, plan: EnginePlan) -> None:
        graph = self._bundle.path(plan.graph)
        if problems := violations(graph):
            raise BundleError(f"TensorRT does not support {graph}: {'; '.join(problems[:5])}")
        if not parser.parse(_inlined(graph), str(graph)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise BundleError(f"TensorRT {self.version} cannot parse {graph}: {errors}")


def _inlined(graph: Path) -> bytes:
    """Return the graph with model-local functions inlined; weights stay external."""
    model = ir.load(graph)
    passes.InlinePass()(model)
    return ir.to_proto(model).SerializeToString()


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise ServerUnavailable(
            f"TensorRT is not installed ({error}); on a machine with a GPU, run "
            f"`pip install 'tensorrt>={MAJOR},<{MAJOR + 1}'`"
        ) from error
    if int(tensorrt.__version__.partition(".")[0]) != MAJOR:
        raise ServerUnavailable(f"TensorRT {tensorrt.__version__} is installed; install release {MAJOR}")
    return tensorrt


def _gpu() -> tuple[str, str]:
    """Return the name and compute capability of the GPU that engines are built on."""
    import torch

    if not torch.cuda.is_available():
        raise ServerUnavailable("PyTorch finds no GPU; build engines on the GPU model that they will run on")
    properties = torch.cuda.get_device_properties(0)
    return properties.name, f"{properties.major}.{properties.minor}"
