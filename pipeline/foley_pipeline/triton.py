"""A Triton server that serves a Video-Foley bundle, as typed calls of its stages."""

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

from foley.errors import Cancelled, FoleyError, InvalidInput, ServerFailure, ServerUnavailable, SettingError
from foley.manifest import Manifest
from foley.stages import Stage, stages
from foley_pipeline.grpc_options import channel_options
from foley_pipeline.watch import Watch

Arrays = dict[str, npt.NDArray[Any]]

CONNECT_TIMEOUT_S = 10.0
# No call waits for ever. Far above what any call takes: a deadline that passes on 24.10 can crash the server.
# Keepalive (see `grpc_options`) notices a server that vanished, long before this deadline.
CALL_TIMEOUT_S = 3600.0
ANY_LENGTH = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
# How long a cancelled call may take to end by itself: 24.10 cannot cancel unary calls, and an aborted one can crash it.
CANCEL_GRACE_S = 0.5
# Parameters of the served models which say what the networks run on; empty where they do not apply.
PLATFORM = ("target", "precision", "tuning", "engines_sha256")

Answer = tuple[Any, InferenceServerException | Cancelled | None]


class Triton:
    """One server. Use it as a context manager, or call `close`; calls may come from several threads.

    Args:
        url: `HOST:PORT` of the KServe v2 gRPC endpoint, with or without `grpc://`.

    Raises:
        SettingError: `url` is something else.
        ServerUnavailable: nothing answers there, it is not ready, or it serves something else.
    """

    def __init__(self, url: str) -> None:
        self.url = url.removeprefix("grpc://")
        if not re.fullmatch(r"([\w.-]+|\[[\da-fA-F:]+\]):\d{1,5}", self.url):
            raise SettingError(f"the server is given as {url!r}; give it as HOST:PORT, such as localhost:8001")
        self._client = self._open()
        self._calls = _Calls()
        self._request_id = ""
        self._headers: dict[str, str] = {}
        self._watch = Watch()
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        self.stages: Mapping[str, Stage] = stages(self.manifest)

    def _open(self) -> grpcclient.InferenceServerClient:
        return grpcclient.InferenceServerClient(self.url, channel_args=[*channel_options(self.url), *ANY_LENGTH])

    def _connect(self) -> None:
        try:
            grpc.channel_ready_future(self._client._channel).result(CONNECT_TIMEOUT_S)
            if not self._client.is_server_ready(client_timeout=CONNECT_TIMEOUT_S):
                raise ServerUnavailable(f"the server at {self.url} is still loading; try again in a while")
            server = self._client.get_server_metadata(client_timeout=CONNECT_TIMEOUT_S)
            config = self._client.get_model_config("generate", client_timeout=CONNECT_TIMEOUT_S).config
            parameters = {key: value.string_value for key, value in config.parameters.items()}
            self.manifest = Manifest.model_validate_json(parameters["manifest"])
            self.versions: Mapping[str, str] = {
                "bundle": self.manifest.name,
                "bundle_sha256": parameters["digest"],
                "onnxruntime": parameters["onnxruntime"],
                **{name: parameters[name] for name in PLATFORM if parameters[name]},
                "triton": server.version,
            }
        except grpc.FutureTimeoutError as error:
            raise ServerUnavailable(f"no server answers at {self.url}; start one with `foley-server run`") from error
        except (InferenceServerException, KeyError, ValidationError) as error:
            raise ServerUnavailable(
                f"what answers at {self.url} is no Triton that serves a Video-Foley bundle of this version; "
                "start one with `foley-server run`"
            ) from error

    def __enter__(self) -> "Triton":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ready(self) -> bool:
        """Whether it answers now, and is ready."""
        try:
            return bool(self._client.is_server_ready(client_timeout=CONNECT_TIMEOUT_S))
        except (InferenceServerException, ValueError):
            return False

    def silence_s(self) -> float:
        """Seconds for which some stage has answered none of the calls of `infer` on it; 0 where there are none."""
        return self._calls.silence_s()

    def for_request(self, request_id: str, headers: Mapping[str, str]) -> "Triton":
        """The same connection, whose calls carry an id for the server's logs, and headers such as a trace's."""
        other = copy.copy(self)
        other._request_id, other._headers = request_id, dict(headers)
        return other

    def under(self, watch: Watch) -> "Triton":
        """The same connection, whose calls raise `Cancelled` within a second after `watch.cancel`."""
        other = copy.copy(self)
        other._watch = watch
        return other

    def infer(self, stage: str, outputs: Sequence[str] | None = None, /, **inputs: npt.ArrayLike) -> Arrays:
        """Call a stage with arrays of the shapes in `foley.stages` (batch in front where it has one).

        All of its outputs come back, or the named ones: never name some of an ensemble's, of which 24.10 can fail.

        Raises:
            Cancelled: the watch given to `under` was cancelled.
            InvalidInput: the server refused the tensors.
            ServerUnavailable, ServerFailure: it could not be reached, or failed.
        """
        contract = self.stages[stage]
        outputs = outputs or [tensor.name for tensor in contract.outputs]
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

        def answered(result: Any, error: InferenceServerException | None) -> None:
            self._calls.end(stage)
            answers.put((result, error))

        with self._watch.cancelling(lambda: answers.put((None, Cancelled("stopped")))):
            self._calls.begin(stage)
            try:
                self._client.async_infer(
                    stage,
                    _tensors(contract, inputs),
                    answered,
                    outputs=[grpcclient.InferRequestedOutput(name) for name in outputs],
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
        """Call a decoupled stage; yields its responses. Closing the iterator cancels the work on the server.

        Raises what `infer` does.
        """
        contract = self.stages[stage]
        responses: queue.Queue[Answer] = queue.Queue()
        with (
            self._watch.cancelling(lambda: responses.put((None, Cancelled("stopped")))),
            self._open() as client,  # a client holds one stream at a time
        ):
            # not with the header triton_grpc_error, though it brings the status of errors: 24.10 crashes over it
            client.start_stream(lambda result, error: responses.put((result, error)), headers=self._headers)
            ended = False
            try:
                client.async_stream_infer(
                    stage, _tensors(contract, inputs), request_id=self._request_id, enable_empty_final_response=True
                )
                while True:
                    result, error = responses.get(timeout=CALL_TIMEOUT_S)
                    if isinstance(error, Cancelled):
                        raise error
                    if error is not None:
                        ended = True  # an error is the last word of a call
                        raise _translated(error)
                    response = result.get_response()
                    if response.outputs:
                        yield {tensor.name: result.as_numpy(tensor.name) for tensor in contract.outputs}
                    if response.parameters["triton_final_response"].bool_param:
                        ended = True
                        return
            finally:
                client.stop_stream(cancel_requests=not ended)

    def statistics(self, stage: str) -> dict[str, Any]:
        """Triton's own statistics of a served model: `inference_count`, `execution_count`, `batch_stats`, ..."""
        try:
            document = self._client.get_inference_statistics(stage, as_json=True, client_timeout=CONNECT_TIMEOUT_S)
        except InferenceServerException as error:
            raise _translated(error) from error
        found: dict[str, Any] = json.loads(json.dumps(document))["model_stats"][0]
        return found


class _Calls:
    """The calls under way, by stage, and when each stage last answered one. Safe to use from several threads.

    Calls that wait in Triton's queue are no sign of a hang while others of the same stage are answered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: Counter[str] = Counter()
        self._answered_s: dict[str, float] = {}

    def begin(self, stage: str) -> None:
        """Count a call of `stage`."""
        with self._lock:
            if not self._pending[stage]:
                self._answered_s[stage] = time.monotonic()
            self._pending[stage] += 1

    def end(self, stage: str) -> None:
        """Take note of an answer to a call of `stage`, also to one that nobody waits for any more."""
        with self._lock:
            self._pending[stage] -= 1
            self._answered_s[stage] = time.monotonic()

    def silence_s(self) -> float:
        """The longest time without an answer, of the stages that have calls."""
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
    """The result of a call, once it is there. Raises what `Triton.infer` does."""
    result, error = answers.get()
    if isinstance(error, Cancelled):
        with suppress(queue.Empty):
            answers.get(timeout=CANCEL_GRACE_S)
        raise error
    if error is not None:
        raise _translated(error) from error
    return result


def _translated(error: InferenceServerException) -> FoleyError:
    """The error of this project that stands for what the server said."""
    status, message = str(error.status()), str(error.message())
    marked = re.fullmatch("([A-Z_]+): (.*)", message, re.DOTALL)
    if error.status() is None and marked:  # on a stream, where the status goes in front of the message
        status, message = marked.groups()
    if status.endswith(("UNAVAILABLE", "CANCELLED")):  # we cancel no calls: it was closed
        return ServerUnavailable(f"the server went away ({message}); is it still running?")
    if re.search(r"Stub process '.*' is not healthy", message):  # 24.10 calls this INTERNAL
        return ServerUnavailable(f"a model's process does not answer ({message}); the server must be restarted")
    if status.endswith("INVALID_ARGUMENT"):
        return InvalidInput(message)
    return ServerFailure(f"the server failed: {message}")
