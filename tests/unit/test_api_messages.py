"""Jobs as messages and back, and what is wrong with a message."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley.envelope import frames
from foley.errors import InvalidInput
from foley.profiles import PROFILES
from foley.sampler import SAMPLERS, Sampling
from foley.schedule import SPACINGS
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import generation_message, job_of, options_of, pieces, takes_of
from foley_pipeline.foley import Take
from foley_pipeline.job import Curve, Job
from foley_pipeline.prompt import Prompt

VIDEO, RECORDING = Path("/uploads/video"), Path("/uploads/recording")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
prompts = st.builds(Prompt, text=texts, negative_text=texts) | st.builds(
    Prompt, audio=st.just(RECORDING), negative_text=texts
)


@st.composite
def curves(draw):
    samples = draw(st.integers(1, 3_000))
    count = frames(samples / 16_000)
    values = draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count))
    return Curve(np.array(values, np.float32), samples)


@st.composite
def samplings(draw):
    fields = {
        "sampler": st.sampled_from(SAMPLERS),
        "steps": st.integers(1, 1000),
        "guidance": st.floats(1, 100),
        "eta": st.floats(0, 1),
        "seed": st.integers(0, 2**63 - 20),
        "spacing": st.sampled_from(SPACINGS),
        "guidance_interval": st.tuples(st.floats(0, 50), st.floats(50, 100)),
    }
    chosen = {name: draw(values) for name, values in fields.items() if draw(st.booleans())}
    if chosen.get("eta"):
        chosen["sampler"] = "ddim"
    if chosen.get("sampler") == "ddim":
        chosen.pop("spacing", None)
    elif "sampler" in chosen:
        chosen.pop("eta", None)
    return chosen


jobs = st.builds(
    Job,
    source=st.just(VIDEO) | curves(),
    prompt=prompts,
    profile=st.sampled_from(list(PROFILES)),
    sampling=samplings(),
    variations=st.integers(1, 16),
    level=st.sampled_from(["level", "follow", "peak"]),
)


@given(jobs)
def test_a_job_comes_back_as_it_was_sent(job):
    message = pb.GenerateOptions.FromString(options_of(job).SerializeToString())
    again = job_of(message, VIDEO, RECORDING)
    for name in ("prompt", "profile", "flow", "variations", "level"):
        assert getattr(again, name) == getattr(job, name)
    assert dict(again.sampling) == dict(job.sampling)
    if isinstance(job.source, Curve):
        np.testing.assert_array_equal(again.source.envelope, job.source.envelope)
        assert again.source.samples == job.source.samples
    else:
        assert again.source == job.source


@pytest.mark.parametrize("flow", [None, "exact", "warm", "dis"])
def test_the_optical_flow_comes_back(flow):
    assert job_of(options_of(Job(VIDEO, flow=flow)), VIDEO, RECORDING).flow == flow


def options(**changes):
    """A good message with some fields changed: `sampling__seed=1` is options.sampling.seed."""
    message = pb.GenerateOptions(video=pb.VideoSource(), prompt=pb.Prompt(text="a"))
    for path, value in changes.items():
        *parents, name = path.split("__")
        target = message
        for parent in parents:
            target = getattr(target, parent)
        if isinstance(value, list):
            getattr(target, name).extend(value)
        else:
            setattr(target, name, value)
    return message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sampling__step_count": 0}, "sampling.step_count"),
        ({"sampling__step_count": 1001}, "sampling.step_count"),
        ({"sampling__step_count": -1}, "sampling.step_count"),
        ({"sampling__guidance": 0.5}, "sampling.guidance"),
        ({"sampling__guidance": float("nan")}, "sampling.guidance"),
        ({"sampling__guidance": float("inf")}, "sampling.guidance"),
        ({"sampling__eta": 2.0}, "sampling.eta"),
        ({"sampling__eta": float("nan")}, "sampling.eta"),
        ({"sampling__seed": -1}, "sampling.seed"),
        (
            {"sampling__guidance_interval__low": 2.0, "sampling__guidance_interval__high": 1.0},
            "sampling.guidance_interval",
        ),
        ({"sampling__guidance_interval__high": float("nan")}, "sampling.guidance_interval"),
        ({"sampling__profile": 99}, "sampling.profile"),
        ({"sampling__sampler": 99}, "sampling.sampler"),
        ({"sampling__spacing": -5}, "sampling.spacing"),
        ({"sampling__sampler": pb.SAMPLER_DPM_SOLVER, "sampling__eta": 0.5}, "sampling"),
        ({"sampling__sampler": pb.SAMPLER_DDIM, "sampling__spacing": pb.SPACING_KARRAS}, "sampling"),
        ({"video__optical_flow": 7}, "video.optical_flow"),
        ({"loudness": 12}, "loudness"),
        ({"variation_count": 17}, "variation_count"),
        ({"variation_count": -1}, "variation_count"),
        ({"variation_count": 2, "sampling__seed": 2**63 - 1}, "variation_count"),
        ({"prompt__text": "x" * 2001}, "prompt"),
        ({"prompt__negative_text": "x" * 2001}, "prompt"),
        ({"envelope__envelope__rms": [0.1, float("nan")]}, "envelope.envelope.rms"),
        ({"envelope__envelope__rms": [0.1, float("inf")]}, "envelope.envelope.rms"),
        ({"envelope__envelope__rms": [-0.1]}, "envelope.envelope.rms"),
        ({"envelope__sample_count": 160}, "envelope.envelope.rms"),
        ({"envelope__envelope__rms": [0.1, 0.1], "envelope__sample_count": 160}, "envelope.sample_count"),
        ({"envelope__envelope__rms": [0.1, 0.1], "envelope__sample_count": 321}, "envelope.sample_count"),
        ({"envelope__envelope__rms": [0.1], "envelope__sample_count": -1}, "envelope.sample_count"),
    ],
)
def test_17_what_is_wrong_is_named(changes, field):
    with pytest.raises(InvalidInput) as refused:
        job_of(options(**changes), VIDEO, RECORDING)
    assert refused.value.field == field


def test_17_a_source_is_needed():
    with pytest.raises(InvalidInput) as refused:
        job_of(pb.GenerateOptions(prompt=pb.Prompt(text="a")), VIDEO, RECORDING)
    assert refused.value.field == "source"


@given(st.binary(max_size=300))
def test_16_any_bytes_are_a_job_or_are_refused(content):
    try:
        message = pb.GenerateOptions.FromString(content)
    except Exception:  # protobuf refuses it, and gRPC with it
        return
    with suppress(InvalidInput):
        job = job_of(message, VIDEO, RECORDING)
        assert Sampling(**{"sampler": "ddim" if job.sampling.get("eta") else "dpm++", **job.sampling})


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=3))
def test_takes_come_back_from_their_pieces(lengths):
    random = np.random.default_rng(0)
    takes = [Take(random.random(n, np.float32), {"seed": i}, {"denoising": 1.5}) for i, n in enumerate(lengths)]
    message = generation_message("id", takes)
    sounds = {i: b"".join(pieces(take.waveform.tobytes())) for i, take in enumerate(takes)}
    again = takes_of(message, sounds)
    for ours, theirs in zip(again, takes, strict=True):
        np.testing.assert_array_equal(ours.waveform, theirs.waveform)
        assert (ours.recipe, ours.timings_s) == (theirs.recipe, theirs.timings_s)
    if lengths[0]:
        with pytest.raises(ValueError, match="samples"):
            takes_of(message, {**sounds, 0: b""})
