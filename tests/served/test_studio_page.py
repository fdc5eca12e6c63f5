"""The studio's page in a real Chromium, against a real server with the demo bundle."""

import json
import shlex
import shutil
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
import soundfile
from numpy.typing import NDArray
from playwright.sync_api import Browser, Dialog, Locator, Page, expect, sync_playwright

from foley import envelope_file
from foley.envelope import measure
from foley_pipeline.triton import TritonClient
from foley_server.api.tokens import entry, new_token
from harness.api_server import ApiServer, api_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).resolve().parents[2] / "server" / "studio" / "node_modules" / "axe-core" / "axe.min.js"
BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
WORK_MS = 60_000
LAPTOP = {"width": 1280, "height": 800}
TABLET = {"width": 820, "height": 1180}
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def server(demo_triton: TritonClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    settings = {"triton": demo_triton.url, "studio": True, "studio_port": 0}
    with api_server(tmp_path_factory.mktemp("studio"), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def busy_server(triton: TritonClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server that accepts one request at a time."""
    settings = {"triton": triton.url, "studio": True, "studio_port": 0, "running": 1, "waiting": 0, "upload_mib": 41}
    with api_server(tmp_path_factory.mktemp("busy"), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here; Debian's package is called chromium")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # beeps once a second
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic", *quiet, *microphone]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """`open_page(address)`: the page; fails at the end on script errors and on requests to other hosts."""
    problems: list[str] = []
    contexts = []

    def open_(address: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": LAPTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: _note(problems, message.text) if message.type == "error" else None)
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((address, "blob:", "data:"))
                else problems.append(f"asked for {request.url}")
            ),
        )
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


def _note(problems: list[str], text: str) -> None:
    if "Failed to load resource" not in text:  # logged by Chromium for every error response
        problems.append(text)


def open_video(page: Page, video: Path | str) -> Page:
    """Open a video or an example, and wait for its envelope."""
    if isinstance(video, str):
        page.get_by_role("button", name=video, exact=True).click()
    else:
        page.set_input_files("#file", video)
    expect(page.get_by_label("What it is", exact=True)).to_be_focused(timeout=WORK_MS)
    return page


def curve(page: Page) -> NDArray[np.float32]:
    """Return the envelope that "Save the curve" saves."""
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save the curve").click()
    return envelope_file.read(saved(saving.value, page))


def saved(download: Any, _: Page) -> Path:
    """Return the downloaded file, renamed to the name that the page suggested."""
    path = Path(download.path())
    return path.rename(path.with_name(download.suggested_filename))


def position(page: Page, across: float, up: float) -> tuple[float, float]:
    """Return the page coordinates of a point in the lane of the curve, given as shares of its width and height."""
    box = page.locator("#timeline").bounding_box()
    assert box
    top, ground = 80, box["height"] - (86 if page.locator("#list li").count() else 2)
    return box["x"] + across * box["width"], box["y"] + ground - up * (ground - top)


def drag(page: Page, *spots: tuple[float, float]) -> None:
    """Drag the mouse in the lane of the curve from the first position over the others."""
    page.mouse.move(*position(page, *spots[0]))
    page.mouse.down()
    for at in spots[1:]:
        page.mouse.move(*position(page, *at), steps=8)
    page.mouse.up()


def select_region(page: Page, from_s: float, to_s: float) -> None:
    """Select a region by its ends."""
    for end, seconds in (("Region from", from_s), ("to", to_s)):
        page.get_by_role("spinbutton", name=end, exact=True).fill(f"{seconds:.2f}")
        page.keyboard.press("Enter")


def tones(page: Page, across: float, lane: str) -> int:
    """Return the number of colours in a column of the time line, in the lane of the frames or the spectrogram."""
    found: int = page.evaluate(
        """([across, lane]) => {
            const line = document.getElementById("timeline"), scale = devicePixelRatio, height = line.height / scale;
            const [from, to] = lane === "pictures" ? [24, 70] : [height - 80, height - 4];
            const size = [across * line.width, from * scale, 1, (to - from) * scale];
            const { data } = line.getContext("2d").getImageData(...size);
            return new Set(Array.from({ length: data.length / 4 }, (_, i) => data.slice(4 * i, 4 * i + 4).join())).size;
        }""",
        [across, lane],
    )
    return found


def make(page: Page, text: str, count: int, steps: int = 4) -> Locator:
    """Make sound, and wait until there are `count` takes."""
    page.get_by_label("What it is", exact=True).fill(text)
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_role("button", name="Make sound").click()
    takes = page.locator("#list li")
    expect(takes).to_have_count(count, timeout=WORK_MS)
    return takes


def test_full_workflow(open_page: Open, server: ApiServer, repository: Path, tmp_path: Path) -> None:
    page = open_page(server.studio)
    expect(page.get_by_role("heading", name="Drop a silent video here")).to_be_visible()
    open_video(page, "steel")
    first = curve(page)
    expected = requests.post(f"{server.studio}api/videos", data=(repository / "examples/steel.mp4").read_bytes())
    answer = requests.post(f"{server.studio}api/videos/{expected.json()['video']}/envelope")
    np.testing.assert_allclose(first, json.loads(answer.text.splitlines()[-1])["envelope"], atol=1e-6)

    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    drag(page, (0.2, 0.6), (0.4, 0.6))
    drawn = curve(page)
    assert drawn[210:390].min() == pytest.approx(drawn[210:390].max(), rel=0.02)
    assert drawn[300] > 0
    np.testing.assert_array_equal(drawn[450:], first[450:])
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(curve(page), first)
    page.keyboard.press("Control+Shift+z")
    np.testing.assert_array_equal(curve(page), drawn)

    page.get_by_role("spinbutton", name="Takes").fill("2")
    takes = make(page, "a stick hits metal", 2)
    expect(page.get_by_role("button", name="Pause")).to_be_visible()  # plays automatically
    page.wait_for_timeout(300)
    assert tones(page, 0.3, "pictures") > 20
    assert tones(page, 0.3, "spectrogram") > 20  # sound
    assert tones(page, 0.97, "spectrogram") < 20  # silence
    expect(page.locator('li[aria-current="true"]')).to_contain_text("1. a stick hits metal")
    page.keyboard.press("2")  # A/B comparison during playback
    expect(page.locator('li[aria-current="true"]')).to_contain_text("2. a stick hits metal")
    page.keyboard.press("x")
    expect(page.locator('li[aria-current="true"]')).to_contain_text("1. a stick hits metal")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play")).to_be_visible()

    with page.expect_download() as saving:
        takes.last.get_by_role("button", name="WAV").click()
    wav = saved(saving.value, page)
    wave, rate = soundfile.read(wav, dtype="float32")
    assert wav.name == "steel-1.wav"
    assert (rate, len(wave)) == (16_000, 160_000)
    assert np.corrcoef(measure(wave), drawn)[0, 1] > 0.7  # follows the drawn curve
    with page.expect_download() as saving:
        takes.last.get_by_role("button", name="Recipe").click()
    recipe = json.loads(saved(saving.value, page).read_text())
    assert (recipe["seed"], recipe["steps"]) == (0, 4)
    np.testing.assert_allclose(recipe["envelope"], drawn, atol=1e-6)
    page.get_by_label("The video's own sound").select_option("keep")
    with page.expect_download() as saving:
        takes.last.get_by_role("button", name="Video with").click()
    with av.open(saving.value.path()) as made:
        assert {stream.type for stream in made.streams} == {"video", "audio"}

    takes.last.get_by_role("button", name="Command").click()
    line = page.get_by_role("dialog").locator("pre").inner_text()
    with page.expect_download() as saving:
        page.get_by_role("dialog").get_by_role("button", name="Save steel-1-curve.json").click()
    saved(saving.value, page).rename(tmp_path / "steel-1-curve.json")
    shutil.copy(repository / "examples" / "steel.mp4", tmp_path)
    command, *arguments = shlex.split(line)
    assert command == "foley"
    assert arguments[-1] == "steel-1.mp4"
    completed = subprocess.run(
        [BIN / command, *arguments, "-o", "same.wav", "--no-cache", "--server", server.grpc], cwd=tmp_path
    )
    assert completed.returncode == 0
    same, _ = soundfile.read(tmp_path / "same.wav", dtype="float32")
    np.testing.assert_allclose(same, wave, atol=2 / 32768)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_points_can_be_dragged(open_page: Open, server: ApiServer, video: Path) -> None:
    page = open_video(open_page(server.studio), video)
    page.get_by_label("Shape").select_option("A")
    before = curve(page)
    peak = int(before.argmax())
    page.get_by_role("button", name="Points").click()
    height = float(before.max())
    top = 1.25 * height if height > 0.05 else 0.05  # level at the top of the lane
    drag(page, (0.5, height / max(top, 0.3 * height)), (0.25, 0.4))
    after = curve(page)
    assert after.argmax() == pytest.approx(0.25 * len(after), abs=2)
    assert after[0] == before[0]
    assert after[-1] == before[-1]
    rise, fall = np.diff(after[: after.argmax()]), np.diff(after[after.argmax() :])
    assert rise.min() > 0 > fall.max()
    assert peak == pytest.approx(0.5 * len(before), abs=1)
    page.get_by_role("button", name="Undo").click()
    np.testing.assert_array_equal(curve(page), before)


def test_keyboard_covers_all_actions(open_page: Open, server: ApiServer, video: Path) -> None:
    page = open_video(open_page(server.studio), video)
    before = curve(page)
    page.locator("#timeline").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#status")).to_have_text("Region from 0.30 to 0.70 s")
    page.keyboard.press("Delete")
    after = curve(page)
    assert not after[30:70].any()
    np.testing.assert_array_equal(after[70:], before[70:])
    select_region(page, 0.80, 1.20)
    page.locator("#timeline").focus()
    page.keyboard.press("-")
    np.testing.assert_allclose(curve(page)[80:120], 0.8 * before[80:120], atol=2e-6)
    page.locator("#timeline").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Escape")
    expect(page.get_by_role("spinbutton", name="Region from")).to_have_value("")
    page.get_by_label("Steps").fill("3")
    page.get_by_label("What it is", exact=True).fill("wood")
    page.keyboard.press("Enter")
    expect(page.locator("#list li")).to_have_count(1, timeout=WORK_MS)


def test_video_and_sound_stay_synchronised(open_page: Open, server: ApiServer) -> None:
    page = open_video(open_page(server.studio), "drumstick")
    make(page, "wood", 1)

    def positions() -> tuple[float, float]:
        heard, seen = page.evaluate(
            "[document.getElementById('clock').textContent, document.getElementById('video').currentTime]"
        )
        return float(heard.split()[0]), seen

    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    began, (first, _) = time.monotonic(), positions()
    page.wait_for_timeout(1500)
    heard, seen = positions()
    assert heard - first == pytest.approx(time.monotonic() - began, abs=0.2)
    assert seen == pytest.approx(heard, abs=0.1)

    select_region(page, 0.50, 1.00)
    page.get_by_label("Loop the region").check()
    rounds = []
    for _ in range(12):
        page.wait_for_timeout(150)
        rounds.append(positions()[0])
    assert all(0.45 <= at <= 1.05 for at in rounds[2:])
    assert np.diff(rounds[2:]).min() < -0.2  # looped


def test_envelope_from_recording(open_page: Open, server: ApiServer, video: Path, tmp_path: Path) -> None:
    page = open_video(open_page(server.studio), video)
    wave = np.concatenate([np.zeros(8_000), 0.3 * np.sin(np.arange(16_000) / 4)]).astype(np.float32)
    soundfile.write(tmp_path / "beep.wav", wave, 16_000)
    page.set_input_files("#sound", tmp_path / "beep.wav")
    expect(page.get_by_role("button", name="Undo")).to_be_enabled()
    taken = curve(page)
    np.testing.assert_allclose(taken, measure(wave)[: len(taken)], atol=1e-4)

    select_region(page, 0.4, 1.2)
    page.get_by_role("button", name="Record one").click()  # Chromium's fake microphone
    page.wait_for_timeout(1300)
    page.get_by_role("button", name="Stop recording").click()
    expect(page.get_by_role("button", name="Record one")).to_be_visible()
    expect(page.locator("#cancel")).to_be_hidden()
    recorded = curve(page)
    assert recorded[40:120].max() > 0.01
    assert not np.array_equal(recorded[40:120], taken[40:120])
    np.testing.assert_array_equal(recorded[120:], taken[120:])  # only the region changes


def test_envelope_from_file(open_page: Open, server: ApiServer, video: Path, tmp_path: Path) -> None:
    page = open_video(open_page(server.studio), video)
    wave = np.abs(np.sin(np.arange(len(curve(page))) / 9)).astype(np.float32)
    for suffix in envelope_file.EXTENSIONS:
        (tmp_path / f"curve{suffix}").write_text(envelope_file.dumps(wave, suffix))
        page.set_input_files("#load", tmp_path / f"curve{suffix}")
        expect(page.get_by_role("button", name="Undo")).to_be_enabled()
        np.testing.assert_allclose(curve(page), wave, atol=1e-6)
        page.get_by_role("button", name="Undo").click()
    for text in ("nonsense", '{"rate_hz": 50, "rms": [1]}', '{"rate_hz": 100, "rms": ["a"]}'):
        (tmp_path / "bad.json").write_text(text)
        page.set_input_files("#load", tmp_path / "bad.json")
        expect(page.get_by_role("alert")).to_contain_text("There is no curve in bad.json")
        page.get_by_role("button", name="Dismiss").click()


def test_upload_shows_progress(open_page: Open, server: ApiServer, repository: Path) -> None:
    page = open_page(server.studio)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 80_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    page.set_input_files("#file", repository / "examples" / "steel.mp4")  # 0.2 MB
    expect(page.locator("#status")).to_contain_text("Sending the video: megabyte 0.1 of 0.2")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.get_by_role("heading", name="Drop a silent video here")).to_be_visible()


def test_rejection_is_shown_during_large_upload(
    open_page: Open, busy_server: ApiServer, video: Path, tmp_path: Path
) -> None:
    large = tmp_path / "much.mp4"
    large.write_bytes(video.read_bytes() + bytes(40 * 2**20))
    page = open_page(busy_server.studio)
    body = {"envelope": [0.1] * 100, "steps": 1000}
    with requests.post(f"{busy_server.studio}api/takes", json=body, stream=True) as other:
        events = other.iter_lines(chunk_size=1)
        next(events)
        page.set_input_files("#file", large)
        expect(page.get_by_role("alert")).to_contain_text("at its request limit of 1")
        page.get_by_role("button", name="Cancel").click()
    too_large = tmp_path / "too-much.mp4"
    too_large.write_bytes(bytes(42 * 2**20))
    page.set_input_files("#file", too_large)
    expect(page.get_by_role("alert")).to_contain_text("44 MB, more than the limit of 42 MB")


def test_files_can_be_dropped(open_page: Open, server: ApiServer, video: Path, tmp_path: Path) -> None:
    page = open_page(server.studio)

    def drop(path: Path, kind: str) -> None:
        page.evaluate(
            """([content, name, type]) => {
                const dropped = new DataTransfer();
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                dropped.items.add(new File([bytes], name, { type }));
                document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true }));
            }""",
            [b64encode(path.read_bytes()).decode(), path.name, kind],
        )

    drop(video, "video/mp4")
    expect(page.get_by_label("What it is", exact=True)).to_be_focused(timeout=WORK_MS)
    wave = (0.2 * np.sin(np.arange(24_000) / 4)).astype(np.float32)
    soundfile.write(tmp_path / "hum.wav", wave, 16_000)
    drop(tmp_path / "hum.wav", "audio/wav")
    expect(page.get_by_role("button", name="Undo")).to_be_enabled()
    np.testing.assert_allclose(curve(page)[:140], measure(wave)[:140], atol=1e-4)


def test_audio_prompt(open_page: Open, server: ApiServer, video: Path, tmp_path: Path) -> None:
    page = open_video(open_page(server.studio), video)
    soundfile.write(tmp_path / "gong.wav", 0.3 * np.sin(np.arange(32_000) / 4), 16_000)
    page.set_input_files("#like", tmp_path / "gong.wav")
    expect(page.get_by_text("like gong.wav")).to_be_visible()
    expect(page.get_by_label("What it is", exact=True)).to_be_disabled()
    page.get_by_label("Steps").fill("3")
    page.get_by_role("button", name="Make sound").click()
    expect(page.locator("#list li")).to_contain_text("1. like gong.wav", timeout=WORK_MS)
    page.get_by_role("button", name="Forget the sound").click()
    expect(page.get_by_label("What it is", exact=True)).to_be_enabled()


def test_cancel_keeps_takes(open_page: Open, server: ApiServer, video: Path) -> None:
    page = open_video(open_page(server.studio), video)
    make(page, "wood", 1)
    page.get_by_label("Steps").fill("1000")
    page.get_by_role("button", name="Make sound").click()
    expect(page.locator("#status")).to_contain_text("of 1000", timeout=WORK_MS)
    page.get_by_role("button", name="Video with take 1").click()  # queued
    with page.expect_download():
        page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#list li")).to_have_count(1)
    expect(page.get_by_role("button", name="Make sound")).to_be_enabled()
    page.get_by_role("button", name="Make sound").click()
    expect(page.locator("#status")).to_contain_text("of 1000", timeout=WORK_MS)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Stopped.")


@pytest.mark.parametrize("name", ["mjpeg.mov", "animated.gif"])
def test_preview_is_shown_for_unplayable_formats(open_page: Open, server: ApiServer, media: Path, name: str) -> None:
    page = open_video(open_page(server.studio), media / name)
    expect(page.locator("#video")).to_have_js_property("videoWidth", 344)  # width of the server's preview
    page.wait_for_timeout(500)
    assert tones(page, 0.5, "pictures") > 3


def test_unsaved_takes_require_confirmation(open_page: Open, server: ApiServer, video: Path) -> None:
    page = open_video(open_page(server.studio), video)
    make(page, "wood", 1)
    messages: list[str] = []

    def respond(dialog: Dialog, yes: bool) -> None:
        messages.append(dialog.message)
        if yes:
            dialog.accept()
        else:
            dialog.dismiss()

    page.once("dialog", lambda dialog: respond(dialog, False))
    page.set_input_files("#other", video)
    page.wait_for_timeout(300)
    assert "save what you want to keep" in messages[0]
    expect(page.locator("#list li")).to_have_count(1)
    page.once("dialog", lambda dialog: respond(dialog, True))
    page.set_input_files("#other", video)
    expect(page.locator("#list li")).to_have_count(0)


def test_rejected_video_shows_message(open_page: Open, server: ApiServer, media: Path, tmp_path: Path) -> None:
    page = open_page(server.studio)
    (tmp_path / "no.mp4").write_text("no video")
    for bad, words in ((tmp_path / "no.mp4", "not a video"), (media / "empty.mp4", "empty")):
        page.set_input_files("#file", bad)
        expect(page.get_by_role("alert")).to_contain_text(words)
        page.get_by_role("button", name="Dismiss").click()
        expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_role("heading", name="Drop a silent video here")).to_be_visible()


def test_busy_server_is_retried(open_page: Open, busy_server: ApiServer, video: Path) -> None:
    page = open_video(open_page(busy_server.studio), video)
    body = {"envelope": [0.1] * 100, "steps": 1000}
    with requests.post(f"{busy_server.studio}api/takes", json=body, stream=True) as other:
        events = other.iter_lines(chunk_size=1)
        next(events)
        page.get_by_label("Steps").fill("3")
        page.get_by_role("button", name="Make sound").click()
        expect(page.get_by_role("alert")).to_contain_text("at its request limit of 1")
        expect(page.locator("#status")).to_contain_text("Retrying in")
    expect(page.locator("#list li")).to_have_count(1, timeout=WORK_MS)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_reconnects_after_server_restart(open_page: Open, triton: TritonClient, video: Path, tmp_path: Path) -> None:
    """The server is killed during a take; the page uploads everything again to the next server on the same port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        settings = {"triton": triton.url, "studio": True, "studio_port": free.getsockname()[1]}
    soundfile.write(tmp_path / "gong.wav", 0.3 * np.sin(np.arange(32_000) / 4), 16_000)
    with api_server(tmp_path, **settings) as server:
        page = open_video(open_page(server.studio), video)
        page.set_input_files("#like", tmp_path / "gong.wav")
        expect(page.get_by_text("like gong.wav")).to_be_visible()
        page.get_by_label("Steps").fill("120")
        page.get_by_role("button", name="Make sound").click()
        expect(page.locator("#status")).to_contain_text("of 120", timeout=WORK_MS)
        server.process.send_signal(signal.SIGKILL)
        expect(page.get_by_role("alert")).to_contain_text("The connection to the server is lost.")
        expect(page.locator("#status")).to_contain_text("Retrying in")
    with api_server(tmp_path, **settings):
        expect(page.locator("#status")).to_contain_text("of 120", timeout=WORK_MS)
        expect(page.get_by_role("alert")).to_be_hidden()
        takes = page.locator("#list li")
        expect(takes).to_have_count(1, timeout=WORK_MS)
        with page.expect_download() as saving:
            takes.first.get_by_role("button", name="Video with").click()  # uploads the video again
        with av.open(saving.value.path()) as made:
            assert {stream.type for stream in made.streams} == {"video", "audio"}


@pytest.mark.long  # the timeout of the page is long
def test_unresponsive_server_counts_as_lost(open_page: Open, triton: TritonClient, video: Path, tmp_path: Path) -> None:
    with api_server(tmp_path, triton=triton.url, studio=True, studio_port=0) as server:
        page = open_video(open_page(server.studio), video)
        page.get_by_label("Steps").fill("500")
        page.get_by_role("button", name="Make sound").click()
        expect(page.locator("#status")).to_contain_text("of 500", timeout=WORK_MS)
        server.process.send_signal(signal.SIGSTOP)
        expect(page.get_by_role("alert")).to_contain_text("The connection to the server is lost.", timeout=20_000)
        server.process.send_signal(signal.SIGCONT)
        expect(page.locator("#list li")).to_have_count(1, timeout=2 * WORK_MS)
        expect(page.get_by_role("alert")).to_be_hidden()


def test_retry_can_be_cancelled(open_page: Open, triton: TritonClient, video: Path, tmp_path: Path) -> None:
    with api_server(tmp_path, triton=triton.url, studio=True, studio_port=0) as server:
        page = open_video(open_page(server.studio), video)
        drawn = curve(page)
    page.get_by_role("button", name="Make sound").click()
    expect(page.get_by_role("alert")).to_contain_text("lost")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    np.testing.assert_array_equal(curve(page), drawn)


def test_page_requests_token(open_page: Open, triton: TritonClient, tmp_path: Path) -> None:
    token = new_token()
    (tmp_path / "tokens.toml").write_text(entry("alice", token, ["generate"], 1e6, 10))
    settings = {"triton": triton.url, "studio": True, "studio_port": 0, "tokens": tmp_path / "tokens.toml"}
    with api_server(tmp_path, **settings) as server:
        page = open_page(server.studio)
        page.get_by_label("This studio asks for a token").fill("wrong")
        page.get_by_role("button", name="Enter").click()
        expect(page.get_by_role("alert")).to_contain_text("token")
        page.get_by_label("This studio asks for a token").fill(token)
        page.get_by_role("button", name="Enter").click()
        expect(page.get_by_role("heading", name="Drop a silent video here")).to_be_visible()


def test_touch_draws_and_zooms(open_page: Open, server: ApiServer, video: Path) -> None:
    page = open_video(open_page(server.studio, viewport=TABLET, has_touch=True), video)
    before = curve(page)
    cdp = page.context.new_cdp_session(page)

    def touch(kind: str, *spots: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(spots)]
        cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    page.locator("#timeline").scroll_into_view_if_needed()
    touch("touchStart", position(page, 0.4, 0.5))
    for across in (0.45, 0.5, 0.6):
        touch("touchMove", position(page, across, 0.5))
    touch("touchEnd")
    drawn = curve(page)
    assert drawn[round(0.5 * len(drawn))] > 0
    assert not np.array_equal(drawn, before)
    touch("touchStart", position(page, 0.4, 0.5))
    touch(
        "touchStart", position(page, 0.4, 0.5), position(page, 0.6, 0.5)
    )  # the second finger undoes the stroke of the first
    touch("touchMove", position(page, 0.2, 0.5), position(page, 0.8, 0.5))
    touch("touchEnd")
    np.testing.assert_array_equal(curve(page), drawn)
    page.get_by_role("button", name="Region").click()
    drag(page, (0.0, 0.5), (0.999, 0.5))
    width = float(page.get_by_label("to", exact=True).input_value()) - float(
        page.get_by_role("spinbutton", name="Region from").input_value()
    )
    assert width == pytest.approx(len(drawn) / 300, rel=0.1)  # a third is visible
    scrolled = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    assert not scrolled


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [LAPTOP, TABLET], ids=["laptop", "tablet"])
def test_page_is_accessible(
    open_page: Open, server: ApiServer, video: Path, tmp_path: Path, scheme: str, viewport: dict[str, int]
) -> None:
    """Checked with axe in every state of the page."""
    if not AXE.is_file():
        pytest.skip("npm ci in server/studio/ brings axe")
    page = open_page(server.studio, color_scheme=scheme, viewport=viewport)
    page.evaluate(AXE.read_text())

    def check() -> None:
        found = page.evaluate("async () => (await axe.run()).violations.map((v) => [v.id, v.nodes.map((n) => n.html)])")
        assert found == []

    expect(page.get_by_role("button", name="steel")).to_be_visible()
    check()
    (tmp_path / "no.mp4").write_text("no video")
    page.set_input_files("#file", tmp_path / "no.mp4")
    expect(page.get_by_role("alert")).to_contain_text("not a video")
    check()
    open_video(page, video)
    check()
    takes = make(page, "wood", 1)
    check()
    takes.first.get_by_role("button", name="Command").click()
    check()
