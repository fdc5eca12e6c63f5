"""Runs an embedded Triton for a bundle: start, wait until ready, monitor, stop and clean up."""

import os
import re
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
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.grpc_options import MIN_PING_INTERVAL_MS, NO_PROXY
from foley_server.launcher import installation, repository
from foley_server.launcher.gpu import Gpu
from foley_server.launcher.run_folder import memory_prefix, run_folder
from foley_server.launcher.triton_log import TritonLog

START_TIMEOUT_S = 600.0  # the paper's bundle has 2.4 GB of weights
READY_TIMEOUT_S = 30.0  # from listening, with all models loaded, to the first response
ZOMBIE_GRACE_S = 0.5  # a zombie older than this has died: Triton reaps the processes that it stops within milliseconds
STOP_TIMEOUT_S = 30.0

# Requests SIGTERM when the thread that has started this process ends, for any reason (1 is PR_SET_PDEATHSIG), and
# becomes Triton. Not a `preexec_fn`, which can crash or deadlock in a process with threads. Python ignores SIGPIPE, and
# so does Triton then: without a reader of its log it still stops in order.
_EXEC = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Endpoints:
    """Addresses of a running server, HOST:PORT each."""

    grpc: str
    metrics: str


class ModelProcesses:
    """Tracks the stub processes of the models, which are children of Triton.

    Triton 24.10 does not detect that one has exited: during startup it waits for `stub-timeout-seconds`; after that,
    requests to the model never return.
    """

    def __init__(self, triton: int) -> None:
        self._triton = psutil.Process(triton)
        self._models: dict[psutil.Process, str] = {}

    def update(self) -> list[str]:
        """Record the running processes; return the models of those that exited and were not reaped."""
        exited = []
        with suppress(psutil.NoSuchProcess):  # Triton itself has exited
            for process in self._triton.children():
                if model := _model_name(process):
                    self._models[process] = model
                elif _has_exited(process):
                    exited.append(self._models.get(process, f"(process {process.pid})"))
        return exited

    def dead(self) -> list[str]:
        """Return the models whose recorded process has exited."""
        return [model for process, model in self._models.items() if _has_exited(process)]


class TritonServer:
    """A running server process and the processes of its models.

    Attributes:
        process: The `tritonserver` process.
        endpoints: Addresses that it listens on.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], models: ModelProcesses, endpoints: Endpoints, log: TritonLog
    ) -> None:
        self.process, self.endpoints = process, endpoints
        self._models, self._log = models, log

    def failure(self) -> str | None:
        """Return why the server has stopped working; None while it works."""
        if (code := self.process.poll()) is not None:
            self._log.drain()
            end = "\n".join(self._log.lines())[-2000:]
            return f"Triton exited unexpectedly with code {code}; its log ends: {end}"
        dead = self._models.dead()
        return f"the process of model {', '.join(dead)} exited unexpectedly" if dead else None


def claim_port(address: str, port: int) -> int:
    """Return `port`, or a free port if it is 0. The port is not reserved.

    Raises:
        ServerUnavailable: The port is in use, or the address does not belong to this machine.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
        try:
            listener.bind((address, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ServerUnavailable(
                f"cannot listen on {address}:{port} ({reason}); choose another address or port"
            ) from error
        return int(listener.getsockname()[1])


@contextmanager
def serve(
    models: Path,
    bundle: Bundle,
    address: str = "127.0.0.1",
    grpc_port: int = 0,
    metrics_port: int = 0,
    trace: str | None = None,
    gpu: Gpu | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[TritonServer]:
    """Run a Triton that serves `bundle`; stop it on exit. Its log goes to the logger `triton`.

    Args:
        models: Folder of the hand-written models; see `repository.lay_out`.
        bundle: The bundle to serve.
        address: Address to listen on.
        grpc_port: Port of the gRPC endpoint; 0 picks a free one.
        metrics_port: Port of the Prometheus metrics; 0 picks a free one.
        trace: OTLP/HTTP endpoint for spans of requests that carry a trace context; None turns tracing off.
        gpu: GPU configuration, which needs the official Triton; None for the CPU and the embedded Triton.
        cancel: Ends the start, which can take minutes; it has no effect once Triton is ready.

    Yields:
        The server, ready to serve.

    Raises:
        BundleError: The bundle has no graphs, or no engines, for this target.
        Cancelled: The start was cancelled.
        ServerUnavailable: Triton is not installed, or it exited or hung before it was ready.
    """
    installed = installation.find_official() if gpu else installation.find()
    installation.check_libraries(installed)
    endpoints = Endpoints(
        f"{address}:{claim_port(address, grpc_port)}", f"{address}:{claim_port(address, metrics_port)}"
    )
    with run_folder() as run:
        command = _command(
            installed,
            repository.lay_out(models, bundle, run / "models", gpu),
            installation.link_backends(installed, run / "backends"),
            endpoints,
            run,
            trace,
            gpu_metrics=gpu is not None,
        )
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _EXEC, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=installation.environment(installed),
            start_new_session=True,  # keeps the terminal's Ctrl-C from Triton: this process stops it in order
            cwd=run,
        )
        try:
            assert process.stdout is not None
            log = TritonLog(process.stdout)
            model_processes = ModelProcesses(process.pid)
            try:
                _await_ready(process, model_processes, endpoints, log, run.name, cancel or CancelToken())
            except BaseException:
                process.kill()  # it has no calls to finish, and does not react to SIGTERM while it loads models
                raise
            yield TritonServer(process, model_processes, endpoints, log)
        finally:
            _stop(process)


def _command(
    installed: installation.Installation,
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
        str(installed.binary),
        f"--id={run.name}",
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={memory_prefix(run)}",
        f"--backend-config=python,stub-timeout-seconds={int(START_TIMEOUT_S)}",
        f"--cache-directory={installed.caches}",
        "--disable-auto-complete-config",
        "--model-control-mode=none",
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={int(STOP_TIMEOUT_S / 2)}",
        "--allow-http=false",
        f"--grpc-address={grpc_address}",
        f"--grpc-port={grpc_port}",
        f"--grpc-http2-min-recv-ping-interval-without-data={MIN_PING_INTERVAL_MS}",
        f"--metrics-address={metrics_address}",
        f"--metrics-port={metrics_port}",
        f"--allow-gpu-metrics={str(gpu_metrics).lower()}",
        # disables these protocols: the secret is discarded, and HTTP/2 forbids capitals in the name of a header, so
        # that it does not help those who can read this command line
        f"--grpc-restricted-protocol=shared-memory,trace,logging:CLOSED={secrets.token_hex()}",
        *(_trace_flags(trace) if trace else []),
    ]


def _trace_flags(endpoint: str) -> list[str]:
    # requests with a trace context are traced at any rate; at this rate, no others are
    settings = ("mode=opentelemetry", "level=TIMESTAMPS", f"rate={2**31 - 1}", f"opentelemetry,url={endpoint}")
    return [f"--trace-config={setting}" for setting in settings]


def _model_name(process: psutil.Process) -> str | None:
    """Return the model that a process serves; its first argument is FOLDER/NAME/VERSION/model.py."""
    try:
        match = re.search(r"([^/]+)/\d+/model\.py$", process.cmdline()[1])
    except (psutil.Error, IndexError):  # the process has exited
        return None
    return match[1] if match else None


def _has_exited(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _await_ready(
    process: subprocess.Popen[bytes],
    models: ModelProcesses,
    endpoints: Endpoints,
    log: TritonLog,
    name: str,
    cancel: CancelToken,
) -> None:
    """Wait until the server with the id `name` is ready.

    Raises:
        Cancelled: `cancel` was cancelled.
        ServerUnavailable: Triton exited, a model or its process failed, connections fail, or a timeout expired.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    died_at: float | None = None
    while time.monotonic() < deadline:
        if process.poll() is not None or log.load_failure():
            raise _start_failure(process, log)
        if not (dead := models.update()):
            died_at = None
        elif died_at is None:
            died_at = time.monotonic()
        elif time.monotonic() - died_at > ZOMBIE_GRACE_S:
            raise ServerUnavailable(
                f"Triton did not start: the process of model {', '.join(dead)} exited: "
                f"{log.model_output() or 'check that this machine has enough memory'}"
            )
        if _accepts_connections(endpoints.grpc):
            models.update()
            return _await_readiness(process, endpoints, log, name, cancel)
        cancel.sleep(0.05)
    raise ServerUnavailable(f"Triton did not load its models in {START_TIMEOUT_S:.0f} s: {log.first_error()}")


def _start_failure(process: subprocess.Popen[bytes], log: TritonLog) -> ServerUnavailable:
    if process.poll() is not None:
        log.drain()
    return ServerUnavailable(f"Triton did not start: {log.first_error()}")


def _accepts_connections(endpoint: str) -> bool:
    """Return whether a TCP connection to `endpoint` is accepted.

    Raises:
        ServerUnavailable: The connection fails with an error other than "refused".
    """
    address, port = endpoint.rsplit(":", 1)
    try:
        socket.create_connection((address, int(port)), READY_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return False
    except OSError as error:
        raise ServerUnavailable(
            f"cannot connect to {endpoint} on this machine ({error.strerror or error}); check its network settings"
        ) from error
    return True


def _await_readiness(
    process: subprocess.Popen[bytes], endpoints: Endpoints, log: TritonLog, name: str, cancel: CancelToken
) -> None:
    """Wait until the server at the endpoint reports that it is ready and has the id `name`.

    The id distinguishes it from another server that has bound the port first.

    Raises:
        Cancelled: `cancel` was cancelled.
        ServerUnavailable: Triton exited, another server responds, or a timeout expired.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    with grpcclient.InferenceServerClient(endpoints.grpc, channel_args=[NO_PROXY]) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise _start_failure(process, log)
            with suppress(InferenceServerException):
                if (
                    client.is_server_ready(client_timeout=5.0)
                    and client.get_server_metadata(client_timeout=5.0).name == name
                ):
                    return
            cancel.sleep(0.05)
    raise ServerUnavailable(
        f"the server on {endpoints.grpc} does not respond, or is another Triton; choose another port"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
    finally:  # clean up even if a second signal interrupts the wait
        # a server that crashes, or is stopped during startup, leaves its stubs running; they are in its process group
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
