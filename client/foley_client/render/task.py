"""What rendering one row means: the one definition, wherever it runs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from foley import __version__, envelope
from foley.bundle import file_sha256
from foley.media import probe
from foley_client import outputs
from foley_client.curves import read_envelope
from foley_client.outputs import Result
from foley_client.render.place import Output, fetched
from foley_client.render.row import Row
from foley_pipeline.foley import Foley
from foley_pipeline.job import Curve, Job, run
from foley_pipeline.watch import Watch

SIDECAR = ".foley.json"


@dataclass(frozen=True)
class Done:
    """What came of a row.

    Attributes:
        key: of everything that it was made from.
        skipped: it was there already.
        seconds: what it took, by stage.
    """

    output: str
    key: str
    skipped: bool
    seconds: Mapping[str, float]


def render(row: Row, foley: Foley, output: Output, force: bool = False) -> Done:
    """Render `row`, unless its result is there already, made from the same things.

    The sidecar, `NAME.foley.json`, is written last: where it is, its result is whole.

    Raises:
        FoleyError: what is wrong with the row, the place or the server.
    """
    with (
        TemporaryDirectory(prefix="foley-render-") as name,
        fetched(row.video, Path(name), "video") as video,
        fetched(row.audio, Path(name), "recording") as audio,
        fetched(row.envelope, Path(name), f"envelope{Path(row.envelope or '').suffix}") as curve,
    ):
        assert video is not None
        files = {"video": video, "audio": audio, "envelope": curve}
        inputs = {kind: file_sha256(path) if path else None for kind, path in files.items()}
        key = row_key(row, inputs, foley)
        if not force and is_done(output, row, key):
            return Done(row.output, key, True, {})
        watch = Watch()
        sound = run(foley, _job(row, video, audio, curve), watch)
        take = replace(sound.takes[0], recipe={**sound.takes[0].recipe, "key": key})
        with output.writing(row.output) as path:
            outputs.write(path, Result(video, sound.envelope, take, row.source_audio))
            digest = file_sha256(path)
        about = {"key": key, "sha256": digest, "recipe": take.recipe, "row": row.model_dump(mode="json")}
        with output.writing(row.output + SIDECAR) as path:
            path.write_text(json.dumps({**about, "inputs": inputs, "seconds": watch.timings_s}, indent=1) + "\n")
    return Done(row.output, key, False, dict(watch.timings_s))


def row_key(row: Row, inputs: Mapping[str, str | None], foley: Foley) -> str:
    """sha256 of all that a result depends on: contents, settings, bundle and versions, but no file's name."""
    about = {
        "inputs": inputs,
        "settings": row.model_dump(mode="json", exclude={"video", "audio", "envelope", "output"}),
        "form": Path(row.output).suffix.lower(),
        "foley": __version__,
        **foley.triton.versions,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def is_done(output: Output, row: Row, key: str) -> bool:
    """Whether the result of `row` is there, made from the things that `key` stands for."""
    content = output.read(row.output + SIDECAR)
    try:
        return content is not None and bool(json.loads(content)["key"] == key) and output.exists(row.output)
    except (ValueError, KeyError, TypeError):
        return False


def _job(row: Row, video: Path, audio: Path | None, curve: Path | None) -> Job:
    job = row.job(video, audio)
    if curve is None:
        return job
    duration_s = probe(video).duration_s
    frames, samples = envelope.frames(duration_s), envelope.samples(duration_s)
    return replace(job, source=Curve(read_envelope(curve, duration_s, frames), samples))
