"""The studio's HTTP API on a real server; test_studio_page.py tests the page."""

import json
import re
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
import soundfile

from foley.media import read_frames
from foley.mux import SourceAudio, write_video
from foley.options import GenerateOptions
from foley_pipeline.request import GenerationRequest
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend
from foley_server.api.tokens import entry, new_token
from harness.api_server import ApiServer, api_server
from harness.settled import settled

TICK_S = 0.1


@pytest.fixture(scope="module")
def server(triton: TritonClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(
        tmp_path_factory.mktemp("studio"), triton=triton.url, studio=True, studio_port=0, upload_mib=1
    ) as server:
        yield server


def lines(answer: requests.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.iter_lines()]


def upload(server: ApiServer, video: Path) -> dict[str, Any]:
    answer = requests.post(f"{server.studio}api/videos", data=video.read_bytes())
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_envelope_and_take_match_pipeline(server: ApiServer, triton: TritonClient, video: Path) -> None:
    sent = upload(server, video)
    *_, found = lines(requests.post(f"{server.studio}api/videos/{sent['video']}/envelope", stream=True))
    seed = 2**64 - 1  # a number that JavaScript would round is sent as a text
    request = GenerationRequest(video, options=GenerateOptions(steps=3, seed=seed))
    theirs = TritonBackend(triton).generate(request)
    np.testing.assert_allclose(found["envelope"], theirs.envelope, atol=1e-6)
    body = {"envelope": found["envelope"], "sample_count": sent["sample_count"], "steps": 3, "seed": str(seed)}
    *_, made = lines(requests.post(f"{server.studio}api/takes", json=body, stream=True))
    (take,) = made["takes"]
    wave, rate = soundfile.read(BytesIO(requests.get(f"{server.studio}api/takes/{take['take']}.wav").content))
    assert (rate, len(wave)) == (16_000, sent["sample_count"])
    np.testing.assert_allclose(wave, theirs.waveform, atol=2e-4)  # 16-bit samples; six digits of the envelope
    assert take["recipe"]["seed"] == str(seed)
    assert len(take["produced"]) == len(found["envelope"])


@pytest.mark.parametrize("source_audio", ["replace", "mix", "keep"])
def test_mux_matches_write_video(server: ApiServer, media: Path, tmp_path: Path, source_audio: SourceAudio) -> None:
    """Muxed in the sandbox, byte-identical to the output of `foley.mux`."""
    source = media / "fps24_with_audio.mp4"
    sent = upload(server, source)
    body = {"envelope": [0.1] * -(-sent["sample_count"] // 160), "sample_count": sent["sample_count"], "steps": 2}
    *_, made = lines(requests.post(f"{server.studio}api/takes", json=body))
    wav = requests.get(f"{server.studio}api/takes/{made['takes'][0]['take']}.wav").content
    wave, rate = soundfile.read(BytesIO(wav), dtype="float32")
    address = f"{server.studio}api/videos/{sent['video']}/mux"
    answer = requests.post(address, data=wav, params={"source_audio": source_audio})
    assert answer.status_code == 200
    write_video(source, wave, rate, tmp_path / "expected.mp4", source_audio)
    assert answer.content == (tmp_path / "expected.mp4").read_bytes()
    assert requests.post(address, data=wav, params={"source_audio": "/etc"}).status_code == 400
    assert requests.post(address, data=b"no sound").status_code == 400


@pytest.mark.parametrize("name", ["mjpeg.mov", "animated.gif", "odd_size_161x121_yuv444.mkv", "vfr.mp4"])
def test_preview_has_the_frames_of_the_networks(server: ApiServer, media: Path, name: str) -> None:
    sent = upload(server, media / name)
    answer = requests.get(f"{server.studio}api/videos/{sent['video']}/preview.mp4")
    assert answer.headers["content-type"] == "video/mp4"
    seen = read_frames(media / name)
    with av.open(BytesIO(answer.content)) as made:
        (stream,) = made.streams
        assert (stream.codec_context.name, stream.average_rate, stream.start_time) == ("h264", 30, 0)
        shape = stream.width / stream.height * (stream.sample_aspect_ratio or 1)
        assert shape == pytest.approx(seen.info.width / seen.info.height, rel=0.01)
        shown = [frame.to_ndarray(format="rgb24") for frame in made.decode(video=0)]
    assert len(shown) == len(seen)
    for ours, theirs in zip(shown, seen, strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 8  # of 255: chroma subsampling and compression


def test_examples_are_listed_and_served(server: ApiServer, repository: Path) -> None:
    examples = requests.get(f"{server.studio}api/about").json()["examples"]
    assert examples == ["drumstick.mp4", "steel.mp4"]
    for name in examples:
        answer = requests.get(f"{server.studio}api/examples/{name}")
        assert answer.content == (repository / "examples" / name).read_bytes()
    for other in ("kuberay.yaml", "..%2FREADME.md", "nothing"):
        assert requests.get(f"{server.studio}api/examples/{other}").status_code == 404


def test_take_from_envelope_does_not_run_video2rms(server: ApiServer, triton: TritonClient) -> None:
    before = settled(lambda: triton.statistics("video2rms")["execution_count"])
    for text in ("wood", "glass"):
        body = {"envelope": [0.1] * 50, "text": text, "steps": 2}
        assert lines(requests.post(f"{server.studio}api/takes", json=body))[-1]["event"] == "takes"
    assert settled(lambda: triton.statistics("video2rms")["execution_count"]) == before


def test_closed_connection_stops_work(server: ApiServer, triton: TritonClient) -> None:
    body = {"envelope": [0.1] * 100, "steps": 1000}
    answer = requests.post(f"{server.studio}api/takes", json=body, stream=True)
    for line in answer.iter_lines():
        if json.loads(line).get("done", 0) > 3:
            break
    answer.close()
    counts = []
    while len(counts) < 3 or counts[-1] != counts[-3]:  # until the count is stable
        counts.append(int(triton.statistics("denoiser")["execution_count"]))
        time.sleep(5 * TICK_S)
        assert len(counts) < 60
    assert counts[-1] - counts[0] < 100


def test_invalid_requests_are_rejected(server: ApiServer, media: Path) -> None:
    def refused(path: str, status: int, words: str, **options: Any) -> None:
        answer = requests.request(options.pop("method", "POST"), f"{server.studio}{path}", **options)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]["message"]

    refused("api/videos", 400, "not a video", data=Path(__file__).read_bytes())
    refused("api/videos", 400, "empty", data=b"")
    refused("api/videos", 413, "1 MiB", data=bytes(2**20 + 1))
    refused("api/recordings", 400, "", data=b"nonsense")
    refused("api/videos/nothing/envelope", 404, "send it again")
    refused("api/videos/nothing/preview.mp4", 404, "send it again", method="GET")
    refused("api/takes", 404, "send it again", json={"envelope": [0.1], "audio": "nothing"})
    refused("api/takes", 400, "not JSON", data=b"{")
    refused("api/takes", 400, "steps", json={"envelope": [0.1], "steps": 0})
    refused("api/takes", 400, "no option 'path'", json={"envelope": [0.1], "path": "/etc/passwd"})
    refused("api/takes", 400, "", json={"envelope": [-1.0] * 10})
    refused("api/takes", 413, "120 s", json={"envelope": [0.1] * 12_001})
    for hostile in sorted(media.glob("*.*")):
        answer = requests.post(f"{server.studio}api/videos", data=hostile.read_bytes()[: 2**20])
        assert answer.status_code in (201, 400, 413), hostile.name


def test_only_same_origin_requests_are_accepted(server: ApiServer) -> None:
    address = server.studio
    page = requests.get(address)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"(?:src|href)=\"(?!/static/|data:,)", page.text)  # no resources from other hosts
    assert requests.get(address, headers={"Host": "attacker.example"}).status_code == 403
    assert (
        requests.post(f"{address}api/takes", json={}, headers={"Origin": "http://attacker.example"}).status_code == 403
    )


def test_token_is_required_and_concurrency_limited_until_response_ends(triton: TritonClient, tmp_path: Path) -> None:
    token = new_token()
    (tmp_path / "tokens.toml").write_text(entry("alice", token, ["generate"], 1e6, 1))
    settings = {"triton": triton.url, "studio": True, "studio_port": 0, "tokens": tmp_path / "tokens.toml"}
    with api_server(tmp_path, **settings) as server:
        assert requests.get(f"{server.studio}api/about").status_code == 401
        allowed = requests.get(f"{server.studio}api/about", headers={"Authorization": f"Bearer {token}"})
        assert allowed.json()["profiles"]["balanced"]["steps"] > 0
        assert requests.get(server.studio).status_code == 200  # the page itself needs no token
        bearer = {"Authorization": f"Bearer {token}"}
        body = {"envelope": [0.1] * 100, "steps": 1000}
        first = requests.post(f"{server.studio}api/takes", json=body, headers=bearer, stream=True)
        events = first.iter_lines(chunk_size=1)  # closing the response ends the request
        assert json.loads(next(events))["event"] in ("waiting", "progress")
        second = requests.get(f"{server.studio}api/about", headers=bearer)
        assert second.status_code == 429
        assert second.json()["error"]["retry_after_s"] > 0
        first.close()
        until = time.monotonic() + 30
        while requests.get(f"{server.studio}api/about", headers=bearer).status_code == 429:
            assert time.monotonic() < until
            time.sleep(TICK_S)


def test_full_server_responds_with_retry_after(triton: TritonClient, tmp_path: Path) -> None:
    settings = {"triton": triton.url, "studio": True, "studio_port": 0, "running": 1, "waiting": 0}
    with api_server(tmp_path, **settings) as server:
        body = {"envelope": [0.1] * 100, "steps": 1000}
        with requests.post(f"{server.studio}api/takes", json=body, stream=True) as first:
            events = first.iter_lines(chunk_size=1)
            next(events)
            second = requests.post(f"{server.studio}api/takes", json=body)
        assert second.status_code == 429
        assert second.json()["error"]["reason"] == "OVERLOADED"
        assert int(second.headers["Retry-After"]) >= 1
