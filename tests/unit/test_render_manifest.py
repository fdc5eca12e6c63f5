"""Manifests: all formats give the same rows, and all faults are reported together."""

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley.errors import SettingError
from foley_client.render import manifest
from foley_client.render.row import Row
from foley_client.render.storage import SIDECAR, Output

TWINS = Path(__file__).resolve().parents[3] / "shared" / "media" / "real_world" / "twins"


def read(rows, output=None):
    return manifest.read(rows, Output(str(output), Path("nowhere")) if output else None)


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def outputs(folder, output=None):
    """Return the output of every input."""
    return {Path(row.video).relative_to(folder).as_posix(): row.output for row in read(folder, output)}


def test_csv_and_json_lines_give_the_same_rows(tmp_path):
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


def test_folder_as_manifest(tmp_path):
    fill(tmp_path, "b.mov", "a.mp4", "deep/c.webm", "notes.txt")
    assert outputs(tmp_path) == {"a.mp4": "a.mp4", "b.mov": "b.mov.mp4", "deep/c.webm": "deep/c.webm.mp4"}


def test_files_with_equal_stems_have_stable_outputs(tmp_path):
    if not TWINS.is_dir():
        pytest.skip(f"there is no {TWINS}")
    shutil.copy(TWINS / "IMG_1.mov", tmp_path)
    before = outputs(tmp_path)
    shutil.copy(TWINS / "IMG_1.mp4", tmp_path)
    assert outputs(tmp_path) == {**before, "IMG_1.mp4": "IMG_1.mp4"}


FOLDERS = st.sampled_from(["", "", "day/", "DAY/", "a.mov.mp4/", "A.mp4/"])
NAMES = st.sampled_from(["a", "A", "é", unicodedata.normalize("NFD", "é"), "a.mov", "a.mov-2"])
EXTENSIONS = st.sampled_from([".mp4", ".MP4", ".mov", ".mov.mp4"])


def normalized(name):
    return unicodedata.normalize("NFC", name.casefold())


@given(st.sets(st.builds(lambda *parts: "".join(parts), FOLDERS, NAMES, EXTENSIONS), min_size=1, max_size=8))
def test_outputs_of_a_folder_are_distinct(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("videos")
    fill(folder, *(file for file in files if not any(other.startswith(f"{file}/") for other in files)))
    names = [normalized(name) for name in outputs(folder).values()]
    assert len(set(names)) == len(names)
    assert not {str(parent) for name in names for parent in Path(name).parents} & set(names)


def test_outputs_are_not_inputs(tmp_path):
    fill(tmp_path, "a.mp4", "b.mov", "rendered.mp4")
    expected = {"a.mp4": "a.mp4", "b.mov": "b.mov.mp4", "rendered.mp4": "rendered.mp4"}
    rendered = tmp_path / "rendered"
    fill(rendered, "a.mp4", "b.mov.mp4", "deep/left over.mp4")
    assert outputs(tmp_path, rendered) == expected
    (tmp_path / "link").symlink_to(rendered)
    assert outputs(tmp_path, tmp_path / "link") == expected
    shutil.rmtree(rendered)
    (tmp_path / "link").unlink()

    fill(tmp_path, "before/a.mp4", f"before/a.mp4{SIDECAR}", "before/.foley-00.partial.mp4", ".foley-00.partial.mov")
    assert outputs(tmp_path, rendered) == expected
    assert outputs(tmp_path, tmp_path.parent) == expected  # a parent folder is allowed
    with pytest.raises(SettingError, match="use another output folder"):
        read(tmp_path, f"{tmp_path}/before/..")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.mp4", "a.mp4/b.mp4"),
        ("A.mp4/b.mp4", "a.MP4"),
        ("é.mp4", unicodedata.normalize("NFD", "É.mp4")),
        ("day/a.wav", "DAY/A.wav"),
    ],
)
def test_rejects_conflicting_outputs(tmp_path, first, second):
    rows = [{"video": "v.mp4", "output": name} for name in (first, second)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SettingError, match=r"line 2: output: .* line 1"):
        read(tmp_path / "m.jsonl")


def test_rejects_outputs_that_overwrite_inputs(tmp_path):
    fill(tmp_path, "a.mp4", "b.mp4", "c.wav", "out/d.mp4")
    (tmp_path / "e.mp4").symlink_to("out/d.mp4")
    rows = [{"video": "b.mp4", "output": "a.mp4"}, {"video": "a.mp4", "output": "b.mp4", "audio": "c.wav"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"video": "e.mp4", "output": "c.wav"}])))
    assert len(read(tmp_path / "m.jsonl")) == 3
    with pytest.raises(SettingError, match="3 invalid rows"):
        read(tmp_path / "m.jsonl", tmp_path)
    (tmp_path / "m.csv").write_text("video,output\ne.mp4,d.mp4\n")
    with pytest.raises(SettingError, match="would overwrite"):
        read(tmp_path / "m.csv", tmp_path / "out")
    (tmp_path / "m.csv").write_text("video\nmemory://bucket/in/a.mp4\n")
    assert read(tmp_path / "m.csv", "memory://bucket/out")
    with pytest.raises(SettingError, match="would overwrite"):
        read(tmp_path / "m.csv", "memory://bucket/in")


def test_all_faults_are_reported_with_line_numbers(tmp_path):
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
    [
        *(
            "../a.mp4",
            "/a.mp4",
            "a/../b.mp4",
            "a",
            "a.exe",
            "",
            "a\\b.mp4",
            "a\n.mp4",
            ".foley-x.mp4",
            "x" * 300 + ".mp4",
        ),
        *("report.html/a.mp4", "Report-12.html/a.mp4", "failures.jsonl/a.mp4", ".FOLEY-render.lock/a.mp4"),
        f"day/b.mp4{SIDECAR}/a.mp4",
    ],
)
def test_rejects_invalid_output_names(output):
    with pytest.raises(SettingError, match="output"):
        Row.model_validate({"video": "?", "output": output} if output else {"video": "v.mp4", "output": "/"})


@pytest.mark.parametrize("content", [b"", b"video\n", b"\xff\xfe", b'{"video": 1}\n[', b"\0"])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.txt"])
def test_rejects_invalid_manifest(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError):
        read(tmp_path / name)
    with pytest.raises(SettingError):
        read(tmp_path / "nowhere.csv")


@given(st.text())
def test_arbitrary_text_gives_rows_or_setting_error(tmp_path_factory, text):
    for name in ("m.csv", "m.jsonl"):
        path = tmp_path_factory.mktemp("manifest") / name
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            assert read(path)
        except SettingError as error:
            assert str(error)  # noqa: PT017
