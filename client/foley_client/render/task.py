"""Renders one row. All engines use this module."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from foley import __version__, envelope
from foley.container import DEFAULT_LIMITS, Limits
from foley.envelope import Floats
from foley.errors import FoleyError, InvalidInput, MediaTooLarge, ServerUnavailable
from foley.media import probe
from foley.profiles import resolve_flow
from foley.scratch import explained
from foley_client import outputs
from foley_client.curves import read_envelope
from foley_client.limits import advised
from foley_client.render.row import MAX_NAME, Row
from foley_client.render.storage import SIDECAR, Output, fetched
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.hashing import content_sha256
from foley_pipeline.progress import Stage, StageTimer
from foley_pipeline.request import EnvelopeInput
from foley_pipeline.triton_backend import TritonBackend

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Predicted:
    """A predicted envelope.

    Attributes:
        key: Hash of everything that the envelope depends on.
        envelope: RMS values [frames at 100 Hz].
    """

    key: str
    envelope: Floats


@dataclass(frozen=True)
class Task:
    """A row to render.

    Attributes:
        row: The row.
        force: Whether to render it even if its result exists.
        predicted: Envelope of another row with this video, which is used if its key matches.
    """

    row: Row
    force: bool = False
    predicted: Predicted | None = None


@dataclass(frozen=True)
class Done:
    """Outcome of a row that is rendered.

    Attributes:
        skipped: Whether its result existed already.
        seconds: Stage to seconds.
        predicted: Its envelope, for other rows with this video; None if the envelope was given.
    """

    skipped: bool
    seconds: Mapping[str, float]
    predicted: Predicted | None


@dataclass(frozen=True)
class Failed:
    """Outcome of a row that is not rendered.

    Attributes:
        kind: Name of the class of the error.
        reason: Message of the error.
        worker_lost: Whether the worker was lost, rather than the row at fault.
        permanent: Whether a retry cannot succeed, because the input is invalid.
    """

    kind: str
    reason: str
    worker_lost: bool = False
    permanent: bool = False


def try_render(
    task: Task,
    backend: TritonBackend,
    output: Output,
    scratch: Path,
    cancel: CancelToken,
    limits: Limits = DEFAULT_LIMITS,
) -> Done | Failed:
    """Call `render`, and return every error as `Failed`."""
    try:
        return render(task, backend, output, scratch, cancel, limits)
    except FoleyError as error:
        # an input that cannot be read may be readable again later, or on another worker
        is_transient = error.retry_after_s is not None or isinstance(error.__cause__, OSError)
        permanent = isinstance(error, InvalidInput) and not is_transient
        reason = str(advised(error) if isinstance(error, MediaTooLarge) else error)
        return Failed(type(error).__name__, reason, isinstance(error, ServerUnavailable), permanent)
    except Exception as error:  # an unexpected error in one row must not stop the others
        log.exception("a row failed")
        return Failed(type(error).__name__, f"internal error ({error}); please report it")


def render(
    task: Task,
    backend: TritonBackend,
    output: Output,
    scratch: Path,
    cancel: CancelToken,
    limits: Limits = DEFAULT_LIMITS,
) -> Done:
    """Render a row, unless a result with the same key exists.

    The sidecar, `NAME.foley.json`, is emptied before the result is written and filled afterwards, so a sidecar with
    content implies a complete result.

    Args:
        task: The row to render.
        backend: The two stages on a connected server.
        output: Destination of the result.
        scratch: Local folder for copies of inputs.
        cancel: Cancels the work.
        limits: Limits on the inputs.

    Raises:
        FoleyError: The row is not valid, the output is not writable, or the server failed.
    """
    row, timer = task.row, StageTimer()
    with ExitStack() as copies:
        with explained():
            folder = Path(copies.enter_context(TemporaryDirectory(dir=scratch)))

        def local(kind: str, url_or_path: str | None) -> Path | None:
            if url_or_path is None:
                return None
            with explained():
                (folder / kind).mkdir()
            return copies.enter_context(fetched(url_or_path, folder / kind, _file_name(url_or_path)))

        files = {kind: local(kind, getattr(row, kind)) for kind in ("video", "audio", "envelope")}
        video, audio, curve = files.values()
        assert video is not None
        request, info = row.request(video, audio), probe(video, limits)
        inputs = {kind: content_sha256(path) if path else None for kind, path in files.items()}
        key = row_key(row, inputs, backend.triton.versions)
        flow = resolve_flow(row, backend.triton.stages)
        envelope_key = _hash({"video": inputs["video"], "flow": flow, "av": av.__version__, **_versions(backend)})
        if not task.force and (predicted := _found(output, row, key)):
            return Done(True, {}, predicted)

        given = None
        if curve:
            given = read_envelope(curve, info.duration_s, row.envelope_filter, limits=limits)
        elif task.predicted and task.predicted.key == envelope_key:
            given = EnvelopeInput(task.predicted.envelope, envelope.samples(info.duration_s), "predicted")
        result = backend.generate(replace(request, envelope=given), cancel=cancel)
        timer.timings_s.update(result.timings_s)

        # the flow of an envelope that was predicted for another row is known here only
        take = replace(result.takes[0], recipe={**result.recipe, "flow": None if curve else flow})
        result = replace(result, takes=[take])
        if output.size(row.output + SIDECAR) is not None:
            with output.writing(row.output + SIDECAR) as path:
                path.write_text("{}\n")
        with timer.stage(Stage.WRITE), output.writing(row.output) as path:
            notes = outputs.write(path, result, video, source_audio=row.source_audio, sound=row.sound)
            size = path.stat().st_size
        about = {
            "key": key,
            "bytes": size,
            "recipe": take.recipe,
            "row": row.model_dump(mode="json", exclude_defaults=True),
            "inputs": inputs,
            "notes": notes,
            "seconds": {stage: round(seconds, 3) for stage, seconds in timer.timings_s.items()},
            "envelope_key": None if curve else envelope_key,
            "envelope": [float(str(value)) for value in result.envelope],
            "produced": [round(float(value), 4) for value in envelope.measure(take.waveform)],
        }
        with output.writing(row.output + SIDECAR) as path:
            path.write_text(json.dumps(about) + "\n")
    return Done(False, timer.timings_s, None if curve else Predicted(envelope_key, result.envelope))


def row_key(row: Row, inputs: Mapping[str, str | None], versions: Mapping[str, str]) -> str:
    """Return the hash of everything a result depends on.

    These are the contents of the inputs, settings, format, bundle and versions, but not the names and locations of
    files.
    """
    settings = row.model_dump(mode="json", exclude={"video", "audio", "envelope", "output"})
    form = PurePosixPath(row.output).suffix.lower()
    return _hash({"inputs": inputs, "settings": settings, "form": form, "foley": __version__, **versions})


def sidecar(output: Output, name: str) -> dict[str, Any] | None:
    """Return the content of the sidecar of the result `name`, or None if the result is missing or incomplete.

    Raises:
        OutputError: The store cannot be accessed.
    """
    content = output.read(name + SIDECAR)
    try:
        about = json.loads(content) if content else None
        return about if about and about["bytes"] == output.size(name) else None
    except (ValueError, KeyError, TypeError):
        return None


def _found(output: Output, row: Row, key: str) -> Predicted | None:
    about = sidecar(output, row.output)
    if about is None or about.get("key") != key:
        return None
    return Predicted(str(about.get("envelope_key")), np.array(about.get("envelope"), np.float32))


def _versions(backend: TritonBackend) -> dict[str, str]:
    return {"foley": __version__, **backend.triton.versions}


def _file_name(url_or_path: str) -> str:
    """Return the name of a file, for its local copy and the recipe, without the query of a URL."""
    return PurePosixPath(re.sub(r"[?#].*", "", url_or_path)).name[-MAX_NAME:] or "file"


def _hash(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
