"""Manifests: every form gives the same rows, and all that is wrong in one is said at once."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley.errors import SettingError
from foley_client.render.manifest import read
from foley_client.render.row import Row


def test_a_table_and_json_lines_give_the_same_rows(tmp_path):
    rows = [
        {"video": "a.mp4", "text": "glass, broken", "seed": 7, "guidance_interval": [0.3, 100.0]},
        {"video": "s3://bucket/b.mov", "output": "day 1/b.wav", "steps": 10, "loudness": "follow"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (tmp_path / "m.csv").write_text(
        "video,output,text,seed,guidance_interval,steps,loudness\n"
        'a.mp4,,"glass, broken",7,0.3 100,,\n'
        "s3://bucket/b.mov,day 1/b.wav,,,,10,follow\n"
    )
    found = read(tmp_path / "m.jsonl")
    assert found == read(tmp_path / "m.csv")
    assert [row.output for row in found] == ["a.mp4", "day 1/b.wav"]
    assert [row.video for row in found] == [str(tmp_path / "a.mp4"), "s3://bucket/b.mov"]
    assert found[0].guidance_interval == (0.3, 100.0)


def test_a_folder_is_a_manifest(tmp_path):
    for name in ("b.mov", "a.mp4", "deep/c.webm", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [row.output for row in read(tmp_path)] == ["a.mp4", "b.mp4", "deep/c.mp4"]


def test_all_faults_are_said_at_once_with_their_lines(tmp_path):
    (tmp_path / "m.csv").write_text(
        "video,output,steps,seed,profile\n"
        "a.mp4,,0,,\n"
        ",,,,\n"
        "b.mp4,../b.mp4,,,\n"
        "c.mp4,same.mp4,,,\n"
        "d.mp4,SAME.mp4,,,\n"
        "e.mp4,,,,slow\n"
        "f.mp4,,many,x,\n"
        "g.mp4,,,,,surplus\n"
    )
    with pytest.raises(SettingError) as refused:
        read(tmp_path / "m.csv")
    text = str(refused.value)
    faults = {2: "steps", 3: "video", 4: "output", 6: "line 5", 7: "profile", 8: "seed", 9: "cells"}
    for line, word in faults.items():
        assert any(one.startswith(f"line {line}: ") and word in one for one in text.splitlines()), (line, text)


@pytest.mark.parametrize(
    "output",
    ["../a.mp4", "/a.mp4", "a/../b.mp4", "a", "a.exe", "", "a\\b.mp4", "a\n.mp4", ".foley-x.mp4", "x" * 300 + ".mp4"],
)
def test_a_name_stays_below_the_output_folder(output):
    with pytest.raises(SettingError, match="output"):
        Row.model_validate({"video": "?", "output": output} if output else {"video": "v.mp4", "output": "/"})


@pytest.mark.parametrize("content", [b"", b"video\n", b"\xff\xfe", b'{"video": 1}\n[', b"\0"])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.txt"])
def test_what_is_no_manifest_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError):
        read(tmp_path / name)
    with pytest.raises(SettingError):
        read(tmp_path / "nowhere.csv")


@given(st.text())
def test_any_text_is_rows_or_named_faults(tmp_path_factory, text):
    for name in ("m.csv", "m.jsonl"):
        path = tmp_path_factory.mktemp("manifest") / name
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            assert read(path)
        except SettingError as error:
            assert str(error)  # noqa: PT017
