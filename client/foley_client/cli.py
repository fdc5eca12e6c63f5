"""The `foley` command line."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from foley.application import application
from foley.audio import read_audio
from foley.errors import SettingError
from foley.media import probe
from foley.options import RANDOM_SEED, FileOptions, GenerateOptions, OpticalFlow
from foley.output import OutputFiles
from foley_client import outputs
from foley_client.connection import ConnectionOptions, connect
from foley_client.console import ProgressDisplay, console, print_timings
from foley_client.curves import check_filter, read_envelope
from foley_client.limits import MaxDuration, MaxPixels, NoLimits, advising, limits_of
from foley_client.option_parameters import with_options
from foley_client.pipes import STANDARD, Pipes, file_argument
from foley_client.render.command import render
from foley_pipeline import cache
from foley_pipeline.progress import Stage
from foley_pipeline.request import GenerationRequest
from foley_pipeline.rms2sound import Loop

app = application("Generate synchronised sound for silent video with Video-Foley.")


Video = Annotated[
    Path,
    typer.Argument(
        metavar="VIDEO",
        help="The video, in any format; it is not modified. `-`: standard input.",
        parser=file_argument,
        show_default=False,
    ),
]
Format = Annotated[
    str | None, typer.Option("--format", help="Format of standard output, `-o -`: an extension, such as wav.")
]
_SERVER = "Server"  # a panel of --help, after the options of the sound

Server = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_SERVER,
        help="Server: grpcs://HOST for a public API, whose token is in $FOLEY_TOKEN or in the file $FOLEY_TOKEN_FILE; "
        "HOST:PORT for a Triton, or for an API without TLS. By default, a Triton is started for this call.",
        envvar="FOLEY_SERVER",
    ),
]
CA = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        rich_help_panel=_SERVER,
        help="Root certificates (PEM) in place of the system's, with grpcs://. Default: $FOLEY_CA.",
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--certificate",
        rich_help_panel=_SERVER,
        help="Client certificate (PEM) for mutual TLS, with grpcs://. Default: $FOLEY_CERTIFICATE.",
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key", rich_help_panel=_SERVER, help="Private key (PEM) of the client certificate. Default: $FOLEY_KEY."
    ),
]
BundleFolder = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        rich_help_panel=_SERVER,
        help="Folder of the bundle that a started server serves.",
        show_default="demo",
    ),
]
Flow = Annotated[
    OpticalFlow | None, typer.Option(help=str(GenerateOptions.model_fields["flow"].description), show_default="default")
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        rich_help_panel=_SERVER,
        help="Do not use the cache of envelopes and embeddings, $FOLEY_CACHE/results "
        f"(default: ~/.cache/foley/results, at most {cache.MAX_BYTES >> 20} MiB).",
    ),
]


@app.command()
@with_options(FileOptions)
@advising()
def generate(
    video: Video,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Output file; repeat the option for several. The extension selects the content: .mp4 .mov .mkv .webm: "
            "the video with sound; .wav .flac: the sound; .png: a plot of the envelopes; .json .csv: the envelope. "
            "`-`: standard output, with --format.",
            parser=file_argument,
            show_default="VIDEO-foley.mp4",
        ),
    ] = None,
    format: Format = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Audio prompt: a recording with the timbre of the sound, in place of --text.",
            parser=file_argument,
        ),
    ] = None,
    envelope_file: Annotated[
        Path | None,
        typer.Option(
            "--envelope",
            metavar="FILE",
            help="Envelope to use in place of the predicted one: .json, .csv, or a recording.",
            parser=file_argument,
        ),
    ] = None,
    loop: Annotated[
        Loop, typer.Option(rich_help_panel=_SERVER, help="Where the diffusion loop runs, if the server is a Triton.")
    ] = "client",
    server: Server = None,
    ca: CA = None,
    certificate: Certificate = None,
    key: Key = None,
    bundle: BundleFolder = None,
    no_cache: NoCache = False,
    max_duration: MaxDuration = None,
    max_pixels: MaxPixels = None,
    no_limits: NoLimits = False,
    **options: Any,
) -> None:
    """Generate synchronised sound for a video.

    foley generate hits.mp4 --text "a stick hits metal" -o hits-with-sound.mp4 -o hits.wav
    """
    # validate all inputs before starting a server
    limits = limits_of(max_duration, max_pixels, no_limits)
    chosen = FileOptions(**options)
    check_filter(envelope_file, chosen.envelope_filter)
    variations = chosen.variations
    with Pipes() as pipes:
        wanted = pipes.destinations(output or [Path(f"{_stem(video)}-foley.mp4")], format, outputs.TAKE_EXTENSIONS)
        if pipes.takes_output and variations > 1:
            raise SettingError("standard output takes one sound; use one variation, or files")
        numbered = [[outputs.numbered(path, i, variations) for path in wanted] for i in range(variations)]
        paths = [path for group in numbered for path in group]
        inputs = [path for path in (video, audio, envelope_file) if path]
        outputs.check(paths, outputs.TAKE_EXTENSIONS, inputs, chosen.sound)
        video = pipes.source(video)
        audio = pipes.source(audio) if audio else None
        envelope_file = pipes.source(envelope_file) if envelope_file else None
        shared = GenerateOptions(**chosen.model_dump(include=set(GenerateOptions.model_fields)))
        request = GenerationRequest(video, None, audio, shared)
        if audio:
            read_audio(audio, limits)
        info = probe(video, limits)
        if envelope_file:
            envelope = read_envelope(envelope_file, info.duration_s, chosen.envelope_filter, limits=limits)
            request = replace(request, envelope=envelope)
        if chosen.seed == RANDOM_SEED:
            console.print(f"seed: {request.options.seed}", highlight=False)
        connection = ConnectionOptions(server, ca, certificate, key, bundle, no_cache, loop, limits)
        notes: dict[str, None] = {}  # an ordered set: variations have the same notes
        with OutputFiles() as files, ProgressDisplay() as display, connect(connection, display.timer) as backend:
            result = backend.generate(request, progress=display.on_progress)
            display.timer.timings_s.update(result.timings_s)
            with display.timer.stage(Stage.WRITE, variations) as stage:
                for i, group in enumerate(numbered):
                    for path in group:
                        with files.replacing(path) as partial:
                            written = outputs.write(partial, result, video, i, chosen.source_audio, chosen.sound)
                        notes.update(dict.fromkeys(written))
                    stage.advance()
        print_timings(display.timer)
        for note in notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        _finish(pipes, paths)


@app.command("envelope")
@advising()
def predict_envelope(
    video: Video,
    output: Annotated[
        list[Path],
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Output file: .json, .csv or .png; can be repeated. `-`: standard output, with --format.",
            parser=file_argument,
        ),
    ],
    format: Format = None,
    flow: Flow = None,
    server: Server = None,
    ca: CA = None,
    certificate: Certificate = None,
    key: Key = None,
    bundle: BundleFolder = None,
    no_cache: NoCache = False,
    max_duration: MaxDuration = None,
    max_pixels: MaxPixels = None,
    no_limits: NoLimits = False,
) -> None:
    """Predict the envelope (loudness curve) of a video, without generating sound.

    foley envelope hits.mp4 -o hits.csv -o hits.png

    The .json or .csv file can be edited and passed to `foley generate --envelope`.
    """
    limits = limits_of(max_duration, max_pixels, no_limits)
    with Pipes() as pipes:
        paths = pipes.destinations(output, format, outputs.ENVELOPE_EXTENSIONS)
        outputs.check(paths, outputs.ENVELOPE_EXTENSIONS, [video])
        video = pipes.source(video)
        probe(video, limits)
        connection = ConnectionOptions(server, ca, certificate, key, bundle, no_cache, limits=limits)
        with OutputFiles() as files, ProgressDisplay() as display, connect(connection, display.timer) as backend:
            envelope = backend.predict_envelope(video, flow=flow, progress=display.on_progress)
            for path in paths:
                with files.replacing(path) as partial:
                    outputs.write_envelope(partial, envelope)
        _finish(pipes, paths)


def _stem(video: Path) -> str:
    return "stdin" if video == STANDARD else video.stem


def _finish(pipes: Pipes, paths: list[Path]) -> None:
    """Write what is for standard output, or else the names of the files."""
    if pipes.takes_output:
        pipes.finish()
        return
    for path in paths:
        typer.echo(path)


app.command()(render)
