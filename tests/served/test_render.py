"""`foley render` on one machine, with a real Triton, real videos and a real S3 server."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from foley import envelope_file
from foley.audio import read_audio
from foley.options import GenerateOptions
from foley_bench.small_video import write_small_video
from foley_client.embedded import embedded_triton
from foley_client.render.storage import SIDECAR
from foley_pipeline.request import GenerationRequest
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend
from foley_server.launcher.triton import claim_port
from harness.chaos import chaos, compare
from harness.settled import settled

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with three videos and a manifest."""
    for i in range(3):
        write_small_video(tmp_path / f"{i}.mp4", speed=i + 1)
    write_manifest(tmp_path, [{"video": f"{i}.mp4", "output": f"{i}.wav", "seed": i, "steps": 2} for i in range(3)])
    return tmp_path


def write_manifest(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def ended(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {str(e["output"]): str(e["event"]) for e in events(done) if e["event"] not in ("started", "retry")}


def test_rendered_row_matches_generate(foley: Command, backend: TritonBackend, tmp_path: Path) -> None:
    write_small_video(tmp_path / "hits.mp4")
    write_small_video(tmp_path / "other.mp4", speed=1)
    curve = np.linspace(0, 0.2, 150, dtype=np.float32)
    (tmp_path / "curve.csv").write_text(envelope_file.dumps(curve, ".csv"))
    (tmp_path / "clips.csv").write_text(
        "video,output,text,negative_text,seed,sampler,steps,guidance,audio,envelope,loudness\n"
        "hits.mp4,plain.wav,,,0,,,,,,\n"
        "hits.mp4,deep/er/rich.mp4,glass,music,7,ddim,3,2.5,,curve.csv,follow\n"
        "other.mp4,,,,3,,2,,hits.wav,,peak\n"
    )
    first = foley("generate", "hits.mp4", "-o", "hits.wav")
    assert first.returncode == 0, first.stderr
    options = ("--text", "glass", "--negative-text", "music", "--seed", "7", "--sampler", "ddim", "--steps", "3")
    more = ("--guidance", "2.5", "--envelope", "curve.csv", "--loudness", "follow", "-o", "rich.wav")
    assert foley("generate", "hits.mp4", *options, *more).returncode == 0
    third = ("--seed", "3", "--steps", "2", "--audio", "hits.wav", "--loudness", "peak", "-o", "third.wav")
    assert foley("generate", "other.mp4", *third).returncode == 0

    done = foley("render", "clips.csv", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "3 rendered" in done.stderr
    assert "out/report.html" in done.stderr
    out = tmp_path / "out"
    np.testing.assert_array_equal(read_audio(out / "plain.wav"), read_audio(tmp_path / "hits.wav"))
    for video, sound in (("deep/er/rich.mp4", "rich.wav"), ("other.mp4", "third.wav")):
        ours, theirs = read_audio(out / video), read_audio(tmp_path / sound)  # equal except for AAC coding
        assert np.corrcoef(ours[: len(theirs)], theirs[: len(ours)])[0, 1] > 0.98
    about = json.loads((out / f"deep/er/rich.mp4{SIDECAR}").read_text())
    assert about["recipe"]["text"] == "glass"
    assert about["recipe"]["flow"] is None  # the envelope was given
    assert json.loads((out / f"plain.wav{SIDECAR}").read_text())["recipe"]["flow"] == "default"
    np.testing.assert_allclose(about["envelope"], curve, atol=1e-6)
    assert about["row"]["seed"] == 7
    assert set(about["inputs"]) == {"video", "audio", "envelope"}


def test_variations_are_those_of_generate_and_resume(foley: Command, tmp_path: Path) -> None:
    write_small_video(tmp_path / "hits.mp4")
    seed = 2**64 - 2
    done = foley("generate", "hits.mp4", "--steps", "2", "--variations", "2", "--seed", str(seed), "-o", "take.wav")
    assert done.returncode == 0, done.stderr
    (tmp_path / "clips.csv").write_text(
        f"Video;Output;Steps;Variations;Seed\r\nhits.mp4;take.wav;2;2;{seed}\r\nhits.mp4;any.wav;2;;-1\r\n"
    )
    command = ("render", "clips.csv", "-o", "out", "--json")
    names = ("take-1.wav", "take-2.wav", "any.wav")
    assert ended(foley(*command)) == dict.fromkeys(names, "done")
    for i, name in enumerate(names[:2]):
        np.testing.assert_array_equal(read_audio(tmp_path / "out" / name), read_audio(tmp_path / name))
        assert json.loads((tmp_path / f"out/{name}{SIDECAR}").read_text())["recipe"]["seed"] == seed + i
    assert 0 <= json.loads((tmp_path / f"out/any.wav{SIDECAR}").read_text())["recipe"]["seed"] < 2**32
    assert all(name in (tmp_path / "out/report.html").read_text() for name in names)
    (tmp_path / "out/take-2.wav").unlink()
    assert ended(foley(*command)) == {**dict.fromkeys(names, "skipped"), "take-2.wav": "done"}


def test_renders_only_missing_and_changed_rows(foley: Command, clips: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": f"{i}.mp4", "output": f"{i}.wav", "seed": i, "steps": 2} for i in range(3)
    ]
    command = ("render", "rows.jsonl", "-o", "out", "--json")
    assert ended(foley(*command)) == dict.fromkeys(("0.wav", "1.wav", "2.wav"), "done")
    made = {path.name: path.read_bytes() for path in (clips / "out").glob("*.wav")}

    def assert_events(**expected: str) -> None:
        done = foley(*command)
        assert done.returncode == 0, done.stderr
        assert ended(done) == dict.fromkeys(("0.wav", "1.wav", "2.wav"), "skipped") | {
            f"{name[1:]}.wav": kind for name, kind in expected.items()
        }

    write_manifest(clips, rows[::-1])  # rows are identified by name, not position
    assert_events()
    write_manifest(clips, [rows[0], {**rows[1], "seed": 100}, rows[2]])
    assert_events(_1="done")
    assert (clips / "out" / "1.wav").read_bytes() != made["1.wav"]
    write_manifest(clips, rows)
    assert_events(_1="done")
    (clips / "out" / "0.wav").unlink()
    (clips / "out" / "2.wav").write_bytes(made["2.wav"][:-100])
    assert_events(_0="done", _2="done")
    shutil.copy(clips / "0.mp4", clips / "1.mp4")  # changed video with the same name
    assert_events(_1="done")
    write_small_video(clips / "1.mp4", speed=2)
    assert_events(_1="done")
    forced = foley(*command, "--force")
    assert set(ended(forced).values()) == {"done"}
    assert {path.name: path.read_bytes() for path in (clips / "out").glob("*.wav")} == made


def test_failed_row_is_reported_and_others_continue(foley: Command, clips: Path) -> None:
    (clips / "bad.mp4").write_bytes(b"no video" * 100)
    rows: list[dict[str, object]] = [{"video": f"{i}.mp4", "output": f"{i}.wav", "steps": 1} for i in range(3)]
    write_manifest(clips, [rows[0], {"video": "bad.mp4", "output": "<b>bad</b>.wav"}, *rows[1:]])
    done = foley("render", "rows.jsonl", "-o", "out", "--json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert ended(done) == {"0.wav": "done", "1.wav": "done", "2.wav": "done", "<b>bad</b>.wav": "failed"}
    # a damaged file is not retried
    assert [e["event"] for e in events(done) if e["output"] == "<b>bad</b>.wav"] == ["started", "failed"]
    (failure,) = map(json.loads, (clips / "out" / "failures.jsonl").read_text().splitlines())
    assert failure["error"] == "MediaError"
    assert failure["attempts"] == 1
    assert failure["row"]["video"].endswith("bad.mp4")
    page = (clips / "out" / "report.html").read_text()
    assert failure["reason"].split("/")[0][:20] in page
    assert "&lt;b&gt;bad" in page
    assert "<b>bad" not in page

    write_small_video(clips / "bad.mp4")
    repaired = foley("render", "rows.jsonl", "-o", "out", "--json")
    assert repaired.returncode == 0
    assert ended(repaired).pop("<b>bad</b>.wav") == "done"
    assert not (clips / "out" / "failures.jsonl").exists()


def test_report_shows_and_plays_every_result(foley: Command, clips: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": "0.mp4", "output": f"a b/{i}.wav", "steps": 1, "seed": i} for i in range(3)
    ]
    write_manifest(clips, [*rows, {"video": "1.mp4", "output": "v.mp4", "steps": 1}])
    assert foley("render", "rows.jsonl", "-o", "out").returncode == 0
    page = (clips / "out" / "report.html").read_text()
    players = re.findall(r'<(audio|video) controls preload="none" src="([^"]+)"', page)
    assert players == [("audio", f"a%20b/{i}.wav") for i in range(3)] + [("video", "v.mp4")]
    assert page.count("<polyline") == 8
    assert "http" not in page
    assert "4 of 4 rendered" in page


def test_invalid_manifest_is_rejected_before_rendering(foley: Command, clips: Path) -> None:
    write_manifest(clips, [{"video": "0.mp4"}, {"video": "gone.mp4"}, {"video": "s3://no-bucket/x.mp4"}])
    for options in ([], ["--check"]):
        done = foley("render", "rows.jsonl", "-o", "out", *options)
        assert done.returncode == 2
        assert "gone.mp4 does not exist" in done.stderr
        assert "s3://no-bucket/x.mp4" in done.stderr
        assert "Traceback" not in done.stderr
    write_manifest(clips, [{"video": "0.mp4", "steps": 0}, {"video": "1.mp4", "output": "../x.mp4"}])
    done = foley("render", "rows.jsonl", "-o", "out")
    assert done.returncode == 2
    assert "line 1: " in done.stderr
    assert "line 2: " in done.stderr
    write_manifest(clips, [{"video": "0.mp4"}])
    good = foley("render", "rows.jsonl", "-o", "out", "--check")
    assert good.returncode == 0
    assert "rows: 1, errors: 0" in good.stdout
    assert not (clips / "out").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["-o", "0.mp4/x"], "0.mp4"),
        (["-o", "nosuch://x"], "nosuch"),
        (["-o", "out", "--server", "nowhere"], "nowhere"),
        (["-o", "out", "--ray", "127.0.0.1:1"], "Ray"),
        (["-o", "out", "--server", "localhost:1", "--bundle", "b"], "--bundle"),
    ],
)
def test_invalid_options_are_reported(foley: Command, clips: Path, options: list[str], word: str) -> None:
    done = foley("render", "rows.jsonl", *options)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_envelope_of_shared_video_is_predicted_once(foley: Command, triton: TritonClient, clips: Path) -> None:
    write_manifest(clips, [{"video": f"{i % 2}.mp4", "output": f"{i}.wav", "steps": 1, "seed": i} for i in range(12)])

    def envelopes() -> int:
        return settled(lambda: int(triton.statistics("video2rms").get("inference_count", 0)))

    before = envelopes()
    done = foley("render", "rows.jsonl", "-o", "out", "--no-cache", "--json")
    assert set(ended(done).values()) == {"done"}
    assert envelopes() == before + 2
    (clips / "out" / "3.wav").unlink()  # the envelope is taken from the existing results
    repeated = foley("render", "rows.jsonl", "-o", "out", "--no-cache", "--json", "--workers", "1")
    assert list(ended(repeated).values()).count("skipped") == 11
    assert envelopes() == before + 2
    recipes = [json.loads(path.read_text())["recipe"] for path in (clips / "out").glob(f"*{SIDECAR}")]
    assert [recipe["flow"] for recipe in recipes] == ["default"] * 12


@pytest.mark.long
def test_servers_share_rows_if_they_serve_the_same_bundle(
    foley: Command, triton: TritonClient, demo_triton: TritonClient, tiny_bundle: Path, clips: Path
) -> None:
    write_manifest(clips, [{"video": "0.mp4", "output": f"{i}.wav", "steps": 1, "seed": i} for i in range(12)])
    with embedded_triton(tiny_bundle) as second:
        done = foley("render", "rows.jsonl", "-o", "out", "--server", triton.url, "--server", second.url, "--json")
        assert done.returncode == 0, done.stderr
        assert {e["worker"] for e in events(done) if e["event"] == "done"} == {triton.url, second.url}
    mixed = foley("render", "rows.jsonl", "-o", "out", "--server", triton.url, "--server", demo_triton.url)
    assert mixed.returncode == 2
    assert "different" in mixed.stderr


def test_ctrl_c_stops_and_same_command_resumes(triton: TritonClient, clips: Path) -> None:
    rows: list[dict[str, object]] = [{"video": "0.mp4", "output": f"{i}.wav", "steps": 40, "seed": i} for i in range(5)]
    write_manifest(clips, rows)
    command = [BIN / "foley", "render", "rows.jsonl", "-o", "out", "--server", triton.url, "--json", "--workers", "2"]
    process = subprocess.Popen(command, cwd=clips, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if json.loads(line)["event"] == "done":
            break
    process.send_signal(signal.SIGINT)
    stopped_s = time.monotonic()
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - stopped_s < 30
    assert "run the same command again to resume" in message
    assert "Traceback" not in message
    files = {path.name for path in (clips / "out").iterdir()} - {"report.html", ".foley-render.lock"}
    results = {name for name in files if name.endswith(".wav")}
    assert files == results | {name + SIDECAR for name in results}
    assert 0 < len(results) < 5
    repeated = subprocess.run(command, cwd=clips, capture_output=True, text=True, timeout=120)
    assert repeated.returncode == 0
    assert {name for name, kind in ended(repeated).items() if kind == "skipped"} >= results


def test_rejects_second_render_into_same_folder(foley: Command, triton: TritonClient, clips: Path) -> None:
    write_manifest(clips, [{"video": "0.mp4", "output": f"{i}.wav", "steps": 1000} for i in range(2)])
    command = [BIN / "foley", "render", "rows.jsonl", "-o", "out", "--server", triton.url, "--json"]
    with subprocess.Popen(command, cwd=clips, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stdout
        first.stdout.readline()
        second = foley("render", "rows.jsonl", "-o", "out")
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
    assert second.returncode == 2
    assert "another render" in second.stderr


@pytest.mark.long  # takes a minute; test_render_ray kills a worker
def test_killed_processes_lose_no_rows(tiny_bundle: Path, tmp_path: Path) -> None:
    """A short run; `make chaos` renders 1,000 rows on Ray."""
    outcome = chaos(tiny_bundle, tmp_path, 36, 3, 1, False, print)
    assert outcome.faults == []
    assert outcome.kills == {"driver": 1, "worker": 1, "Triton": 1}
    assert outcome.runs >= 2


def test_compare_finds_planted_faults(tmp_path: Path) -> None:
    """`compare` of the harness reports missing, changed, incomplete and left-over files."""
    names = ["a.wav", "b.wav"]
    for folder in ("results", "peaceful"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"sound")
            (tmp_path / folder / (name + SIDECAR)).write_text('{"bytes": 5}')
        (tmp_path / folder / ".foley-render.lock").touch()
    results = tmp_path / "results"
    assert compare(results, tmp_path / "peaceful", names) == []
    (results / "a.wav").write_bytes(b"s0und")
    assert compare(results, tmp_path / "peaceful", names) == ["a.wav differs from that of the undisturbed run"]
    (results / "a.wav").write_bytes(b"sou")
    assert len(compare(results, tmp_path / "peaceful", names)) == 2
    (results / "a.wav").unlink()
    (results / ".foley-00.partial.wav").touch()
    found = compare(results, tmp_path / "peaceful", names)
    assert found == ["a.wav is missing", ".foley-00.partial.wav is left over"]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind the bucket `s3://farm` of a real S3 server on loopback."""
    folder = tmp_path / "buckets" / "farm"
    folder.mkdir(parents=True)
    address = f"127.0.0.1:{claim_port('127.0.0.1', 0)}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "KEY",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{address}",
    }.items():
        monkeypatch.setenv(name, value)
    command = [BIN / "rclone", "serve", "s3", "--addr", address, "--auth-key", "KEY,SECRET", folder.parent]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr
    while "Starting" not in (line := server.stderr.readline()):
        assert line, "rclone ended"
    yield folder
    server.terminate()
    server.communicate()


def test_renders_from_and_to_bucket(foley: Command, backend: TritonBackend, clips: Path, bucket: Path) -> None:
    (bucket / "in").mkdir()
    shutil.copy(clips / "1.mp4", bucket / "in" / "one.mp4")
    (bucket / "in" / "bad.mp4").write_bytes(b"no video")
    rows = [
        {"video": "s3://farm/in/one.mp4", "output": "day 1/one.wav", "steps": 2, "text": "glass"},
        {"video": "0.mp4", "output": "zero.mp4", "steps": 1},
    ]
    write_manifest(clips, [*rows, {"video": "s3://farm/in/gone.mp4"}])
    command = ("render", "rows.jsonl", "-o", "s3://farm/out", "--json")
    missing = foley(*command)
    assert missing.returncode == 2
    assert "s3://farm/in/gone.mp4 does not exist" in missing.stderr
    write_manifest(clips, [*rows, {"video": "s3://farm/in/bad.mp4"}])
    done = foley(*command)
    assert done.returncode == 1, done.stderr
    assert ended(done) == {"day 1/one.wav": "done", "zero.mp4": "done", "bad.mp4": "failed"}
    files = {path.relative_to(bucket / "out").as_posix() for path in (bucket / "out").rglob("*") if path.is_file()}
    results = {"day 1/one.wav", "zero.mp4"}
    assert files == results | {name + SIDECAR for name in results} | {"failures.jsonl", "report.html"}
    request = GenerationRequest(clips / "1.mp4", options=GenerateOptions(text="glass", steps=2))
    expected = backend.generate(request).waveform
    np.testing.assert_allclose(read_audio(bucket / "out" / "day 1" / "one.wav"), expected, atol=2 / 32768)

    write_manifest(clips, [rows[0], {**rows[1], "seed": 5}])
    repeated = foley(*command)
    assert repeated.returncode == 0, repeated.stderr
    assert ended(repeated) == {"day 1/one.wav": "skipped", "zero.mp4": "done"}
    assert not (bucket / "out" / "failures.jsonl").exists()

    missing_bucket = foley("render", "rows.jsonl", "-o", "s3://nowhere/out")
    assert missing_bucket.returncode == 2
    assert "s3://nowhere/out" in missing_bucket.stderr


def test_folder_with_equal_stems_is_rendered_into_subfolder(foley: Command, tmp_path: Path) -> None:
    """Rendered files are skipped, and do not count as input videos."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for i, name in enumerate(("IMG_1.mp4", "IMG_1.mov")):
        write_small_video(tmp_path / "small.mp4", speed=i + 1)
        shutil.move(tmp_path / "small.mp4", videos / name)
    command = ("render", "videos", "-o", "videos/rendered", "--json")
    results = {"IMG_1.mp4", "IMG_1.mov.mp4"}
    for kind in ("done", "skipped"):
        done = foley(*command)
        assert done.returncode == 0, done.stderr
        assert ended(done) == dict.fromkeys(results, kind)
    files = {path.relative_to(videos / "rendered").as_posix() for path in (videos / "rendered").rglob("*.mp4")}
    assert files == results
    same_folder = foley("render", "videos", "-o", "videos")
    assert same_folder.returncode == 2
    assert "use another output folder" in same_folder.stderr


def test_results_and_sidecars_keep_permissions_and_links(foley: Command, clips: Path) -> None:
    write_manifest(clips, [{"video": "0.mp4", "output": "0.wav", "steps": 1}])
    assert foley("render", "rows.jsonl", "-o", "out").returncode == 0
    result, sidecar = clips / "out" / "0.wav", clips / "out" / f"0.wav{SIDECAR}"
    for path in (result, sidecar):
        path.chmod(0o600)
        path.rename(clips / f"archived {path.name}")
        path.symlink_to(clips / f"archived {path.name}")
    skipped = foley("render", "rows.jsonl", "-o", "out", "--json")
    assert ended(skipped) == {"0.wav": "skipped"}
    forced = foley("render", "rows.jsonl", "-o", "out", "--json", "--force")
    assert ended(forced) == {"0.wav": "done"}, forced.stderr
    for path in (result, sidecar):
        assert path.is_symlink()
        assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(sidecar.read_text())["bytes"] == result.stat().st_size
