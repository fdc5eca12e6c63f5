"""`foley`: video in, sound out."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from foley import command, envelope
from foley.audio import read_audio
from foley.loudness import Loudness
from foley.media import probe
from foley.mux import SourceAudio
from foley.output import replacing
from foley.profiles import ProfileName
from foley.sampler import SamplerName
from foley.schedule import Spacing
from foley.stages import FlowMethod
from foley_client import outputs
from foley_client.console import print_timings
from foley_client.curves import read_envelope
from foley_client.outputs import Result
from foley_client.render.command import render
from foley_client.session import Where, session
from foley_pipeline import cache
from foley_pipeline.content import content_sha256
from foley_pipeline.job import Curve, Job
from foley_pipeline.prompt import Prompt
from foley_pipeline.rms2sound import Loop

app = typer.Typer(
    help="Make synchronised sound for silent video with Video-Foley.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    Path | None, typer.Option("--ca", help="Certificates to trust in place of the system's.", envvar="FOLEY_CA")
]
Certificate = Annotated[
    Path | None,
    typer.Option("--certificate", help="Certificate to show where one is asked for.", envvar="FOLEY_CERTIFICATE"),
]
Key = Annotated[Path | None, typer.Option("--key", help="Key of that certificate.", envvar="FOLEY_KEY")]
BundleFolder = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle that the started server serves.", show_default="demo")
]
Flow = Annotated[
    FlowMethod | None,
    typer.Option(
        help="Optical flow. exact: as the bundle says. In place of its RAFT: warm, fewer updates that start from the "
        "flow before; dis, OpenCV's DIS.",
        show_default="exact",
    ),
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
    text: Annotated[str, typer.Option(help="What it sounds like, in words.")] = "",
    audio: Annotated[Path | None, typer.Option(help="What it sounds like, as a recording.")] = None,
    negative_text: Annotated[str, typer.Option(help="What it must not sound like; takes a guidance above 1.")] = "",
    envelope_file: Annotated[
        Path | None,
        typer.Option("--envelope", help="Loudness curve instead of the predicted one: .json, .csv, or a recording."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same sound.")] = 0,
    profile: Annotated[
        ProfileName,
        typer.Option(
            help="How much time the sound is worth. quality: twice the steps. balanced: the bundle's own. fast: few "
            "steps, guidance for half of them, and RAFT with few updates; see docs/performance.md. The options below "
            "override it."
        ),
    ] = "balanced",
    flow: Flow = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the profile's")] = None,
    sampler: Annotated[
        SamplerName | None,
        typer.Option(help="ddim: the official one. dpm++: for few steps.", show_default="the profile's"),
    ] = None,
    spacing: Annotated[
        Spacing | None,
        typer.Option(help="Which noise levels dpm++ visits.", show_default="the profile's"),
    ] = None,
    eta: Annotated[
        float, typer.Option(help="Fresh noise in every ddim step, 0 to 1; the official setting is 1.")
    ] = 0.0,
    guidance: Annotated[
        float | None,
        typer.Option(help="How strictly to follow the prompt; 1 is half the work.", show_default="the profile's"),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Lowest and highest noise level, of 0.04 to 14, with guidance; steps outside are half the work.",
            metavar="LOW HIGH",
            show_default="the profile's",
        ),
    ] = None,
    variations: Annotated[int, typer.Option(help="Sounds to make, with seeds counting up.")] = 1,
    loudness: Annotated[
        Loudness,
        typer.Option(
            help="level: as loud as the envelope over all. follow: exactly on the envelope. peak: the official "
            "normalisation."
        ),
    ] = "level",
    source_audio: Annotated[
        SourceAudio,
        typer.Option(help="The video's own sound: replace it, mix it with the new one, or keep it as a second track."),
    ] = "replace",
    loop: Annotated[Loop, typer.Option(help="Where the diffusion loop runs, with a Triton.")] = "client",
    server: Server = None,
    ca: CA = None,
    certificate: Certificate = None,
    key: Key = None,
    bundle: BundleFolder = None,
    no_cache: NoCache = False,
) -> None:
    """Make sound for a video.

    foley generate hits.mp4 --text "a stick hits metal" -o hits-with-sound.mp4 -o hits.wav
    """
    # all that can be wrong is said before a server starts
    chosen = {
        "seed": seed,
        "steps": steps,
        "sampler": sampler,
        "eta": eta or None,
        "guidance": guidance,
        "spacing": spacing,
        "guidance_interval": guidance_interval,
    }
    job = Job(video, Prompt(text, audio, negative_text), profile, flow, chosen, variations, loudness)
    paths = output or [Path(f"{video.stem}-foley.mp4")]
    numbered = [[outputs.numbered(path, i, variations) for path in paths] for i in range(variations)]
    outputs.check(
        [path for group in numbered for path in group],
        outputs.TAKE_ENDINGS,
        [path for path in (video, audio, envelope_file) if path],
    )
    if audio:
        read_audio(audio)
    info = probe(video)
    if envelope_file:
        samples, frames = envelope.samples(info.duration_s), envelope.frames(info.duration_s)
        job = replace(job, source=Curve(read_envelope(envelope_file, info.duration_s, frames), samples))
    origin = {
        "video": video.name,
        "video_sha256": content_sha256(video),
        "envelope": envelope_file.name if envelope_file else "predicted",
        "audio": audio.name if audio else None,
    }
    where = Where(server, ca, certificate, key, bundle, no_cache)
    with ExitStack() as files, session(where) as (maker, watch):
        sound = maker.generate(job, watch, loop)
        with watch.stage("writing", len(sound.takes)) as stage:
            for take, group in zip(sound.takes, numbered, strict=True):
                result = Result(video, sound.envelope, replace(take, recipe={**take.recipe, **origin}), source_audio)
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
    """Predict only the loudness curve of a video; give it back, edited or not, with `generate --envelope`.

    foley envelope hits.mp4 -o hits.csv -o hits.png
    """
    outputs.check(output, outputs.ENVELOPE_ENDINGS, [video])
    probe(video)
    where = Where(server, ca, certificate, key, bundle, no_cache)
    with ExitStack() as files, session(where) as (maker, watch):
        curve = maker.predict_envelope(video, watch, flow)
        for path in output:
            outputs.write(files.enter_context(replacing(path)), Result(video, curve))
    for path in output:
        typer.echo(path)


app.command()(render)


def main() -> None:
    """Entry point."""
    command.run(app)
