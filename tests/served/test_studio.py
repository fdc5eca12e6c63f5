"""The studio: its HTTP against a real server, and its page in a real Chromium."""

import json
import re
import shutil
import subprocess
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
from playwright.sync_api import Page, expect, sync_playwright

from foley import envelope_file
from foley.mux import SourceAudio, write_video
from foley_bench.api_server import ApiServer, api_server
from foley_client import Foley, Job, Triton, Watch
from foley_pipeline.job import run
from foley_server.api.tokens import entry, new_token

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOURCES = Path(__file__).resolve().parents[2] / "server" / "studio"
AXE = SOURCES / "node_modules" / "axe-core" / "axe.min.js"
TICK_S = 0.1


@pytest.fixture(scope="module")
def server(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
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


def test_the_curve_is_the_pipelines_and_so_is_the_sound(server: ApiServer, triton: Triton, video: Path) -> None:
    sent = upload(server, video)
    *_, found = lines(requests.post(f"{server.studio}api/videos/{sent['video']}/envelope", stream=True))
    theirs = run(Foley(triton), Job(video, sampling={"steps": 3, "seed": 4}), Watch())
    np.testing.assert_allclose(found["envelope"], theirs.envelope, atol=1e-6)
    wish = {"envelope": found["envelope"], "sample_count": sent["sample_count"], "steps": 3, "seed": 4}
    *_, made = lines(requests.post(f"{server.studio}api/takes", json=wish, stream=True))
    (take,) = made["takes"]
    wave, rate = soundfile.read(BytesIO(requests.get(f"{server.studio}api/takes/{take['take']}.wav").content))
    assert (rate, len(wave)) == (16_000, sent["sample_count"])
    np.testing.assert_allclose(wave, theirs.takes[0].waveform, atol=2e-4)  # 16 bits, and the curve's six digits
    assert take["recipe"]["seed"] == 4
    assert len(take["produced"]) == len(found["envelope"])


@pytest.mark.parametrize("source_audio", ["replace", "mix", "keep"])
def test_a_take_goes_into_its_video_as_everywhere_else(
    server: ApiServer, media: Path, tmp_path: Path, source_audio: SourceAudio
) -> None:
    """Muxed in the sandbox, and byte for byte what `foley.mux` makes of the same sound."""
    source = media / "fps24_with_audio.mp4"
    sent = upload(server, source)
    frame_count = -(-sent["sample_count"] // 160)
    wish = {"envelope": [0.1] * frame_count, **{key: sent[key] for key in ("sample_count", "video")}, "steps": 2}
    *_, made = lines(requests.post(f"{server.studio}api/takes", json=wish))
    address = f"{server.studio}api/takes/{made['takes'][0]['take']}"
    wave, rate = soundfile.read(BytesIO(requests.get(f"{address}.wav").content), dtype="float32")
    answer = requests.get(f"{address}.mp4", params={"source_audio": source_audio})
    assert answer.status_code == 200
    write_video(source, wave, rate, tmp_path / "expected.mp4", source_audio)
    assert answer.content == (tmp_path / "expected.mp4").read_bytes()
    assert requests.get(f"{address}.mp4", params={"source_audio": "/etc"}).status_code == 400


def test_a_new_prompt_on_the_same_curve_never_touches_the_video(server: ApiServer, triton: Triton) -> None:
    before = triton.statistics("video2rms")["execution_count"]
    for text in ("wood", "glass"):
        wish = {"envelope": [0.1] * 50, "text": text, "steps": 2}
        assert lines(requests.post(f"{server.studio}api/takes", json=wish))[-1]["event"] == "takes"
    assert triton.statistics("video2rms")["execution_count"] == before


def test_going_away_stops_the_work(server: ApiServer, triton: Triton) -> None:
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

    refused("api/videos", 400, "not a video", data=(SOURCES.parents[1] / "README.md").read_bytes())
    refused("api/videos", 400, "empty", data=b"")
    refused("api/videos", 413, "1 MiB", data=bytes(2**20 + 1))
    refused("api/recordings", 400, "", data=b"nonsense")
    refused("api/videos/nothing/envelope", 404, "send it again")
    refused("api/takes", 400, "no JSON", data=b"{")
    refused("api/takes", 400, "steps", json={"envelope": [0.1], "steps": 0})
    refused("api/takes", 400, "Extra inputs", json={"envelope": [0.1], "path": "/etc/passwd"})
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


def test_with_tokens_it_asks_for_one(triton: Triton, tmp_path: Path) -> None:
    token = new_token()
    (tmp_path / "tokens.toml").write_text(entry("alice", token, ["generate"], 1e6, 10))
    settings = {"triton": triton.url, "studio": True, "studio_port": 0, "tokens": tmp_path / "tokens.toml"}
    with api_server(tmp_path, **settings) as server:
        assert requests.get(f"{server.studio}api/about").status_code == 401
        allowed = requests.get(f"{server.studio}api/about", headers={"Authorization": f"Bearer {token}"})
        assert allowed.json()["steps"] > 0
        assert requests.get(server.studio).status_code == 200  # the page itself asks for it


@pytest.mark.skipif(not (SOURCES / "node_modules").is_dir(), reason="npm ci in server/studio/ brings what builds it")
def test_what_is_shipped_is_what_the_sources_make(tmp_path: Path) -> None:
    subprocess.run(["npx", "tsc", "--noEmit"], cwd=SOURCES, check=True)
    shutil.copytree(SOURCES, tmp_path / "studio", ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "studio" / "node_modules").symlink_to(SOURCES / "node_modules")
    (tmp_path / "foley_server" / "studio" / "static").mkdir(parents=True)
    subprocess.run(["npm", "run", "--silent", "build"], cwd=tmp_path / "studio", check=True, capture_output=True)
    shipped = SOURCES.parent / "foley_server" / "studio" / "static"
    for made in (tmp_path / "foley_server" / "studio" / "static").iterdir():
        assert made.read_bytes() == (shipped / made.name).read_bytes(), f"{made.name} is old: npm run build"


@pytest.fixture(scope="module")
def page(server: ApiServer) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here; Debian's package is called chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.problems = []  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.problems.append(str(error)))  # type: ignore[attr-defined]
        page.on("console", lambda told: told.type == "error" and page.problems.append(told.text))  # type: ignore[attr-defined]
        yield page
        browser.close()


def test_a_designer_sees_changes_and_hears_the_curve(
    page: Page, server: ApiServer, video: Path, tmp_path: Path
) -> None:
    page.goto(server.studio)
    expect(page.get_by_role("heading", name="Drop a silent video here")).to_be_visible()
    page.set_input_files("#file", video)
    expect(page.get_by_label("What it is", exact=True)).to_be_focused(timeout=30_000)  # the curve is there
    box = page.locator("#timeline").bounding_box()
    assert box

    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.3 * box["height"], steps=5)
    page.mouse.up()
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save the curve").click()
    drawn = json.loads(Path(saving.value.path()).read_text())["rms"]
    middle = drawn[round(0.25 * len(drawn)) : round(0.55 * len(drawn))]
    assert min(middle) == pytest.approx(max(middle), rel=0.02)
    assert min(middle) > 0

    page.get_by_label("What it is", exact=True).fill("wood")
    page.get_by_label("Steps").fill("4")
    page.get_by_role("spinbutton", name="Takes").fill("2")
    page.get_by_role("button", name="Make sound").click()
    expect(page.locator("#list li")).to_have_count(2, timeout=30_000)
    with page.expect_download() as saving:
        page.locator("#list li").first.get_by_role("button", name="WAV").click()
    wave, rate = soundfile.read(saving.value.path())
    assert len(wave) == pytest.approx(1.5 * rate, rel=0.05)
    with page.expect_download() as saving:
        page.locator("#list li").nth(1).get_by_role("button", name="Recipe").click()
    recipe = json.loads(Path(saving.value.path()).read_text())
    assert recipe["seed"] == 1
    np.testing.assert_allclose(recipe["envelope"], drawn, atol=1e-6)

    with page.expect_download() as saving:
        page.locator("#list li").first.get_by_role("button", name="Video").click()
    with av.open(saving.value.path()) as made:
        assert {stream.type for stream in made.streams} == {"video", "audio"}
    with page.expect_download() as saving:
        page.locator("#list li").first.get_by_role("button", name="Command").click()
    np.testing.assert_allclose(
        envelope_file.read(Path(saving.value.path()).rename(tmp_path / "c.json")), drawn, atol=1e-6
    )
    expect(page.locator("#status")).to_contain_text("foley generate 'falling.mp4' --envelope")

    page.keyboard.press("Escape")
    page.locator("#timeline").focus()
    page.keyboard.press("2")  # A/B: the other take
    expect(page.locator("#list li").nth(1)).to_have_attribute("aria-current", "true")
    page.keyboard.press("Control+z")
    expect(page.get_by_role("button", name="Redo")).to_be_enabled()
    assert page.problems == []  # type: ignore[attr-defined]


def test_cancelling_says_so_and_leaves_everything(page: Page, server: ApiServer) -> None:
    page.get_by_label("Steps").fill("1000")
    page.get_by_role("button", name="Make sound").click()
    expect(page.locator("#status")).to_contain_text("of 2000", timeout=30_000)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#list li")).to_have_count(2)
    expect(page.get_by_role("button", name="Make sound")).to_be_enabled()


def test_a_refusal_is_told_in_words(page: Page, tmp_path: Path) -> None:
    page.problems.clear()  # type: ignore[attr-defined]
    (tmp_path / "no.mp4").write_text("no video")
    page.set_input_files("#file", tmp_path / "no.mp4")
    expect(page.get_by_role("alert")).to_contain_text("not a video")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_page_asks_for_a_token_where_there_are_some(page: Page, triton: Triton, tmp_path: Path) -> None:
    token = new_token()
    (tmp_path / "tokens.toml").write_text(entry("alice", token, ["generate"], 1e6, 10))
    settings = {"triton": triton.url, "studio": True, "studio_port": 0, "tokens": tmp_path / "tokens.toml"}
    with api_server(tmp_path, **settings) as server:
        browser = page.context.browser
        assert browser
        other = browser.new_page()
        other.goto(server.studio)
        other.get_by_label("This studio asks for a token").fill("wrong")
        other.get_by_role("button", name="Enter").click()
        expect(other.get_by_role("alert")).to_contain_text("token")
        other.get_by_label("This studio asks for a token").fill(token)
        other.get_by_role("button", name="Enter").click()
        expect(other.get_by_role("heading", name="Drop a silent video here")).to_be_visible()
        other.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(page: Page, server: ApiServer, scheme: Any) -> None:
    if not AXE.is_file():
        pytest.skip("npm ci in server/studio/ brings axe")
    page.emulate_media(color_scheme=scheme)
    page.evaluate(AXE.read_text())
    found = page.evaluate("async () => (await axe.run()).violations.map((v) => [v.id, v.nodes.map((n) => n.html)])")
    assert found == []
