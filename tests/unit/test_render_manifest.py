"""Manifests: all formats give the same rows, and all faults are reported together."""

import csv
import json
import os
import re
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
from harness.media_files import REAL_WORLD, needs_media

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


def test_folders_of_cameras(tmp_path):
    videos = ["a.MTS", "b.m2ts", "c.MXF", "d.avi", "e.3GP", "f.VOB", "g.ogv", "DCIM/100/h.DV", "i.apng"]
    fill(
        tmp_path,
        *videos,
        "._a.mp4",
        ".hidden.mp4",
        ".Trashes/x.mp4",
        "@eaDir/a.MTS/y.mp4",
        "__MACOSX/z.mp4",
        ".DS_Store",
    )
    said = []
    assert [row.video for row in manifest.read(tmp_path, say=said.append)] == sorted(
        str(tmp_path / one) for one in videos
    )
    assert said == []
    fill(tmp_path, "DCIM/notes.txt", *(f"{i}.jpg" for i in range(6)))
    assert len(manifest.read(tmp_path, say=said.append)) == len(videos)
    assert said == ["7 other files were passed over: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, ..."]


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


@pytest.mark.parametrize("second", ["link/b.mp4", "day/link.mp4", "link/B.MP4"])
def test_rejects_outputs_that_are_one_file_through_links(tmp_path, second):
    (tmp_path / "out/day").mkdir(parents=True)
    (tmp_path / "out/link").symlink_to("day")
    (tmp_path / "out/day/link.mp4").symlink_to("b.mp4")
    (tmp_path / "m.csv").write_text(f"video,output\nv.mp4,day/b.mp4\nv.mp4,{second}\n")
    with pytest.raises(SettingError, match=r"line 3: output: .* line 2"):
        read(tmp_path / "m.csv", tmp_path / "out")


def test_rejects_outputs_that_overwrite_inputs(tmp_path):
    fill(tmp_path, "a.mp4", "b.mp4", "c.wav", "out/d.mp4")
    (tmp_path / "e.mp4").symlink_to("out/d.mp4")
    rows = [{"video": "b.mp4", "output": "a.mp4"}, {"video": "a.mp4", "output": "b.mp4", "audio": "c.wav"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"video": "e.mp4", "output": "c.wav"}])))
    assert len(read(tmp_path / "m.jsonl")) == 3
    with pytest.raises(SettingError, match=r"^invalid rows in .* \(3\):"):
        read(tmp_path / "m.jsonl", tmp_path)
    (tmp_path / "m.csv").write_text("video,output\ne.mp4,d.mp4\n")
    with pytest.raises(SettingError, match="would overwrite"):
        read(tmp_path / "m.csv", tmp_path / "out")
    (tmp_path / "m.csv").write_text("video\nmemory://bucket/in/a.mp4\n")
    assert read(tmp_path / "m.csv", "memory://bucket/out")
    with pytest.raises(SettingError, match="would overwrite"):
        read(tmp_path / "m.csv", "memory://bucket/in")


@needs_media
@pytest.mark.parametrize("name", ["excel_blank.csv", "semicolon.csv", "utf16.csv", "variations.csv"])
def test_tables_of_excel(name):
    count = 3 if name == "variations.csv" else 1
    rows = read(REAL_WORLD / name)
    assert [row.output for row in rows] == (["one-1.mp4", "one-2.mp4", "one-3.mp4"] if count > 1 else ["one.mp4"])
    assert {row.video for row in rows} == {str(REAL_WORLD / "clips/a.mp4")}
    assert [row.seed for row in rows] == list(range(count))
    assert {row.variations for row in rows} == {1}


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n"), max_size=12).map(str.strip)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS, st.floats(1, 100)), min_size=1, max_size=3),
    separator=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    heading=st.sampled_from(["negative_text", "Negative Text", "NEGATIVE-TEXT", " negative  text "]),
    decimal=st.sampled_from(".,"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    says_separator=st.booleans(),
    blank=st.integers(0, 2),
)
def test_every_dialect_gives_the_same_rows(
    tmp_path_factory, rows, separator, encoding, heading, decimal, end, says_separator, blank
):
    """The csv module of Python writes the tables."""
    path = tmp_path_factory.mktemp("manifest") / "m.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        file.write(f"sep={separator}{end}" if says_separator else "")
        quoting = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL  # else a line feed in a cell is not quoted
        table = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)
        empty = [""] * (4 + blank)
        table.writerows([empty] * blank)
        table.writerow(["VIDEO", "Text", heading, "Guidance", *[""] * blank])
        for i, (text, negative, guidance) in enumerate(rows):
            number = str(guidance).replace(".", decimal)
            table.writerows([[f"{i}.mp4", text, negative, number, *[""] * blank], *[empty] * blank])
    found = [(row.text, row.negative_text, row.guidance) for row in read(path)]
    assert found == [
        tuple(cell.replace("\r\n", "\n") if isinstance(cell, str) else cell for cell in row) for row in rows
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("video,text\nå.mp4,x\n".encode("latin-1"), "is not UTF-8 text; in Excel, choose 'CSV UTF-8'"),
        ("video\na.mp4\n".encode("utf-16-le"), "is not UTF-8 text"),
        ("video\na.mp4\n".encode("utf-32"), "is not UTF-8 text"),
        (b"PK\x03\x04...", "is a workbook; save it as 'CSV UTF-8'"),
        (b"sep=x\nvideo\na.mp4\n", "the separator 'x' is not supported"),
        (b"video,text,text\na.mp4,x,y\n", "the column 'text' is there twice"),
        (
            b"Clip;Text\na.mp4;x\n",
            "there is no column 'video'; there is no column 'Clip'; the columns are video",
        ),
        (b"video,seed\na.mp4,1.84467E+19\n", "line 2: seed is '1.84467E+19', which a spreadsheet rounded"),
        (b"video;steps\na.mp4;1.000\n", "line 2: steps is '1.000'; write the number without separators"),
        (b'video,text\na.mp4,"x\n', "line 2: it is not valid CSV"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, content, words):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(SettingError, match=re.escape(words)):
        read(tmp_path / "m.csv")


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(SettingError, match="is a workbook; save it as 'CSV UTF-8'"):
        read(tmp_path / "m.XLSX")
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(SettingError, match="is not a manifest"):
        read(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("m.tsv", ["Video\tnotes\tSed", "a.mp4\tx\t3", "b.mp4\ty\t4"]),
        ("m.jsonl", [json.dumps({"video": f"{i}.mp4", "notes": "x", "Sed": 3}) for i in range(3)]),
    ],
)
def test_unknown_columns_are_named_once_for_the_file(tmp_path, name, lines):
    (tmp_path / name).write_text("\n".join(lines))
    with pytest.raises(SettingError) as refused:
        read(tmp_path / name)
    heading, fault = str(refused.value).splitlines()
    assert heading == f"invalid rows in {tmp_path / name} (1):"
    assert fault == (
        "line 1: there is no column 'notes' or 'Sed' (did you mean 'seed'?); the columns are "
        "video, output, audio, envelope, text, negative_text, seed, profile, sampler, steps, timestep_spacing, eta, "
        "guidance, guidance_interval, flow, variations, loudness, source_audio, envelope_filter, "
        "sample_rate, bit_depth"
    )


def test_every_option_of_generate_in_a_table(tmp_path):
    values = {
        **{"video": "a.mp4", "output": "b.wav", "envelope": "c.wav", "envelope_filter": "official", "text": "glass"},
        **{"negative_text": "music", "seed": str(2**64 - 3), "profile": "fast", "sampler": "dpm++", "steps": "7"},
        **{"timestep_spacing": "karras", "guidance": "2", "guidance_interval": "0,3 100", "flow": "dis"},
        **{"loudness": "follow", "source_audio": "mix", "variations": "3"},
        **{"sample_rate": "48000", "bit_depth": "24"},
    }
    assert values.keys() == Row.model_fields.keys() - {"audio", "eta"}
    (tmp_path / "m.csv").write_text(";".join(values) + "\n" + ";".join(values.values()) + "\n")
    rows = read(tmp_path / "m.csv")
    assert [(row.output, row.seed) for row in rows] == [(f"b-{i + 1}.wav", 2**64 - 3 + i) for i in range(3)]
    wanted = Row(**{**values, "guidance_interval": (0.3, 100.0)})
    same = {"video", "envelope", "output", "seed", "variations"}
    assert all(row.model_dump(exclude=same) == wanted.model_dump(exclude=same) for row in rows)
    (tmp_path / "m.csv").write_text("video,audio,sampler,eta,seed\na.mp4,c.wav,ddim,0.5,-1\n")
    (row,) = read(tmp_path / "m.csv")
    assert (row.eta, row.seed) == (0.5, -1)  # the same in every run, so that its result is found again


@pytest.mark.parametrize("bad", [5, True, None, [], {}, "", "x", "1,5", 3.5, ["a", "b"], -7, "9" * 300, "\udc80"])
@pytest.mark.parametrize("option", Row.model_fields)
def test_no_message_has_the_words_of_pydantic(option, bad):
    try:
        Row.model_validate({"video": "a.mp4", "output": "a.mp4", option: bad})
        said = option
    except SettingError as error:
        said = str(error)
    assert option in said
    assert not re.search("Input|should|pydantic|valid (string|integer|number)|permitted|two .* two", said)


def test_variations_do_not_write_the_results_of_other_rows(tmp_path):
    (tmp_path / "m.csv").write_text("video,output,variations\na.mp4,a.mp4,3\nb.mp4,A-2.mp4,\nc.mp4,a.mp4,\n")
    with pytest.raises(SettingError, match=r"line 3: output: 'A-2.mp4' is also the output of line 2"):
        read(tmp_path / "m.csv")


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
        ",h.mp4,,,\n"
    )
    with pytest.raises(SettingError) as refused:
        read(tmp_path / "m.csv")
    text = str(refused.value)
    faults = {2: "steps", 4: "output", 6: "line 5", 7: "profile", 8: "seed", 9: "no heading", 10: "video is required"}
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


def test_messages_on_hostile_tables_are_short(tmp_path):
    wide, long = ",".join(f"x{i}" for i in range(100_000)), "y" * 100_000
    for text in (
        f"video,{wide}\na.mp4\n",
        f"video,{long}\na.mp4,1\n",
        f"video\na.mp4,{long}\n",
        f"video,seed\na,{long}\n",
    ):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(SettingError) as refused:
            read(tmp_path / "m.csv")
        assert len(str(refused.value)) < 1_000
