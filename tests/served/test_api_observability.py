"""Observability: traces that continue into Triton's spans, metrics, health, and JSON logs without secrets."""

import base64
import gzip
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
import yaml
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from foley.errors import FoleyError
from foley.options import GenerateOptions
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.api.messages import request_to_proto
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_server.api.tokens import entry, new_token
from foley_server.launcher.triton import claim_port
from harness.api_server import ApiServer, api_server

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
ARGUMENTS = {"envelope": np.full(100, 0.1, np.float32), "text": "a very secret sound", "steps": 3}


@dataclass
class Collector:
    """An OTLP/HTTP receiver."""

    url: str
    spans: list[tuple[str, Span]] = field(default_factory=list)


def request(content: bytes, content_type: str) -> ExportTraceServiceRequest:
    """Parse an export request: protobuf from Python; OTLP JSON, with hexadecimal ids, from Triton."""
    if content_type == "application/x-protobuf":
        return ExportTraceServiceRequest.FromString(content)
    ids = re.compile(r'("(?:traceId|spanId|parentSpanId)":)"([0-9a-f]*)"')
    recoded = ids.sub(
        lambda found: f'{found[1]}"{base64.b64encode(bytes.fromhex(found[2])).decode()}"', content.decode()
    )
    return json_format.Parse(recoded, ExportTraceServiceRequest(), ignore_unknown_fields=True)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            for resource in request(content, self.headers["Content-Type"]).resource_spans:
                (service,) = [
                    one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
                ]
                found.spans.extend((service, span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    found = Collector(f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()


@pytest.fixture(scope="module")
def token() -> str:
    return new_token()


@pytest.fixture(scope="module")
def server(
    collector: Collector, token: str, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    """A server that traces every call and requires the token."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "tokens.toml").write_text(entry("alice", token, ["generate"], 1e6, 10))
    with api_server(folder, bundle=tiny_bundle, trace=collector.url, tokens=folder / "tokens.toml") as server:
        yield server


def steps(collector: Collector, trace_id: str) -> list[Span]:
    """Return the spans of the denoising steps of a trace."""
    return [span for _, span in collector.spans if span.trace_id.hex() == trace_id and span.name == "denoiser"]


@pytest.mark.long
def test_unsampled_calls_are_not_traced_by_triton(collector: Collector, tiny_bundle: Path, tmp_path: Path) -> None:
    settings = {"bundle": tiny_bundle, "trace": collector.url, "trace_share": 0}
    before = list(collector.spans)
    with api_server(tmp_path, **settings) as server, server.client() as client:
        client.generate(**ARGUMENTS)
    assert collector.spans == before


def test_trace_continues_into_triton_and_log_has_no_secrets(
    collector: Collector, server: ApiServer, token: str
) -> None:
    trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    metadata = [("traceparent", f"00-{trace_id}-{caller}-01"), ("authorization", f"Bearer {token}")]
    options = GenerateOptions(text=ARGUMENTS["text"], steps=ARGUMENTS["steps"])
    message = request_to_proto(
        GenerationRequest(envelope=EnvelopeInput(ARGUMENTS["envelope"], 16_000), options=options)
    )
    with grpc.insecure_channel(server.grpc) as channel:
        call = foley_pb2_grpc.FoleyServiceStub(channel).Generate(
            iter([pb.GenerateRequest(options=message)]), metadata=metadata, timeout=60
        )
        list(call)
        (request_id,) = (value for key, value in call.initial_metadata() if key == "x-request-id")
    with server.client("wrong") as client, pytest.raises(FoleyError):
        client.generate(**ARGUMENTS)
    log = server.log

    def exported() -> tuple[list[tuple[str, Span]], list[Span]]:
        """All spans of the trace, and its root."""
        ours = [(service, span) for service, span in collector.spans if span.trace_id.hex() == trace_id]
        return ours, [span for _, span in ours if span.parent_span_id.hex() == caller]

    until = time.monotonic() + 20
    while not (steps(collector, trace_id) and exported()[1]) and time.monotonic() < until:
        time.sleep(0.1)
    ours, (root,) = exported()
    assert root.name == "foley.v1.FoleyService/Generate"
    assert request_id in str(root.attributes)
    assert [span.parent_span_id for _, span in ours if span.name == "generate"] == [root.span_id]  # the job
    tritons = [span for service, span in ours if service != "foley-api"]
    below = {root.span_id}
    while grown := {span.span_id for _, span in ours if span.parent_span_id in below} - below:
        below |= grown
    assert {span.span_id for span in tritons} <= below
    assert steps(collector, trace_id)  # Triton 24.10 does not trace every call
    assert "a very secret sound" not in str(collector.spans)

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (about,) = [line for line in lines if line["request_id"] == request_id]
    assert (about["method"], about["code"]) == ("/foley.v1.FoleyService/Generate", "OK")
    assert about["seconds"] > 0
    assert {"time", "level", "logger", "message"} <= set(about)
    for secret in (token, "a very secret sound", "wrong"):
        assert secret not in log.read_text()


def test_probes_respond_before_triton_does(tmp_path: Path) -> None:
    port = claim_port("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # in place of a Triton that is still starting
        triton = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [BIN / "foley-server", "api", f"--triton={triton}", "--port=0", f"--metrics-port={port}"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 60
            while (live := probe(f"http://127.0.0.1:{port}/live")) is None and time.monotonic() < until:
                time.sleep(0.05)
            assert live == 200
            assert probe(f"http://127.0.0.1:{port}/ready") == 503
            assert probe(f"http://127.0.0.1:{port}/metrics") == 200
        finally:
            process.kill()
            process.communicate()


def probe(url: str) -> int | None:
    """Return the status of a response; None if there is none yet."""
    try:
        with urlopen(url, timeout=20) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
    except URLError:
        return None


def test_live_says_whether_the_event_loop_responds_and_the_health_command_checks_it(server: ApiServer) -> None:
    url = f"http://{server.metrics}/live"
    health = [BIN / "foley-server", "health"]
    assert subprocess.run([*health, url], capture_output=True, check=False).returncode == 0
    for other, word in ((f"http://{server.metrics}/none", "404"), ("http://127.0.0.1:1/live", "does not respond")):
        bad = subprocess.run([*health, other], capture_output=True, text=True, check=False)
        assert bad.returncode == 2
        assert word in bad.stderr
        assert "Traceback" not in bad.stderr


def test_metrics_respond_while_triton_hangs(server: ApiServer) -> None:
    triton = server.triton()
    triton.suspend()
    try:
        with urlopen(f"http://{server.metrics}/metrics", timeout=20) as page:
            content = page.read().decode()
        assert "process_open_fds" in content
        assert "nv_inference" not in content
        assert probe(f"http://{server.metrics}/live") == 200
    finally:
        triton.resume()


GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes"}  # documented by Triton; absent without a GPU


def test_dashboard_queries_match_metrics_and_health_command_reports_state(
    server: ApiServer, token: str, repository: Path
) -> None:
    with server.client(token) as client:
        client.generate(**ARGUMENTS)
    with urlopen(f"http://{server.metrics}/metrics") as page:
        lines = [line for line in page.read().decode().splitlines() if not line.startswith("#")]
    with urlopen(f"http://{server.metrics}/ready") as answer:
        assert answer.status == 200
    health = [BIN / "foley-server", "health"]
    assert subprocess.run([*health, server.grpc], capture_output=True, check=False).returncode == 0
    triton = server.triton().cmdline()
    grpc_port = next(word.partition("=")[2] for word in triton if word.startswith("--grpc-port"))
    response = subprocess.run([*health, f"127.0.0.1:{grpc_port}"], capture_output=True, text=True, check=False)
    assert response.stdout == f"127.0.0.1:{grpc_port} is serving\n"
    free = f"127.0.0.1:{claim_port('127.0.0.1', 0)}"
    unreachable = subprocess.run([*health, free], capture_output=True, text=True, check=False)
    assert unreachable.returncode == 2
    assert "does not respond" in unreachable.stderr

    # not parsed with prometheus_client, which renames Triton's counters
    samples = {
        (re.split(r"[{ ]", line)[0], label, value)
        for line in lines
        for label, value in (*re.findall(r'(\w+)="([^"]*)"', line), ("", ""))
    }
    shown = {name for name, _, _ in samples}
    assert {("foley_api_jobs", "state", "queued"), ("foley_api_build_info", "bundle", "tiny")} <= samples
    board = json.loads((repository / "deploy" / "grafana" / "foley.json").read_text())
    for query in (target["expr"] for panel in board["panels"] for target in panel["targets"]):
        names = set(re.findall(r"\b(?:foley_api|nv|process)_\w+", query))
        assert names
        assert names - GPU_METRICS <= shown
        for label, operator, value in re.findall(r'(\w+)(=~?)"([^"]*)"', query):
            there = {found for name, key, found in samples if name in names and key == label}
            assert any(re.fullmatch(value, one) if operator == "=~" else value == one for one in there), query


def test_alerts_and_autoscalers_query_metrics_of_the_server(server: ApiServer, repository: Path) -> None:
    with urlopen(f"http://{server.metrics}/metrics") as page:
        exported = set(re.findall(r"^# TYPE (\S+) (?:counter|gauge)$", page.read().decode(), re.MULTILINE))
    chart = repository / "deploy" / "chart"
    queries = [rule["expr"] for rule in yaml.safe_load((chart / "alerts.yml").read_text())["groups"][0]["rules"]]
    queries.append((chart / "templates" / "autoscaling.yaml").read_text())
    for query in queries:
        names = set(re.findall(r"\bfoley_api_\w+", query))
        assert names
        assert names <= exported
