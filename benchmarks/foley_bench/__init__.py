"""Benchmarks of the deployment, with a baseline and a roofline bound for every figure. Requires torch and a server."""

import os

from foley import __version__ as __version__

# Before ONNX Runtime is imported: from 1.29 on, official Linux builds report to Microsoft unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
