"""The `foley` command line."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from foley import envelope
from foley.application import application
from foley.audio import read_audio
from foley.media import probe
from foley.options import FileOptions, GenerateOptions, OpticalFlow
from foley.output import replacing
from foley_client import outputs
from foley_client.console import print_timings
from foley_client.curves import check_filter, read_envelope
from foley_client.option_parameters import with_options
from foley_client.outputs import Result
from foley_client.render.command import render
from foley_client.session import Where, session
from foley_pipeline import cache
from foley_pipeline.content import content_sha256
from foley_pipeline.job import Curve, Job
from foley_pipeline.rms2sound import Loop

app = application("Make synchronised sound for silent video with Video-Foley.")


Video = Annotated[Path, typer.Argument(help="The video, in any format; it is only read.", show_default=False)]
Server = Annotated[
    str | None,
    typer.Option(
        help="Server to use: grpcs://HOST, a public API, whose token is in $FOLEY_TOKEN or the file "
        "$FOLEY_TOKEN_FILE; or HOST:PORT, a Triton or an API without TLS. Without it one is started for this call.",
        envvar="FOLEY_SERVER",
    ),
]
CA = Annotated[
    Path | None,
    typer.Option("--ca", help="Certificates to trust, not the system's. With grpcs://: or $FOLEY_CA."),
]
Certificate = Annotated[
    Path | None,
    typer.Option("--certificate", help="Client certificate for mutual TLS. With grpcs://: or $FOLEY_CERTIFICATE."),
]
Key = Annotated[Path | None, typer.Option("--key", help="Key of that certificate. With grpcs://: or $FOLEY_KEY.")]
BundleFolder = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle that the started server serves.", show_default="demo")
]
Flow = Annotated[
    OpticalFlow | None, typer.Option(help=str(GenerateOptions.model_fields["flow"].description), show_default="default")
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Make everything anew. Otherwise what was made before from the same video or prompt is taken from "
        f"$FOLEY_CACHE/results (by default ~/.cache/foley/results), which keeps the last {cache.MAX_BYTES >> 20} MiB.",
    ),
]


@app.command()
@with_options(FileOptions)
def generate(
    video: Video,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write; may be given several times. .mp4 .mov .mkv .webm: the video with its sound; "
            ".wav: the sound; .png: requested and produced envelope; .json .csv: the envelope.",
            show_default="VIDEO-foley.mp4",
        ),
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="What it sounds like, as a recording.")] = None,
    envelope_file: Annotated[
        Path | None,
        typer.Option("--envelope", help="Loudness curve instead of the predicted one: .json, .csv, or a recording."),
    ] = None,
    loop: Annotated[Loop, typer.Option(help="Where the diffusion loop runs, with a Triton.")] = "client",
    server: Server = None,
    ca: CA = None,
    certificate: Certificate = None,
    key: Key = None,
    bundle: BundleFolder = None,
    no_cache: NoCache = False,
    **options: Any,
) -> None:
    """Generate synchronised sound for a video.

    foley generate hits.mp4 --text "a stick hits metal" -o hits-with-sound.mp4 -o hits.wav
    """
    # validate all inputs before starting a server
    chosen = FileOptions(**options)
    check_filter(envelope_file, chosen.envelope_filter)
    job = Job(video, GenerateOptions(**chosen.model_dump(include=set(GenerateOptions.model_fields))), audio)
    variations = chosen.variations
    paths = output or [Path(f"{video.stem}-foley.mp4")]
    numbered = [[outputs.numbered(path, i, variations) for path in paths] for i in range(variations)]
    outputs.check(
        [path for group in numbered for path in group],
        outputs.TAKE_EXTENSIONS,
        [path for path in (video, audio, envelope_file) if path],
    )
    if audio:
        read_audio(audio)
    info = probe(video)
    if envelope_file:
        samples, frames = envelope.samples(info.duration_s), envelope.frames(info.duration_s)
        curve = read_envelope(envelope_file, info.duration_s, frames, chosen.envelope_filter)
        job = replace(job, source=Curve(curve, samples))
    origin = {
        "video": video.name,
        "video_sha256": content_sha256(video),
        "envelope": envelope_file.name if envelope_file else "predicted",
        "envelope_filter": chosen.envelope_filter,
        "audio": audio.name if audio else None,
    }
    where = Where(server, ca, certificate, key, bundle, no_cache)
    with ExitStack() as files, session(where) as (maker, watch):
        sound = maker.generate(job, watch, loop)
        with watch.stage("writing", len(sound.takes)) as stage:
            for take, group in zip(sound.takes, numbered, strict=True):
                result = Result(
                    video, sound.envelope, replace(take, recipe={**take.recipe, **origin}), chosen.source_audio
                )
                for path in group:
                    outputs.write(files.enter_context(replacing(path)), result)
                stage.advance()
    print_timings(watch)
    for group in numbered:
        for path in group:
            typer.echo(path)


@app.command("envelope")
def predict_envelope(
    video: Video,
    output: Annotated[
        list[Path],
        typer.Option("-o", "--output", help="File to write: .json, .csv (both can be edited and used) or .png."),
    ],
    flow: Flow = None,
    server: Server = None,
    ca: CA = None,
    certificate: Certificate = None,
    key: Key = None,
    bundle: BundleFolder = None,
    no_cache: NoCache = False,
) -> None:
    """Predict only the loudness curve of a video, without generating sound.

    foley envelope hits.mp4 -o hits.csv -o hits.png

    The .json or .csv file can be edited and passed to `foley generate --envelope`.
    """
    outputs.check(output, outputs.ENVELOPE_EXTENSIONS, [video])
    probe(video)
    where = Where(server, ca, certificate, key, bundle, no_cache)
    with ExitStack() as files, session(where) as (maker, watch):
        curve = maker.predict_envelope(video, watch, flow)
        for path in output:
            outputs.write(files.enter_context(replacing(path)), Result(video, curve))
    for path in output:
        typer.echo(path)


app.command()(render)
