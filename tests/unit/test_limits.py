"""Limits on the length and the size of inputs: on one's own machine, options raise them."""

import re
from dataclasses import astuple
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from foley.container import DEFAULT_LIMITS, NO_LIMITS, Limits, limits_for
from foley.errors import MediaTooLarge, SettingError
from foley.media import probe
from foley_client._inputs import generation_request
from foley_client.cli import app
from foley_client.limits import advised, limits_of
from foley_client.render.row import Row
from foley_client.render.task import Failed, Task, try_render
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.media_loader import in_process
from foley_pipeline.result import GenerationResult, Take

SECONDS = 720  # longer than the default limit


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve minutes at one frame per second."""
    path = tmp_path_factory.mktemp("long") / "long.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(SECONDS):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64), number % 256, np.uint8), format="gray")
            frame.pts, frame.time_base = number, Fraction(1)
            output.mux(stream.encode(frame.reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    return path


def test_limits_grow_with_the_duration() -> None:
    assert limits_for() == DEFAULT_LIMITS
    short, long = limits_for(10), limits_for(6000)
    assert (short.duration_s, short.frames) == (10, DEFAULT_LIMITS.frames)
    for name in ("frames", "samples", "packets"):
        assert getattr(long, name) == 10 * getattr(DEFAULT_LIMITS, name)
    largest = limits_for(1e6, 2**31 - 1)
    assert all(most >= given for most, given in zip(astuple(NO_LIMITS), astuple(largest), strict=True))


@pytest.mark.parametrize("limits", [limits_for(SECONDS), NO_LIMITS], ids=["limits_for", "NO_LIMITS"])
def test_raised_limits_permit_a_long_video(long_video: Path, limits: Limits) -> None:
    with pytest.raises(MediaTooLarge, match=r"longer than the limit of 600 s; split it$"):
        probe(long_video)
    assert in_process(limits).video(long_video).info.duration_s == SECONDS
    curve = np.zeros(SECONDS * 100, np.float32)
    request = generation_request(long_video, curve, None, None, {}, limits)
    assert request.envelope is not None
    assert request.envelope.samples == SECONDS * 16_000


def test_result_of_a_long_video_is_saved(long_video: Path, tmp_path: Path) -> None:
    waveform = np.zeros(SECONDS * 16_000, np.float32)
    GenerationResult(np.zeros(1, np.float32), [Take(waveform, {})], {}, long_video).save(tmp_path / "out.mkv")
    assert probe(tmp_path / "out.mkv", NO_LIMITS).duration_s == SECONDS


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("generate", [], "longer than the limit of 600 s; split it, or raise the limit with --max-duration"),
        ("envelope", [], "longer than the limit of 600 s; split it, or raise the limit with --max-duration"),
        ("generate", ["--max-duration", "700"], "longer than the limit of 700 s; .*--max-duration"),
        ("generate", ["--max-pixels", "100"], "the limit is 100 pixels; scale it down, .* with --max-pixels"),
    ],
)
def test_command_line_names_the_option(
    long_video: Path, tmp_path: Path, command: str, options: list[str], message: str
) -> None:
    ran = CliRunner().invoke(app, [command, str(long_video), "-o", str(tmp_path / "out.csv"), *options])
    assert isinstance(ran.exception, MediaTooLarge)
    assert re.search(message, str(ran.exception))


def test_farm_names_the_option(long_video: Path, tmp_path: Path) -> None:
    row = Row(video=str(long_video), output="out.mp4", text="hits")
    failed = try_render(Task(row), None, None, tmp_path, CancelToken(), limits_for(100))  # type: ignore[arg-type]
    assert isinstance(failed, Failed)
    assert failed.permanent
    assert failed.reason.endswith("the limit of 100 s; split it, or raise the limit with --max-duration")


def test_limit_of_a_server_has_no_option() -> None:
    assert str(advised(MediaTooLarge("a.mp4 is longer than the limit of 120 s; split it"))).endswith("split it")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("60", None, True), "--no-limits excludes"),
        ((None, "100", True), "--no-limits excludes"),
        (("0", None, False), "--max-duration is 0; give seconds, or --no-limits"),
        (("nan", None, False), "--max-duration is nan"),
        (("inf", None, False), "--max-duration is inf"),
        ((None, "0", False), "--max-pixels is 0"),
        ((None, "2147483648", False), "--max-pixels is 2147483648"),
        (("2h", None, False), "--max-duration is 2h; give seconds, or --no-limits"),
        ((None, "4K", False), "--max-pixels is 4K; give a number"),
    ],
)
def test_options_that_are_not_valid(given: tuple[str | None, str | None, bool], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        limits_of(*given)
