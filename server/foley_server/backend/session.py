"""Opens ONNX Runtime sessions on the CPU, with the same options inside and outside Triton."""

import os
from pathlib import Path

import onnxruntime as ort


def open_session(graph: Path) -> ort.InferenceSession:
    """Load `graph` and the weights in the same folder.

    Raises:
        Exception: One of ONNX Runtime's exceptions; the file is not a graph, or its weights are missing.
    """
    options = ort.SessionOptions()
    # several sessions share the cores: a thread pool that spins while idle takes them from the others
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # by default, ONNX Runtime counts all cores of the machine and pins threads to cores outside this process's affinity
    cores = len(os.sched_getaffinity(0))
    if cores < (os.cpu_count() or cores):
        options.intra_op_num_threads = cores
    # memory patterns preallocate memory per input shape, in addition to the arena: twice the memory, no faster
    options.enable_mem_pattern = False
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
