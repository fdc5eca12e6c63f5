"""A client of a Triton server that serves a Video-Foley bundle, with typed calls of its stages."""

import copy
import json
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as grpcclient
from pydantic import ValidationError
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from foley.errors import FoleyError, InvalidInput, ServerFailure, ServerUnavailable, SettingError
from foley.manifest import Manifest
from foley.stages import Stage, stages
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.grpc_options import channel_options

Arrays = dict[str, npt.NDArray[Any]]

CONNECT_TIMEOUT_S = 10.0
# Upper bound on every call. It is far above the duration of any call, because an expired deadline can crash Triton
# 24.10. Keepalive (see `grpc_options`) detects a dead server long before.
CALL_TIMEOUT_S = 3600.0
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # the default, two minutes, is for many clients of one server
    ("grpc.client_idle_timeout_ms", 2**31 - 1),  # the default, 30 minutes, would look like a lost connection
]
# Time for a cancelled call to complete: Triton 24.10 cannot cancel unary calls, and aborting one can crash it.
CANCEL_GRACE_S = 0.5
# Parameters of the served models that identify what the networks run on; empty if they do not apply.
PLATFORM = ("target", "precision", "tuning", "engines_sha256")

Answer = tuple[Any, Exception | None]


class TritonClient:
    """A connection to a Triton server. Thread-safe; use it as a context manager, or call `close`.

    Args:
        url: `HOST:PORT` of the KServe v2 gRPC endpoint, optionally with the prefix `grpc://`.

    Attributes:
        cancel: Token that cancels the calls; see `under`.
        manifest: Manifest of the served bundle.
        versions: Versions of the server and of the bundle, and what the networks run on. Every call names a version
            number that stands for them: a server with another bundle at the same address refuses it.
        stages: The served models, by name.

    Raises:
        SettingError: `url` is malformed.
        ServerUnavailable: The server cannot be reached, is not ready, or does not serve a bundle.
    """

    def __init__(self, url: str) -> None:
        self.url = server_address(url)
        self._client = self._open()
        self._link = _Link()
        self._calls = _Calls()
        self._request_id = ""
        self._headers: dict[str, str] = {}
        self.cancel = CancelToken()
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        self.stages: Mapping[str, Stage] = stages(self.manifest)

    def _open(self) -> grpcclient.InferenceServerClient:
        return grpcclient.InferenceServerClient(self.url, channel_args=[*channel_options(self.url), *CHANNEL_OPTIONS])

    def _connect(self) -> None:
        try:
            self._client._channel.subscribe(self._link.changed)
            grpc.channel_ready_future(self._client._channel).result(CONNECT_TIMEOUT_S)
            if not self._client.is_server_ready(client_timeout=CONNECT_TIMEOUT_S):
                raise ServerUnavailable(f"the server at {self.url} is still loading; try again later")
            server = self._client.get_server_metadata(client_timeout=CONNECT_TIMEOUT_S)
            config = self._client.get_model_config("generate", client_timeout=CONNECT_TIMEOUT_S).config
            parameters = {key: value.string_value for key, value in config.parameters.items()}
            self.manifest = Manifest.model_validate_json(parameters["manifest"])
            self._version = parameters["version"]
            self.versions: Mapping[str, str] = {
                "bundle": self.manifest.name,
                "bundle_sha256": parameters["digest"],
                "onnxruntime": parameters["onnxruntime"],
                **{name: parameters[name] for name in PLATFORM if parameters[name]},
                "triton": server.version,
            }
        except grpc.FutureTimeoutError as error:
            raise ServerUnavailable(f"no server responds at {self.url}; start one with `foley-server run`") from error
        except (InferenceServerException, KeyError, ValidationError) as error:
            raise ServerUnavailable(
                f"the server at {self.url} is not a Triton that serves a Video-Foley bundle of this version; "
                "start one with `foley-server run`"
            ) from error

    def __enter__(self) -> "TritonClient":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ready(self) -> bool:
        """Return whether the server can be reached and is ready."""
        try:
            return bool(self._client.is_server_ready(client_timeout=CONNECT_TIMEOUT_S))
        except (InferenceServerException, ValueError):
            return False

    @property
    def lost(self) -> bool:
        """Whether the connection has been lost since this client connected, even if it is back."""
        return self._link.lost

    def silence_s(self) -> float:
        """Return the longest time, in seconds, that a stage with pending `infer` calls has not responded; else 0."""
        return self._calls.silence_s()

    def for_request(self, request_id: str, headers: Mapping[str, str]) -> "TritonClient":
        """Return a view of this connection whose calls have a request id, for the server's logs, and headers."""
        other = copy.copy(self)
        other._request_id, other._headers = request_id, dict(headers)
        return other

    def under(self, cancel: CancelToken) -> "TritonClient":
        """Return a view of this connection whose calls end within a second after `cancel.cancel()`."""
        other = copy.copy(self)
        other.cancel = cancel
        return other

    def infer(self, stage: str, outputs: Sequence[str] | None = None, /, **inputs: npt.ArrayLike) -> Arrays:
        """Call a stage.

        Args:
            stage: Name of the stage.
            outputs: Names of the requested outputs; None: all. Do not request a subset of the outputs of an ensemble,
                which can fail on Triton 24.10.
            **inputs: Arrays of the shapes in `foley.stages`, including the batch dimension if the stage has one.

        Returns:
            The outputs, by name.

        Raises:
            Cancelled: The token given to `under` was cancelled.
            InvalidInput: The server refused the inputs.
            ServerUnavailable: The server cannot be reached.
            ServerFailure: The server answered with an error.
        """
        contract = self.stages[stage]
        outputs = outputs or [tensor.name for tensor in contract.outputs]
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

        def answered(result: Any, error: InferenceServerException | None) -> None:
            self._calls.end(stage)
            answers.put((result, error))

        with self.cancel.on_cancel(lambda: answers.put((None, self.cancel.error))):
            self._calls.begin(stage)
            try:
                self._client.async_infer(
                    stage,
                    _tensors(contract, inputs),
                    answered,
                    outputs=[grpcclient.InferRequestedOutput(name) for name in outputs],
                    model_version=self._version,
                    client_timeout=CALL_TIMEOUT_S,
                    request_id=self._request_id,
                    headers=self._headers,
                )
            except BaseException as error:
                self._calls.end(stage)
                if isinstance(error, ValueError):  # gRPC raises it on a closed channel
                    raise ServerUnavailable(f"the connection to the server is closed ({error})") from error
                raise
            result = _result(answers)
        return {name: result.as_numpy(name) for name in outputs}

    def stream(self, stage: str, **inputs: npt.ArrayLike) -> Iterator[Arrays]:
        """Call a decoupled stage. Closing the iterator cancels the request on the server.

        Args:
            stage: Name of the stage.
            **inputs: Arrays of the shapes in `foley.stages`.

        Yields:
            The outputs of each response, by name.

        Raises:
            Cancelled: The token given to `under` was cancelled.
            InvalidInput: The server refused the inputs.
            ServerUnavailable: The server cannot be reached.
            ServerFailure: The server answered with an error.
        """
        contract = self.stages[stage]
        responses: queue.Queue[Answer] = queue.Queue()
        with (
            self.cancel.on_cancel(lambda: responses.put((None, self.cancel.error))),
            self._open() as client,  # a client supports one stream at a time
        ):
            # The header triton_grpc_error would return the status of errors, but it crashes Triton 24.10.
            client.start_stream(lambda result, error: responses.put((result, error)), headers=self._headers)
            ended = False
            try:
                client.async_stream_infer(
                    stage,
                    _tensors(contract, inputs),
                    model_version=self._version,
                    request_id=self._request_id,
                    enable_empty_final_response=True,
                )
                while True:
                    result, error = responses.get(timeout=CALL_TIMEOUT_S)
                    if isinstance(error, InferenceServerException):
                        ended = True  # an error ends the call
                        raise _translated(error)
                    if error is not None:
                        raise error
                    response = result.get_response()
                    if response.outputs:
                        yield {tensor.name: result.as_numpy(tensor.name) for tensor in contract.outputs}
                    if response.parameters["triton_final_response"].bool_param:
                        ended = True
                        return
            finally:
                client.stop_stream(cancel_requests=not ended)

    def statistics(self, stage: str) -> dict[str, Any]:
        """Return Triton's statistics of a served model: `inference_count`, `execution_count`, `batch_stats`, ..."""
        try:
            document = self._client.get_inference_statistics(stage, as_json=True, client_timeout=CONNECT_TIMEOUT_S)
        except InferenceServerException as error:
            raise _translated(error) from error
        found: dict[str, Any] = json.loads(json.dumps(document))["model_stats"][0]
        return found


def server_address(url: str) -> str:
    """Return the `HOST:PORT` of `url`, which may have the prefix `grpc://`.

    Raises:
        SettingError: `url` is malformed.
    """
    address = url.removeprefix("grpc://")
    if not re.fullmatch(r"([\w.-]+|\[[\da-fA-F:]+\]):\d{1,5}", address):
        raise SettingError(f"the address of the server is {url!r}; give it as HOST:PORT, such as localhost:8001")
    return address


class _Link:
    """State of a channel, which reconnects on its own: possibly to another server process."""

    def __init__(self) -> None:
        self._connected = False
        self.lost = False

    def changed(self, state: grpc.ChannelConnectivity) -> None:
        """Record a change; gRPC calls this in a thread of its own."""
        if state is grpc.ChannelConnectivity.READY:
            self._connected = True
        elif self._connected:
            self.lost = True


class _Calls:
    """Pending calls per stage, and the time of each stage's last response. Thread-safe.

    Calls that wait in Triton's queue do not indicate a hang while other calls of the same stage complete.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: Counter[str] = Counter()
        self._answered_s: dict[str, float] = {}

    def begin(self, stage: str) -> None:
        """Record the start of a call of `stage`."""
        with self._lock:
            if not self._pending[stage]:
                self._answered_s[stage] = time.monotonic()
            self._pending[stage] += 1

    def end(self, stage: str) -> None:
        """Record the end of a call of `stage`, including a cancelled one that completes later."""
        with self._lock:
            self._pending[stage] -= 1
            self._answered_s[stage] = time.monotonic()

    def silence_s(self) -> float:
        """Return the longest time without a response, in seconds, over the stages with pending calls."""
        with self._lock:
            now = time.monotonic()
            return max((now - self._answered_s[stage] for stage, count in self._pending.items() if count), default=0.0)


def _tensors(contract: Stage, inputs: Mapping[str, npt.ArrayLike]) -> list[grpcclient.InferInput]:
    tensors = []
    for tensor in contract.inputs:
        array = np.asarray(inputs[tensor.name], tensor.numpy_dtype)
        wire = grpcclient.InferInput(tensor.name, list(array.shape), np_to_triton_dtype(tensor.numpy_dtype))
        wire.set_data_from_numpy(array)
        tensors.append(wire)
    return tensors


def _result(answers: "queue.SimpleQueue[Answer]") -> Any:
    """Wait for the result of a call; raises the same errors as `TritonClient.infer`."""
    result, error = answers.get()
    if isinstance(error, InferenceServerException):
        raise _translated(error) from error
    if error is not None:  # cancelled
        with suppress(queue.Empty):
            answers.get(timeout=CANCEL_GRACE_S)
        raise error
    return result


def _translated(error: InferenceServerException) -> FoleyError:
    """Convert an error of the Triton client to one of this project."""
    status, message = str(error.status()), str(error.message())
    marked = re.fullmatch("([A-Z_]+): (.*)", message, re.DOTALL)
    if error.status() is None and marked:  # on a stream, where the model prefixes the message with the status
        status, message = marked.groups()
    if status.endswith(("UNAVAILABLE", "CANCELLED")):  # this client cancels no calls: the connection was closed
        return ServerUnavailable(f"the connection to the server was lost ({message}); check that it is running")
    if re.search(r"Stub process '.*' is not healthy", message):  # status INTERNAL on Triton 24.10
        return ServerUnavailable(f"the process of a model does not respond ({message}); restart the server")
    if message.startswith("Request for unknown model"):  # no model of the version that this client has found
        return ServerUnavailable("the server now serves another bundle than before, or is stopping; connect again")
    if status.endswith("INVALID_ARGUMENT"):
        return InvalidInput(message)
    return ServerFailure(f"the server failed: {message}")
