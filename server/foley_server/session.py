"""The ONNX Runtime session of a graph on the processor, the same in Triton and beside it."""

import os
from pathlib import Path

import onnxruntime as ort


def open_session(graph: Path) -> ort.InferenceSession:
    """Load `graph` and the weights beside it.

    Raises ONNX Runtime's exceptions where the file is no graph, or its weights are missing.
    """
    options = ort.SessionOptions()
    # several sessions share the cores: a pool that spins while it waits takes them from the others
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # ONNX Runtime counts the machine's cores, and binds threads to those that this process may not use
    cores = len(os.sched_getaffinity(0))
    if cores < (os.cpu_count() or cores):
        options.intra_op_num_threads = cores
    # a pattern plans the memory of each shape of inputs, and holds it beside what is in use: twice as much, no faster
    options.enable_mem_pattern = False
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
