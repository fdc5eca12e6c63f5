"""Conversion of requests and results to messages and back, and validation of messages."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley.envelope import frames
from foley.errors import InvalidInput
from foley.options import GenerateOptions, describe
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import chunks, request_from_proto, request_to_proto, result_from_proto, result_to_proto
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.result import GenerationResult, Take

VIDEO, RECORDING = Path("/uploads/video"), Path("/uploads/recording")


@st.composite
def envelopes(draw):
    samples = draw(st.integers(1, 3_000))
    count = frames(samples / 16_000)
    values = draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count))
    return EnvelopeInput(np.array(values, np.float32), samples)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def values(option):
    """Return a strategy for the valid values of an option."""
    if option.choices:
        return st.sampled_from(option.choices)
    if option.low is None:
        return texts if option.high else st.tuples(st.floats(0, 50), st.floats(50, 100))
    if "int" in str(GenerateOptions.model_fields[option.name].annotation):
        return st.integers(int(option.low), min(int(option.high), 2**64 - 20))
    return st.floats(option.low, option.high)


@st.composite
def all_options(draw):
    """Draw any valid options, half of them set."""
    chosen = {one.name: draw(values(one)) for one in describe(GenerateOptions) if draw(st.booleans())}
    if chosen.get("sampler") == "ddim":
        chosen.pop("timestep_spacing", None)
    elif "sampler" in chosen:
        chosen.pop("eta", None)
    return GenerateOptions(**chosen)


@given(all_options(), st.none() | envelopes(), st.booleans())
def test_request_round_trip(options, envelope, recorded):
    if recorded:
        options = GenerateOptions(**options.model_dump(exclude={"text"}))
    if envelope:  # optical flow requires a video
        options = GenerateOptions(**options.model_dump(exclude={"flow"}))
    request = GenerationRequest(None if envelope else VIDEO, envelope, RECORDING if recorded else None, options)
    message = pb.GenerateOptions.FromString(request_to_proto(request).SerializeToString())
    decoded = request_from_proto(message, VIDEO, RECORDING)
    assert (decoded.options, decoded.video, decoded.audio) == (request.options, request.video, request.audio)
    if envelope:
        np.testing.assert_array_equal(decoded.envelope.envelope, envelope.envelope)
        assert decoded.envelope.samples == envelope.samples
    else:
        assert decoded.envelope is None


def options(**changes):
    """Return a valid message with changed fields: `sampling__seed=1` sets options.sampling.seed."""
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
        ({"sampling__steps": 0}, "sampling.steps"),
        ({"sampling__steps": 1001}, "sampling.steps"),
        ({"sampling__steps": -1}, "sampling.steps"),
        ({"sampling__guidance": 0.5}, "sampling.guidance"),
        ({"sampling__guidance": float("nan")}, "sampling.guidance"),
        ({"sampling__guidance": float("inf")}, "sampling.guidance"),
        ({"sampling__eta": 2.0}, "sampling.eta"),
        ({"sampling__eta": float("nan")}, "sampling.eta"),
        (
            {"sampling__guidance_interval__low": 2.0, "sampling__guidance_interval__high": 1.0},
            "sampling.guidance_interval",
        ),
        ({"sampling__guidance_interval__high": float("nan")}, "sampling.guidance_interval"),
        ({"sampling__profile": 99}, "sampling.profile"),
        ({"sampling__sampler": 99}, "sampling.sampler"),
        ({"sampling__timestep_spacing": -5}, "sampling.timestep_spacing"),
        ({"sampling__sampler": pb.SAMPLER_DPMPP, "sampling__eta": 0.5}, "sampling.eta"),
        (
            {
                "sampling__sampler": pb.SAMPLER_DDIM,
                "sampling__timestep_spacing": pb.TIMESTEP_SPACING_KARRAS,
            },
            "sampling.timestep_spacing",
        ),
        ({"video__flow": 7}, "video.flow"),
        ({"loudness": 12}, "loudness"),
        ({"variations": 17}, "variations"),
        ({"variations": -1}, "variations"),
        ({"variations": 2, "sampling__seed": 2**64 - 1}, "sampling.seed"),
        ({"prompt__text": "x" * 2001}, "prompt.text"),
        ({"prompt__negative_text": "x" * 2001}, "prompt.negative_text"),
        ({"envelope__envelope__rms": [0.1, float("nan")]}, "envelope.envelope.rms"),
        ({"envelope__envelope__rms": [0.1, float("inf")]}, "envelope.envelope.rms"),
        ({"envelope__envelope__rms": [-0.1]}, "envelope.envelope.rms"),
        ({"envelope__sample_count": 160}, "envelope.envelope.rms"),
        ({"envelope__envelope__rms": [0.1, 0.1], "envelope__sample_count": 160}, "envelope.sample_count"),
        ({"envelope__envelope__rms": [0.1, 0.1], "envelope__sample_count": 321}, "envelope.sample_count"),
        ({"envelope__envelope__rms": [0.1], "envelope__sample_count": -1}, "envelope.sample_count"),
    ],
)
def test_invalid_value_names_field(changes, field):
    with pytest.raises(InvalidInput) as refused:
        request_from_proto(options(**changes), VIDEO, RECORDING)
    assert refused.value.field == field


def test_rejects_missing_source():
    with pytest.raises(InvalidInput) as refused:
        request_from_proto(pb.GenerateOptions(prompt=pb.Prompt(text="a")), VIDEO, RECORDING)
    assert refused.value.field == "source"


@given(st.binary(max_size=300))
def test_arbitrary_bytes_parse_or_are_rejected(content):
    try:
        message = pb.GenerateOptions.FromString(content)
    except Exception:  # rejected by protobuf, and therefore by gRPC
        return
    with suppress(InvalidInput):
        assert isinstance(request_from_proto(message, VIDEO, RECORDING), GenerationRequest)


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=3))
def test_result_round_trip(lengths):
    random = np.random.default_rng(0)
    takes = [Take(random.random(n, np.float32), {"seed": i}) for i, n in enumerate(lengths)]
    result = GenerationResult(np.full(3, 0.1, np.float32), takes, {"denoise": 1.5, "decode": 0.25})
    message = result_to_proto("id", result)
    sounds = {i: b"".join(chunks(take.waveform.tobytes())) for i, take in enumerate(takes)}
    decoded = result_from_proto(message, result.envelope, sounds)
    assert decoded.envelope is result.envelope
    assert decoded.timings_s == result.timings_s
    for ours, theirs in zip(decoded.takes, takes, strict=True):
        np.testing.assert_array_equal(ours.waveform, theirs.waveform)
        assert ours.recipe == theirs.recipe
    if lengths[0]:
        with pytest.raises(ValueError, match="samples"):
            result_from_proto(message, result.envelope, {**sounds, 0: b""})
