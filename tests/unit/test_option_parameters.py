"""The options of the command line that are made from the options of a generation."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foley.errors import SettingError
from foley_client.cli import app

VIDEO = Path(__file__).parents[2] / "examples" / "steel.mp4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "best"], "profile is 'best': use quality, balanced, fast"),
        (["--bit-depth", "20"], "bit_depth is '20': use 16, 24, 32f"),
        (["--seed", "abc"], "seed is 'abc': use a whole number, -1 to 2^64 - 1"),
        (["--steps", "1.5"], "steps is '1.5': use a whole number, 1 to 1,000"),
        (["--guidance", "2,5"], "guidance is '2,5': use 1 to 100"),
        (["--guidance-interval", "low", "high"], "guidance_interval is 'low': use two numbers"),
        (["--sample-rate", "48k"], "sample_rate is '48k': use a whole number, 16,000 to 192,000"),
    ],
)
def test_invalid_value_is_refused_in_one_sentence(options: list[str], message: str) -> None:
    ran = CliRunner().invoke(app, ["generate", str(VIDEO), *options])
    assert isinstance(ran.exception, SettingError)
    assert str(ran.exception) == message


def test_help_lists_the_options_of_the_sound_before_those_of_the_server() -> None:
    shown = CliRunner().invoke(app, ["generate", "--help"], terminal_width=80).output
    shown = shown[shown.index("Options ─") :]
    places = [shown.index(flag) for flag in ("--output", "--text", "--sample-rate", "--server", "--max-duration")]
    assert places == sorted(places)
    assert re.search(r"--seed +NUMBER\|random", shown)
