"""One embedded Triton: started for a bundle, watched until it is ready, stopped without a trace."""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from foley.bundle import Bundle
from foley.errors import ServerUnavailable
from foley_server import installation, repository
from foley_server.gpu import Gpu
from foley_server.run_folder import memory_prefix, run_folder

START_TIMEOUT_S = 600.0  # the paper's bundle loads 2.4 GB
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Endpoints:
    """Where a running server listens."""

    grpc: str
    metrics: str


class Triton:
    """A running server process, and those of its models."""

    def __init__(self, process: subprocess.Popen[bytes], endpoints: Endpoints, log: Path) -> None:
        self.process, self.endpoints = process, endpoints
        self._log = log
        self._models = psutil.Process(process.pid).children(recursive=True)

    def failure(self) -> str | None:
        """Why it serves no more, None while it does.

        24.10 does not see that a model's process has died: requests to that model wait for ever.
        """
        if (code := self.process.poll()) is not None:
            end = self._log.read_text(errors="replace")[-2000:]
            return f"Triton ended by itself with exit code {code}; its log ends: {end}"
        dead = [one.pid for one in self._models if not one.is_running() or one.status() == psutil.STATUS_ZOMBIE]
        return f"a model's process died: {dead}" if dead else None


def claim_port(address: str, port: int) -> int:
    """`port`, or where that is 0 one that nothing listens on now.

    Raises:
        ServerUnavailable: something listens on it already, or the address is not one of this machine's.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that is only winding down is free
        try:
            listener.bind((address, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ServerUnavailable(f"cannot listen on {address}:{port} ({reason}); choose another") from error
        return int(listener.getsockname()[1])


@contextmanager
def serve(
    models: Path,
    bundle: Bundle,
    address: str = "127.0.0.1",
    grpc_port: int = 0,
    metrics_port: int = 0,
    trace: str | None = None,
    on: Gpu | None = None,
) -> Iterator[Triton]:
    """Serve `bundle` with the repository `models` while the context lasts, `on` a GPU with the official Triton.

    Port 0 picks a free one.

    Requests that belong to a trace have spans of theirs sent to `trace`, an OTLP/HTTP endpoint.

    Raises:
        BundleError: the bundle has no graphs.
        ServerUnavailable: no Triton here, or it ended or hung before it was ready.
    """
    found = installation.find_official() if on else installation.find()
    endpoints = Endpoints(
        f"{address}:{claim_port(address, grpc_port)}", f"{address}:{claim_port(address, metrics_port)}"
    )
    with run_folder() as run:
        command = _command(
            found,
            repository.lay_out(models, bundle, run / "models", on),
            installation.link_backends(found, run / "backends"),
            endpoints,
            run,
            trace,
            gpu_metrics=on is not None,
        )
        log = run / "triton.log"
        environment = {
            **os.environ,
            **({"LD_LIBRARY_PATH": str(found.libraries)} if found.libraries else {}),
            "ORT_DISABLE_TELEMETRY": "1",  # from 1.29 on, official Linux builds report to Microsoft unless told not to
            # the stub embeds Python, ignores PYTHONPATH, and takes its environment from the first python3 it finds
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, preexec_fn=_end_with_parent, cwd=run
            )
        try:
            _await_ready(process, endpoints, log, run.name)
            yield Triton(process, endpoints, log)
        finally:
            _stop(process)


def _command(
    found: installation.Installation,
    models: Path,
    backends: Path,
    endpoints: Endpoints,
    run: Path,
    trace: str | None,
    gpu_metrics: bool,
) -> list[str]:
    grpc_address, grpc_port = endpoints.grpc.rsplit(":", 1)
    metrics_address, metrics_port = endpoints.metrics.rsplit(":", 1)
    return [
        str(found.binary),
        f"--id={run.name}",
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={memory_prefix(run)}",
        f"--backend-config=python,stub-timeout-seconds={int(START_TIMEOUT_S)}",
        f"--cache-directory={found.caches}",
        "--disable-auto-complete-config",
        "--model-control-mode=none",
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={int(STOP_TIMEOUT_S / 2)}",
        "--allow-http=false",
        f"--grpc-address={grpc_address}",
        f"--grpc-port={grpc_port}",
        f"--metrics-address={metrics_address}",
        f"--metrics-port={metrics_port}",
        f"--allow-gpu-metrics={str(gpu_metrics).lower()}",
        # nobody knows the word: these are closed
        f"--grpc-restricted-protocol=shared-memory,trace,logging:closed={secrets.token_hex()}",
        *(_trace_flags(trace) if trace else []),
    ]


def _trace_flags(endpoint: str) -> list[str]:
    # a request that brings a trace's context is traced whatever the rate; no other is
    settings = ("mode=opentelemetry", "level=TIMESTAMPS", f"rate={2**31 - 1}", f"opentelemetry,url={endpoint}")
    return [f"--trace-config={setting}" for setting in settings]


def _end_with_parent() -> None:
    """In the child: be killed when this process dies, however it dies (prctl PR_SET_PDEATHSIG)."""
    os.setpgrp()  # a Ctrl-C in the terminal is for us; we stop the server in order
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _await_ready(process: subprocess.Popen[bytes], endpoints: Endpoints, log: Path, name: str) -> None:
    """Wait until the server called `name`, and not another one that was quicker to take its port, is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with grpcclient.InferenceServerClient(endpoints.grpc) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerUnavailable(f"Triton ended while it started: {_first_error(log)}")
            try:
                if (
                    client.is_server_ready(client_timeout=5.0)
                    and client.get_server_metadata(client_timeout=5.0).name == name
                ):
                    return
            except InferenceServerException:
                pass  # not listening yet
            time.sleep(0.05)
    raise ServerUnavailable(f"Triton was not ready after {START_TIMEOUT_S:.0f} s: {_first_error(log)}")


def _first_error(log: Path) -> str:
    """The first line that Triton logged as an error about a model, else its last line."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["it logged nothing"]
    errors = [line for line in lines if line.startswith("E") and "model" in line]
    return errors[0].split("] ", 1)[-1].strip('"') if errors else lines[-1]


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
    finally:  # a second signal to us must not leave anything behind
        # a server that dies, or is stopped while it loads, forgets its stubs; they are of its process group
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
