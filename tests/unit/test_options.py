"""Every interface has the options of `foley.options`, compared field by field."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
import typer.main

from foley.errors import SettingError
from foley.manifest import SamplingDefaults
from foley.options import FileOptions, GenerateOptions, SamplingOptions, describe, markdown
from foley.profiles import PROFILES, resolve_flow, resolve_sampling
from foley.sampler import Sampling
from foley.sound_format import SoundFormat
from foley_client import cli
from foley_client.render import manifest
from foley_client.render.row import Row
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import GROUPS, enum_name
from foley_pipeline.request import GenerationRequest
from foley_server.http.app import TakeRequest

OPTIONS = {option.name: option for option in describe(FileOptions)}
DEFAULTS = SamplingDefaults()
VIDEO = Path("hits.mp4")


def test_cli_has_every_option_with_help_default_and_choices():
    parameters = {one.name: one for one in typer.main.get_command(cli.app).commands["generate"].params}
    for name, option in OPTIONS.items():
        parameter = parameters[name]
        assert parameter.opts == ["--" + name.replace("_", "-")]
        assert parameter.default == (None if option.default is None else str(option.default))
        assert option.help in parameter.help
        if option.choices:
            assert tuple(parameter.metavar.split("|")) == option.choices


def test_manifest_row_has_every_option():
    files = {"video", "output", "audio", "envelope"}
    assert Row.model_fields.keys() == OPTIONS.keys() | files
    assert set(manifest.SETTINGS) == (OPTIONS.keys() | files) - {"video", "output"}
    for name in OPTIONS:
        assert Row.model_fields[name].default == OPTIONS[name].default


def test_api_messages_have_every_option_and_choice():
    message = pb.GenerateOptions()
    found = {}
    for group in GROUPS:
        descriptor = getattr(message, group).DESCRIPTOR if group else message.DESCRIPTOR
        found |= {one.name: one for one in descriptor.fields if one.name in OPTIONS}
    assert found.keys() == GenerateOptions.model_fields.keys()
    for name, one in found.items():
        choices = OPTIONS[name].choices
        assert bool(one.enum_type) == bool(choices)
        if choices:
            names = [enum_name(one.enum_type, choice) for choice in choices]
            assert [value.name for value in one.enum_type.values[1:]] == names


def test_options_tensor_has_every_sampling_option():
    sampling = {one.name for one in fields(Sampling)}
    assert sampling == SamplingOptions.model_fields.keys() - {"profile"}
    assert SamplingDefaults.model_fields.keys() < sampling


def test_studio_accepts_every_option():
    assert TakeRequest.model_fields.keys() == GenerateOptions.model_fields.keys() | {
        "envelope",
        "sample_count",
        "audio",
    }


def test_documentation_lists_every_option(repository: Path):
    assert (repository / "docs" / "options.md").read_text().endswith(markdown())


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"steps": 0}, "steps", "steps is 0: use 1 to 1,000"),
        ({"steps": "ten"}, "steps", "steps is 'ten': use a whole number, 1 to 1,000"),
        ({"steps": "9" * 5000}, "steps", f"steps is '{'9' * 59}...: use 1 to 1,000"),
        ({"steps": {}}, "steps", "steps is {}: use 1 to 1,000"),
        ({"text": 5}, "text", "text is 5: use text of at most 2,000 characters"),
        ({"sampler": "euler"}, "sampler", "sampler is 'euler': use ddim, dpm++"),
        ({"seed": -2}, "seed", "seed is -2: use -1 to 2^64 - 1"),
        ({"guidance": float("nan")}, "guidance", "guidance is nan: use 1 to 100"),
        ({"text": "x" * 2001}, "text", "text has 2001 characters: use at most 2000"),
        ({"text": "\udc80"}, "text", "text is not valid UTF-8"),
        ({"sample_rate": 8_000}, "sample_rate", "sample_rate is 8000: use 16,000 to 192,000"),
        ({"sample_rate": "48k"}, "sample_rate", "sample_rate is '48k': use a whole number, 16,000 to 192,000"),
        ({"bit_depth": 8}, "bit_depth", "bit_depth is '8': use 16, 24, 32f"),
        ({"step": 3}, "step", "there is no option 'step'; the options are text, "),
        ({"guidance_interval": (3, 1)}, "guidance_interval", "the lower one first"),
        ({"guidance_interval": "x"}, "guidance_interval", "guidance_interval is 'x': use two numbers"),
        ({"sampler": "dpm++", "eta": 0.5}, "eta", "eta applies only to the sampler ddim"),
        ({"sampler": "ddim", "timestep_spacing": "karras"}, "timestep_spacing", "applies only to the sampler dpm"),
        ({"seed": 2**64}, "seed", "use -1 to 2^64 - 1"),
        ({"seed": 2**64 - 1, "variations": 2}, "seed", "use at most 2^64 - 2"),
    ],
)
def test_invalid_option_is_reported_in_plain_words(values, field, words):
    with pytest.raises(SettingError, match=re.escape(words)) as refused:
        FileOptions(**values)
    assert refused.value.field == field
    assert "Input should" not in str(refused.value)


def test_all_invalid_options_are_reported_together():
    with pytest.raises(SettingError, match=r"steps is 0.*guidance is 0"):
        GenerateOptions(steps=0, guidance=0)


def test_pair_is_parsed_from_text():
    assert GenerateOptions.model_validate({"guidance_interval": "0.3 100"}).guidance_interval == (0.3, 100.0)


def test_format_of_the_sound_is_read_from_tables_and_json():
    chosen = [FileOptions(sample_rate=rate, bit_depth=depth).sound for rate, depth in (("48000", "24"), (48_000, 24))]
    assert chosen == [SoundFormat(48_000, "24")] * 2
    assert FileOptions().sound == SoundFormat(16_000, "16")


def test_option_overrides_profile_and_profile_overrides_bundle():
    bundle = SamplingDefaults(sampler="ddim", steps=200, guidance=3.0)
    assert resolve_sampling(GenerateOptions(), bundle) == Sampling("ddim", 200, 3.0)
    assert resolve_sampling(GenerateOptions(profile="quality"), bundle) == Sampling("ddim", 50, 3.0)
    chosen = resolve_sampling(GenerateOptions(profile="quality", steps=7, guidance=1.0, seed=4), bundle)
    assert chosen == Sampling("ddim", 7, 1.0, seed=4)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("bundle", [DEFAULTS, SamplingDefaults(sampler="ddim")])
@pytest.mark.parametrize("sampler", [None, "ddim", "dpm++"])
def test_every_profile_works_with_every_sampler(profile, bundle, sampler):
    """A profile's timestep spacing applies to dpm++, and does not reject another sampler chosen by user or bundle."""
    sampling = resolve_sampling(GenerateOptions(profile=profile, sampler=sampler), bundle)
    assert sampling.sampler == (sampler or bundle.sampler)


def test_rejects_option_of_another_sampler():
    with pytest.raises(SettingError, match="timestep_spacing"):
        resolve_sampling(GenerateOptions(timestep_spacing="karras"), SamplingDefaults(sampler="ddim"))
    with pytest.raises(SettingError, match="eta"):
        resolve_sampling(GenerateOptions(eta=1.0), DEFAULTS)


def test_profile_flow_falls_back_to_default_if_not_served():
    with_raft = ["frames_to_features", "frames_to_features_warm", "frames_to_features_dis"]
    assert resolve_flow(GenerateOptions(profile="fast"), with_raft) == "warm"
    assert resolve_flow(GenerateOptions(profile="fast"), ["frames_to_features"]) == "default"
    assert (
        resolve_flow(GenerateOptions(flow="dis"), ["frames_to_features"]) == "dis"
    )  # rejected later, by predict_envelope


def test_random_seed_is_drawn_once_for_a_request():
    assert GenerateOptions.model_validate({"seed": "Random"}).seed == -1
    requests = [GenerationRequest(VIDEO, options=GenerateOptions(seed=-1, variations=16)) for _ in range(2)]
    seeds = {request.options.seed for request in requests}
    assert len(seeds) == 2
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert requests[0].options == GenerateOptions(seed=requests[0].options.seed, variations=16)
    assert replace(requests[0], audio=None).options == requests[0].options
    assert GenerationRequest(VIDEO, options=GenerateOptions(seed=2**64 - 1)).options.seed == 2**64 - 1
    with pytest.raises(SettingError, match="draw a seed"):
        resolve_sampling(GenerateOptions(seed=-1), DEFAULTS)


def test_profiles_set_no_seed():
    assert all(profile.seed == 0 and profile.variations == 1 for profile in PROFILES.values())
    assert set(get_args(GenerateOptions.model_fields["profile"].annotation)) == PROFILES.keys()
