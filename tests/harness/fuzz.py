"""Fuzzer of the API: damaged media and malformed requests, each reproducible from its number.

Every call must end within its deadline with an expected status, and the server must keep serving and leak nothing.
"""

import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.longrunning import operations_pb2

from foley_client.channel import Channel
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import CHUNK_BYTES
from harness import leaks
from harness.api_server import ApiServer
from harness.mutation import mutate, seed_files

CALLERS = 4
TIMEOUT_S = 60.0  # of a call; a call that takes longer counts as hanging
ALWAYS = ("OK", "INVALID_ARGUMENT")
METHODS = {
    "/foley.v1.FoleyService/Generate": pb.GenerateRequest,
    "/foley.v1.FoleyService/PredictEnvelope": pb.PredictEnvelopeRequest,
    "/foley.v1.FoleyService/EmbedPrompt": pb.EmbedPromptRequest,
    "/foley.v1.FoleyService/CreateGeneration": pb.CreateGenerationRequest,
    "/foley.v1.FoleyService/WatchGeneration": pb.WatchGenerationRequest,
    "/google.longrunning.Operations/GetOperation": operations_pb2.GetOperationRequest,
    "/google.longrunning.Operations/ListOperations": operations_pb2.ListOperationsRequest,
    "/google.longrunning.Operations/CancelOperation": operations_pb2.CancelOperationRequest,
    "/google.longrunning.Operations/DeleteOperation": operations_pb2.DeleteOperationRequest,
}


@dataclass
class Outcome:
    """Result of a run.

    Attributes:
        codes: Number of cases by kind and status.
        faults: One sentence for each violated guarantee, with the number of the case.
    """

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Case:
    """One call.

    Attributes:
        kind: Description of the kind of case.
        method: Full name of the gRPC method.
        messages: Returns the serialised request messages.
        allowed: Names of the expected statuses.
        timeout_s: Deadline of the call in seconds.
        cancel_after: Index of the response at which the caller cancels; None: never.
    """

    kind: str
    method: str
    messages: Callable[[], Iterator[bytes]]
    allowed: tuple[str, ...] = ALWAYS
    timeout_s: float = TIMEOUT_S
    cancel_after: int | None = None


def fuzz(server: ApiServer, folder: Path, count: int, seed: int, report: Callable[[str], None]) -> Outcome:
    """Send `count` cases to `server`, `CALLERS` at a time.

    Args:
        server: The server.
        folder: Folder for the intact media files from which the cases are made.
        count: Number of cases.
        seed: Number of the first case.
        report: Called with progress messages.
    """
    outcome = Outcome()
    files = list(seed_files(folder).values())
    with Channel(f"grpc://{server.grpc}").open() as channel, ThreadPoolExecutor(CALLERS) as pool:

        def one(number: int) -> tuple[str, str]:
            rng = random.Random(number)
            if rng.random() < 0.03:
                kind, code = "bytes that are no HTTP/2", _garbage(server.grpc, rng)
            else:
                case = _case(rng, files)
                kind, code = case.kind, _call(channel, case)
                if code not in case.allowed:
                    outcome.faults.append(f"case {number} ({case.kind}, {case.method}): {code}")
            return kind, code

        warm_up = min(100, count // 4)  # for one-time allocations, before the baseline
        outcome.codes.update(pool.map(one, range(seed, seed + warm_up)))
        _good_request(server)
        before = leaks.settled(server)
        for done, ended in enumerate(pool.map(one, range(seed + warm_up, seed + count)), warm_up + 1):
            outcome.codes[ended] += 1
            if done % 250 == 0:
                report(f"{done} of {count}")
    outcome.faults += _server_faults(server, before)
    return outcome


def _server_faults(server: ApiServer, before: leaks.Snapshot) -> list[str]:
    """Return one sentence for each fault of the server after the run."""
    if server.process.poll() is not None:
        return [f"the server ended with exit code {server.process.returncode}"]
    faults = []
    with server.client() as client:
        if not client.serving():
            faults.append("the server does not serve")
    _good_request(server)
    faults += leaks.leaks(before, leaks.settled(server, before))
    if "Traceback" in server.log.read_text():
        faults.append(f"there is a traceback in {server.log}")
    return faults


def _good_request(server: ApiServer) -> None:
    with server.client(max_retries=2) as client:
        client.embed_prompt("glass")


def _call(channel: grpc.Channel, case: _Case) -> str:
    """Make a call and return the name of its status, or "a traceback" if the status details contain one."""
    call = channel.stream_stream(case.method)(case.messages(), timeout=case.timeout_s)
    try:
        for number, _ in enumerate(call):
            if case.cancel_after is not None and number >= case.cancel_after:
                call.cancel()
        return "OK"
    except grpc.RpcError as error:
        if "Traceback" in (error.details() or ""):
            return "a traceback"
        return str(error.code().name)


def _case(rng: random.Random, files: list[bytes]) -> _Case:
    kinds = (_damaged_video, _damaged_sound, _damaged_generate, _order, _mutated_message, _random_bytes, _invalid_calls)
    return rng.choices(kinds, weights=(30, 12, 10, 12, 20, 8, 8))[0](rng, files)


def _damaged_video(rng: random.Random, files: list[bytes]) -> _Case:
    return _upload(
        "a damaged video",
        "/foley.v1.FoleyService/PredictEnvelope",
        pb.PredictEnvelopeRequest(video=pb.VideoSource()),
        pb.PredictEnvelopeRequest,
        pb.FILE_KIND_VIDEO,
        mutate(rng, files),
    )


def _damaged_sound(rng: random.Random, files: list[bytes]) -> _Case:
    return _upload(
        "a damaged recording",
        "/foley.v1.FoleyService/EmbedPrompt",
        pb.EmbedPromptRequest(prompt=pb.Prompt(audio=pb.AudioPrompt())),
        pb.EmbedPromptRequest,
        pb.FILE_KIND_AUDIO_PROMPT,
        mutate(rng, files),
    )


def _damaged_generate(rng: random.Random, files: list[bytes]) -> _Case:
    options = pb.GenerateOptions(prompt=pb.Prompt(text="x"), video=pb.VideoSource(), sampling=pb.Sampling(steps=1))
    case = _upload(
        "a damaged video to make sound for",
        "/foley.v1.FoleyService/Generate",
        pb.GenerateRequest(options=options),
        pb.GenerateRequest,
        pb.FILE_KIND_VIDEO,
        mutate(rng, files),
    )
    if rng.random() < 0.3:
        return _Case(case.kind, case.method, case.messages, (*ALWAYS, "CANCELLED"), cancel_after=rng.randrange(3))
    return case


def _upload(kind: str, method: str, first: Any, message: Any, file_kind: int, content: bytes) -> _Case:
    def messages() -> Iterator[bytes]:
        yield first.SerializeToString()
        for start in range(0, len(content), CHUNK_BYTES):
            chunk = pb.FileChunk(kind=file_kind, data=content[start : start + CHUNK_BYTES])  # type: ignore[arg-type]
            yield message(chunk=chunk).SerializeToString()

    return _Case(kind, method, messages)


def _order(rng: random.Random, files: list[bytes]) -> _Case:
    """Return a case with valid messages in a random order, or with no messages."""
    options = pb.GenerateOptions(prompt=pb.Prompt(audio=pb.AudioPrompt()), video=pb.VideoSource())
    parts = [
        pb.GenerateRequest(options=options),
        pb.GenerateRequest(chunk=pb.FileChunk(kind=pb.FILE_KIND_VIDEO, data=b"x" * rng.randrange(2_000_000))),
        pb.GenerateRequest(chunk=pb.FileChunk(kind=pb.FILE_KIND_AUDIO_PROMPT, data=b"x")),
        pb.GenerateRequest(chunk=pb.FileChunk(kind=rng.randrange(-5, 99))),  # type: ignore[arg-type]
        pb.GenerateRequest(),
    ]
    chosen = [part.SerializeToString() for part in rng.choices(parts, k=rng.randrange(6))]
    return _Case("messages out of order", "/foley.v1.FoleyService/Generate", lambda: iter(chosen))


def _mutated_message(rng: random.Random, files: list[bytes]) -> _Case:
    """Return a case with a valid message of which one to five bytes are changed."""
    method = rng.choice(list(METHODS))
    good: Any = {
        "Generate": pb.GenerateRequest(options=_good_options()),
        "PredictEnvelope": pb.PredictEnvelopeRequest(video=pb.VideoSource(flow=pb.OPTICAL_FLOW_DEFAULT)),
        "EmbedPrompt": pb.EmbedPromptRequest(prompt=pb.Prompt(text="a", negative_text="b")),
        "CreateGeneration": pb.CreateGenerationRequest(
            options=pb.CreateGenerationOptions(
                request_id="00000000-0000-0000-0000-000000000000", options=_good_options()
            )
        ),
    }.get(method.rsplit("/", 1)[1], pb.WatchGenerationRequest(name="operations/0123456789abcdef"))
    content = bytearray(good.SerializeToString())
    for _ in range(rng.randrange(1, 6)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return _Case(
        "a message with changed bytes",
        method,
        lambda: iter([bytes(content)]),
        (*ALWAYS, "NOT_FOUND", "ALREADY_EXISTS", "CANCELLED", "RESOURCE_EXHAUSTED"),
        cancel_after=20,  # the changed message may request a thousand steps
    )


def _good_options() -> pb.GenerateOptions:
    return pb.GenerateOptions(
        prompt=pb.Prompt(text="glass", negative_text="wood"),
        sampling=pb.Sampling(steps=2, guidance=2.0, seed=3, guidance_interval=pb.NoiseInterval(low=1, high=9)),
        envelope=pb.EnvelopeSource(envelope=pb.Envelope(rms=[0.1] * 30), sample_count=4_800),
        variations=1,
    )


def _random_bytes(rng: random.Random, files: list[bytes]) -> _Case:
    content = rng.randbytes(rng.choice((0, 1, 10, 1_000, 100_000)))
    allowed = (*ALWAYS, "NOT_FOUND")
    return _Case("random bytes", rng.choice(list(METHODS)), lambda: iter([content]), allowed)


def _invalid_calls(rng: random.Random, files: list[bytes]) -> _Case:
    """Return a case that the SDK cannot produce."""
    huge = pb.GenerateRequest(chunk=pb.FileChunk(kind=pb.FILE_KIND_VIDEO, data=bytes(5 << 20))).SerializeToString()
    generate = "/foley.v1.FoleyService/Generate"
    good = pb.GenerateRequest(options=_good_options()).SerializeToString()
    late = (*ALWAYS, "DEADLINE_EXCEEDED", "CANCELLED")
    return rng.choice(
        (
            _Case("an unknown method", f"{generate}{rng.randrange(99)}", lambda: iter([b""]), ("UNIMPLEMENTED",)),
            _Case("an unknown service", "/grpc.admin.v1/Shutdown", lambda: iter([b""]), ("UNIMPLEMENTED",)),
            _Case("a message over the limit", generate, lambda: iter([huge]), ("RESOURCE_EXHAUSTED",)),
            _Case("no message", rng.choice(list(METHODS)), lambda: iter([])),
            _Case("a deadline that passes", generate, lambda: iter([good]), late, rng.uniform(0.001, 0.1)),
        )
    )


def _garbage(address: str, rng: random.Random) -> str:
    """Send bytes that are not HTTP/2, or that turn invalid after the HTTP/2 preface; return the status "closed"."""
    host, port = address.rsplit(":", 1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    content = rng.choice((b"", preface, b"GET / HTTP/1.1\r\n\r\n")) + rng.randbytes(rng.randrange(5_000))
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        try:
            raw.sendall(content)
            raw.settimeout(0.2)
            while raw.recv(65536):
                pass
        except OSError:
            pass
    return "closed"
