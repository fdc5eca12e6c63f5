"""The studio's HTTP against a real server; its page is in test_studio_page."""

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


def test_the_curve_is_the_pipelines_and_so_is_the_sound(server: ApiServer, triton: TritonClient, video: Path) -> None:
    sent = upload(server, video)
    *_, found = lines(requests.post(f"{server.studio}api/videos/{sent['video']}/envelope", stream=True))
    request = GenerationRequest(video, options=GenerateOptions(steps=3, seed=4))
    theirs = TritonBackend(triton).generate(request)
    np.testing.assert_allclose(found["envelope"], theirs.envelope, atol=1e-6)
    wish = {"envelope": found["envelope"], "sample_count": sent["sample_count"], "steps": 3, "seed": 4}
    *_, made = lines(requests.post(f"{server.studio}api/takes", json=wish, stream=True))
    (take,) = made["takes"]
    wave, rate = soundfile.read(BytesIO(requests.get(f"{server.studio}api/takes/{take['take']}.wav").content))
    assert (rate, len(wave)) == (16_000, sent["sample_count"])
    np.testing.assert_allclose(wave, theirs.waveform, atol=2e-4)  # 16 bits, and the curve's six digits
    assert take["recipe"]["seed"] == 4
    assert len(take["produced"]) == len(found["envelope"])


@pytest.mark.parametrize("source_audio", ["replace", "mix", "keep"])
def test_a_take_goes_into_its_video_as_everywhere_else(
    server: ApiServer, media: Path, tmp_path: Path, source_audio: SourceAudio
) -> None:
    """Muxed in the sandbox, and byte for byte what `foley.mux` makes of the same sound."""
    source = media / "fps24_with_audio.mp4"
    sent = upload(server, source)
    wish = {"envelope": [0.1] * -(-sent["sample_count"] // 160), "sample_count": sent["sample_count"], "steps": 2}
    *_, made = lines(requests.post(f"{server.studio}api/takes", json=wish))
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
def test_a_preview_has_the_pictures_that_the_networks_see(server: ApiServer, media: Path, name: str) -> None:
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
        assert np.abs(ours.astype(int) - theirs).mean() < 8  # of 255: chroma at half the size, and compression


def test_it_offers_the_examples_of_a_folder(server: ApiServer, repository: Path) -> None:
    offered = requests.get(f"{server.studio}api/about").json()["examples"]
    assert offered == ["drumstick.mp4", "steel.mp4"]
    for name in offered:
        answer = requests.get(f"{server.studio}api/examples/{name}")
        assert answer.content == (repository / "examples" / name).read_bytes()
    for other in ("kuberay.yaml", "..%2FREADME.md", "nothing"):
        assert requests.get(f"{server.studio}api/examples/{other}").status_code == 404


def test_a_new_prompt_on_the_same_curve_never_touches_the_video(server: ApiServer, triton: TritonClient) -> None:
    before = triton.statistics("video2rms")["execution_count"]
    for text in ("wood", "glass"):
        wish = {"envelope": [0.1] * 50, "text": text, "steps": 2}
        assert lines(requests.post(f"{server.studio}api/takes", json=wish))[-1]["event"] == "takes"
    assert triton.statistics("video2rms")["execution_count"] == before


def test_going_away_stops_the_work(server: ApiServer, triton: TritonClient) -> None:
    wish = {"envelope": [0.1] * 100, "steps": 1000}
    answer = requests.post(f"{server.studio}api/takes", json=wish, stream=True)
    for line in answer.iter_lines():
        if json.loads(line).get("done", 0) > 3:
            break
    answer.close()
    counts = []
    while len(counts) < 3 or counts[-1] != counts[-3]:  # no step any more
        counts.append(int(triton.statistics("denoiser")["execution_count"]))
        time.sleep(5 * TICK_S)
        assert len(counts) < 60
    assert counts[-1] - counts[0] < 100


def test_what_cannot_be_used_is_said_and_nothing_is_kept(server: ApiServer, media: Path) -> None:
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


def test_only_the_page_itself_may_ask(server: ApiServer) -> None:
    address = server.studio
    page = requests.get(address)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"(?:src|href)=\"(?!/static/|data:,)", page.text)  # nothing from other hosts
    assert requests.get(address, headers={"Host": "attacker.example"}).status_code == 403
    assert (
        requests.post(f"{address}api/takes", json={}, headers={"Origin": "http://attacker.example"}).status_code == 403
    )


def test_with_tokens_it_asks_for_one_and_counts_a_request_to_its_last_byte(
    triton: TritonClient, tmp_path: Path
) -> None:
    token = new_token()
    (tmp_path / "tokens.toml").write_text(entry("alice", token, ["generate"], 1e6, 1))
    settings = {"triton": triton.url, "studio": True, "studio_port": 0, "tokens": tmp_path / "tokens.toml"}
    with api_server(tmp_path, **settings) as server:
        assert requests.get(f"{server.studio}api/about").status_code == 401
        allowed = requests.get(f"{server.studio}api/about", headers={"Authorization": f"Bearer {token}"})
        assert allowed.json()["profiles"]["balanced"]["steps"] > 0
        assert requests.get(server.studio).status_code == 200  # the page itself asks for it
        bearer = {"Authorization": f"Bearer {token}"}
        wish = {"envelope": [0.1] * 100, "steps": 1000}
        first = requests.post(f"{server.studio}api/takes", json=wish, headers=bearer, stream=True)
        told = first.iter_lines(chunk_size=1)  # which ends the request when it is gone
        assert json.loads(next(told))["event"] in ("waiting", "progress")
        second = requests.get(f"{server.studio}api/about", headers=bearer)
        assert second.status_code == 429
        assert second.json()["error"]["retry_after_s"] > 0
        first.close()
        until = time.monotonic() + 30
        while requests.get(f"{server.studio}api/about", headers=bearer).status_code == 429:
            assert time.monotonic() < until
            time.sleep(TICK_S)


def test_a_full_server_says_when_to_come_again(triton: TritonClient, tmp_path: Path) -> None:
    settings = {"triton": triton.url, "studio": True, "studio_port": 0, "running": 1, "waiting": 0}
    with api_server(tmp_path, **settings) as server:
        wish = {"envelope": [0.1] * 100, "steps": 1000}
        with requests.post(f"{server.studio}api/takes", json=wish, stream=True) as first:
            told = first.iter_lines(chunk_size=1)
            next(told)
            second = requests.post(f"{server.studio}api/takes", json=wish)
        assert second.status_code == 429
        assert second.json()["error"]["reason"] == "OVERLOADED"
        assert int(second.headers["Retry-After"]) >= 1
