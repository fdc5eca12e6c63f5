"""The `foley-server` command line."""

import logging
import os
import signal
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Literal
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foley import bundle as bundles
from foley import command
from foley.application import application
from foley.bundle import Half, Tuning
from foley.errors import FoleyError, OutputError, ServerUnavailable
from foley_pipeline.grpc_options import channel_options
from foley_server.launcher import repository, triton
from foley_server.launcher.gpu import Gpu

POLL_S = 0.2  # interval between checks of Triton's processes
_CHECKOUT = Path(__file__).resolve().parents[2]

app = application("Serve Video-Foley with NVIDIA Triton.")


TargetOption = Annotated[
    Literal["cpu", "cuda", "tensorrt"],
    typer.Option(
        help="Where the networks run; cuda and tensorrt need the official Triton, as in this project's image."
    ),
]
PrecisionOption = Annotated[Half, typer.Option(help="Precision of the graphs or engines that run on a GPU.")]
ProfileOption = Annotated[
    Tuning, typer.Option(help="On a GPU: minimum latency, or a short queue delay for full batches.")
]
BundleOption = Annotated[Path, typer.Option(help="Folder of the bundle to serve.", envvar="FOLEY_BUNDLE")]
ModelsOption = Annotated[Path, typer.Option(help="Folder of the hand-written models.", envvar="FOLEY_MODEL_REPOSITORY")]


@app.command()
def run(
    bundle: BundleOption = _CHECKOUT / "bundles" / "demo",
    models: ModelsOption = _CHECKOUT / "model_repository",
    target: TargetOption = "cpu",
    precision: PrecisionOption = "fp16",
    profile: ProfileOption = "latency",
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port of the KServe v2 gRPC endpoint; 0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of the Prometheus metrics; 0 picks a free one.")] = 8002,
    until_stdin_closes: Annotated[bool, typer.Option(help="Stop when standard input closes.")] = False,
) -> None:
    """Verify the bundle, start Triton, and serve until Ctrl-C.

    Prints one line when every model is ready: `ready grpc=ADDRESS:PORT metrics=ADDRESS:PORT`.
    """
    signal.signal(signal.SIGINT, command.terminate)  # a shell starts background jobs with SIGINT ignored
    opened = bundles.read(bundle)
    bundles.verify(opened)
    if until_stdin_closes:
        threading.Thread(target=_interrupt_at_end_of_stdin, daemon=True).start()
    try:
        with triton.serve(
            models, opened, address, grpc_port, metrics_port, gpu=_gpu(target, precision, profile)
        ) as server:
            logging.getLogger("triton").addHandler(_triton_log())  # from here on: a failed start is one sentence
            typer.echo(f"ready grpc={server.endpoints.grpc} metrics={server.endpoints.metrics}")
            sys.stdout.flush()
            while (failure := server.failure()) is None:
                time.sleep(POLL_S)
            server.process.kill()  # fails the calls that wait for the dead model
            raise FoleyError(failure)
    except command.Terminated:
        return  # SIGINT and SIGTERM are the normal way to stop


@app.command("repository")
def lay_out(
    destination: Annotated[Path, typer.Argument(help="Folder to create.")],
    bundle: BundleOption = _CHECKOUT / "bundles" / "demo",
    models: ModelsOption = _CHECKOUT / "model_repository",
    target: TargetOption = "cpu",
    precision: PrecisionOption = "fp16",
    profile: ProfileOption = "latency",
) -> None:
    """Write the model repository for a target, to inspect it or to start Triton with it yourself.

    The repository contains absolute links to the bundle's files: do not move the bundle. Start Triton with
    --grpc-http2-min-recv-ping-interval-without-data=10000; otherwise it closes connections during long calls.

    foley-server repository models/ --bundle bundles/paper --target tensorrt
    """
    if destination.exists():
        raise OutputError(f"{destination} exists already: remove it or choose another folder")
    opened = bundles.read(bundle)
    bundles.verify(opened)
    repository.lay_out(models, opened, destination, _gpu(target, precision, profile))


def _triton_log() -> logging.Handler:
    """Return a handler that writes Triton's warnings and errors to standard error."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("triton: %(levelname)s: %(message)s"))
    return handler


def _gpu(target: Literal["cpu", "cuda", "tensorrt"], precision: Half, tuning: Tuning) -> Gpu | None:
    return None if target == "cpu" else Gpu(target, precision, tuning)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def api(context: typer.Context) -> None:
    """Serve the public gRPC API. `foley-server api --help` lists its settings."""
    from foley_server.api import app as api_app  # deferred: takes a second to import
    from foley_server.api.settings import load

    api_app.serve(load(context.args))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def studio(context: typer.Context) -> None:
    """Serve the studio, a web page for editing and auditioning loudness curves, at http://localhost:8090.

    Runs the API server with `--studio` and accepts the same settings; see `foley-server api --help`.
    """
    from foley_server.api import app as api_app
    from foley_server.api.settings import load

    data = Path.home() / ".cache" / "foley" / "studio"
    api_app.serve(load(["--studio", "--port=0", "--metrics-port=0", f"--data={data}", *context.args]))


@app.command()
def health(
    server: Annotated[
        str,
        typer.Argument(help="HOST:PORT of the API, or of Triton; or URL of a probe, such as http://HOST:PORT/live."),
    ] = "127.0.0.1:8080",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the response.")] = 5.0,
) -> None:
    """Check a server, for probes: exit code 0 if its gRPC health service says that it is serving.

    Connects without TLS: run it on the same machine or in the same pod. If the API has TLS, check the probes of its
    metrics port instead: /live and /ready respond with 200 or 503.

    foley-server health http://127.0.0.1:8081/live
    """
    if server.startswith("http://"):
        _check_probe(server, timeout)
    else:
        _check_grpc(server, timeout)
    typer.echo(f"{server} is serving")


def _check_probe(url: str, timeout: float) -> None:
    try:
        with urlopen(url, timeout=timeout):
            pass
    except HTTPError as error:
        raise ServerUnavailable(f"{url} responds with {error.code}; see the server's log") from error
    except (OSError, HTTPException) as error:
        raise ServerUnavailable(f"{url} does not respond ({error}); check the address") from error


def _check_grpc(server: str, timeout: float) -> None:
    with grpc.insecure_channel(server, channel_options(server)) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise ServerUnavailable(f"{server} does not respond ({error.details()}); check the address") from error
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        raise ServerUnavailable(f"{server} is not serving; see its log")


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Name of the user: letters, digits, dots, dashes.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="Scope, generate or read; can be repeated.", show_default="both")
    ] = None,
    requests_per_minute: Annotated[float, typer.Option(help="Maximum calls per minute.")] = 60,
    concurrent_requests: Annotated[int, typer.Option(help="Maximum concurrent calls.")] = 4,
    rows_per_hour: Annotated[
        int | None, typer.Option(help="Budget of denoiser rows per hour.", show_default="the server's")
    ] = None,
    queued: Annotated[
        int | None, typer.Option(help="Maximum queued jobs of the user.", show_default="the server's")
    ] = None,
    mib: Annotated[
        int | None, typer.Option(help="Maximum MiB of stored media of the user.", show_default="the server's")
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option(help="Days until the token expires.", min=0, show_default="never")
    ] = None,
    tokens_file: Annotated[
        Path, typer.Option("--tokens", help="File of the server's tokens, to which the hash of the new one is added.")
    ] = Path("tokens.toml"),
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File for the token, for $FOLEY_TOKEN_FILE.", show_default="NAME.token"),
    ] = None,
) -> None:
    """Create an API token: write it to a file, and add its hash to the file of the server's tokens.

    foley-server token alice --tokens tokens.toml -o alice.token

    New files are readable by their owner only. A running server accepts the token at once. To rotate the tokens of a
    user, create a second one, and remove the entry of the first when it is no longer used.
    """
    from foley_server.api import tokens

    path = output or Path(f"{name}.token")
    created = tokens.new_token()
    expires = datetime.now(timezone.utc) + timedelta(days=expires_days) if expires_days is not None else None
    with tokens.new_token_file(path, created):
        tokens.add_entry(
            tokens_file,
            name,
            created,
            scopes=scope or tokens.SCOPES,
            requests_per_minute=requests_per_minute,
            concurrent_requests=concurrent_requests,
            rows_per_hour=rows_per_hour,
            queued=queued,
            mib=mib,
            expires=expires.replace(microsecond=0) if expires else None,
        )
    typer.echo(path)


def _interrupt_at_end_of_stdin() -> None:
    while os.read(0, 4096):  # a read of sys.stdin would keep Python from closing it at exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _bypass_proxies_on_this_machine() -> None:
    """Add loopback to `no_proxy`, for HTTP requests of this process and of its Triton: metrics, traces, media."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    hosts = ",".join(filter(None, [listed, "localhost", "127.0.0.1", "::1"]))
    os.environ |= {"no_proxy": hosts, "NO_PROXY": hosts}


def main() -> None:
    """Run the `foley-server` command line."""
    _bypass_proxies_on_this_machine()
    command.run(app)
