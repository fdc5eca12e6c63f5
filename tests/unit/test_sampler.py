"""The diffusion loop: matches the schedulers of diffusers, is lazy, and is reproducible from its seed."""

import itertools
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import sampler
from foley.errors import SettingError
from foley.options import Sampler, TimestepSpacing
from foley.sampler import Sampling, Step
from foley.schedule import TRAIN_STEPS, alphas_cumprod, ddim_timesteps, sigma_schedule, training_sigmas
from foley.solvers import ddim, draws, multistep

TOLERANCE = 1e-5  # relative L2 error
SHAPE = (3, 8, 4)
SCHEDULE = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}


def denoise(latents: np.ndarray, timestep: int) -> np.ndarray:
    """A small nonlinear denoiser that mixes neighbours and depends on the timestep."""
    neighbours = np.roll(latents, 1, axis=1)
    noise = np.tanh(latents + 0.3 * neighbours) * (0.4 + timestep / 1000) + 0.1 * np.sin(timestep / 50)
    return noise.astype(np.float32)


class Recorder:
    """`denoise` that records its timesteps, or the steps of a complete loop."""

    def __init__(self) -> None:
        self.timesteps: list[int] = []
        self.steps: list[Step] = []

    def __call__(self, latents: np.ndarray, step: int | Step) -> np.ndarray:
        timestep = step
        if isinstance(step, Step):
            self.steps.append(step)
            timestep = step.timestep
        self.timesteps.append(timestep)
        return denoise(latents, timestep)


def start() -> np.ndarray:
    return np.random.default_rng(5).standard_normal(SHAPE, np.float32)


def scheduler_steps(scheduler, steps: int, **step_options) -> Iterator[tuple[int, np.ndarray]]:
    """Yield timestep and latents of every step of a diffusers scheduler around `denoise`."""
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(start())
    options = {name: (lambda value: value if callable(value) else lambda: value)(v) for name, v in step_options.items()}
    for timestep in scheduler.timesteps:
        noise = torch.from_numpy(denoise(latents.numpy(), int(timestep)))
        latents = scheduler.step(
            noise, timestep, latents, **{name: make() for name, make in options.items()}
        ).prev_sample
        yield int(timestep), latents.numpy()


def assert_equal_steps(
    ours: Iterator[np.ndarray], recorder: Recorder, theirs: Iterator[tuple[int, np.ndarray]]
) -> None:
    """Assert equal timesteps in the same order, and equal latents after each."""
    timesteps = []
    for actual, (timestep, expected) in zip(ours, theirs, strict=True):
        timesteps.append(timestep)
        assert actual.dtype == np.float32
        assert np.linalg.norm(actual - expected) < TOLERANCE * np.linalg.norm(expected), timestep
    assert recorder.timesteps == timesteps


# 7 does not divide 1000: see test_ddim_stays_on_the_forward_process
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 8, 25, 200])
def test_ddim_matches_diffusers(steps, eta):
    reference = DDIMScheduler(
        **SCHEDULE, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )
    noises = np.random.default_rng(9)
    theirs = scheduler_steps(
        reference,
        steps,
        eta=eta,
        variance_noise=lambda: torch.from_numpy(noises.standard_normal(SHAPE, np.float32)),
    )
    recorder = Recorder()
    ours = ddim(recorder, start(), steps, eta, draws(np.random.default_rng(9), SHAPE))
    assert_equal_steps(ours, recorder, theirs)


DIFFUSERS_SPACING = {"uniform": {}, "karras": {"use_karras_sigmas": True}, "log-snr": {"use_lu_lambdas": True}}


@pytest.mark.parametrize("spacing", get_args(TimestepSpacing))
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 14, 15, 25, 100])
def test_dpm_solver_matches_diffusers(steps, spacing):
    reference = DPMSolverMultistepScheduler(
        **SCHEDULE,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        euler_at_final=spacing != "uniform",  # "uniform" does so by itself below 15 steps
        **DIFFUSERS_SPACING[spacing],
    )
    recorder = Recorder()
    assert_equal_steps(multistep(recorder, start(), steps, spacing), recorder, scheduler_steps(reference, steps))


@given(steps=st.integers(1, TRAIN_STEPS), spacing=st.sampled_from(get_args(TimestepSpacing)))
@settings(deadline=None, max_examples=50)
def test_sigmas_decrease_to_zero(steps, spacing):
    visited = sigma_schedule(steps, spacing)
    assert visited.timesteps.shape == (steps,)
    assert visited.sigmas.shape == (steps + 1,)
    assert (np.diff(visited.sigmas) <= 1e-12).all()
    assert visited.sigmas[-1] == 0
    nearest = np.abs(np.log(training_sigmas()) - np.log(visited.sigmas[:-1, None])).argmin(1)
    assert (np.abs(nearest - visited.timesteps) <= 1).all()


@given(steps=st.integers(1, TRAIN_STEPS))
@settings(deadline=None, max_examples=25)
def test_ddim_stays_on_the_forward_process(steps):
    """With the true noise, every step ends on the forward process, for any number of steps."""
    sound, noise = np.random.default_rng(1).standard_normal((2, 16))
    cumprod = alphas_cumprod()
    timesteps = ddim_timesteps(steps)
    assert len(timesteps) == steps
    assert (np.abs(timesteps - (1 + np.arange(steps) * 1000 / steps)) <= 1).all()

    def forward(timestep: int) -> np.ndarray:
        return (np.sqrt(cumprod[timestep]) * sound + np.sqrt(1 - cumprod[timestep]) * noise).astype(np.float32)

    reached = list(ddim(lambda *_: noise.astype(np.float32), forward(timesteps[-1]), steps))
    for latents, timestep in zip(reached, [*timesteps[-2::-1], 0], strict=True):
        np.testing.assert_allclose(latents, forward(timestep), atol=2e-3)


@pytest.mark.parametrize("name", get_args(Sampler))
@pytest.mark.parametrize("steps", [1, 999, 1000])
def test_latents_are_finite_for_any_number_of_steps(name, steps):
    *_, last = sampler.sample(Recorder(), Sampling(name, steps))
    assert np.isfinite(last).all()


@pytest.mark.parametrize("name", get_args(Sampler))
def test_loop_is_lazy_and_stops_when_closed(name):
    recorder = Recorder()
    loop = sampler.sample(recorder, Sampling(sampler=name, steps=10))
    assert recorder.timesteps == []
    for done in (1, 2, 3):
        next(loop)
        assert len(recorder.timesteps) == done
    loop.close()
    assert len(recorder.timesteps) == 3


@pytest.mark.parametrize("sampling", [Sampling("dpm++", 2), Sampling("ddim", 2), Sampling("ddim", 2, eta=1.0)])
def test_noise_depends_only_on_seed_and_window(sampling):
    def result(seed: int, window: int) -> np.ndarray:
        chosen = Sampling(sampling.sampler, sampling.steps, eta=sampling.eta, seed=seed)
        *_, latents = sampler.sample(Recorder(), chosen, window)
        assert latents.shape == sampler.LATENTS_SHAPE
        return latents

    pairs = [(0, 0), (0, 1), (1, 0), (2**63 - 1, 0), (2**64 - 1, 0), (2**32, 0), (2**32 + 1, 0), (2**33, 1)]
    results = [result(*pair) for pair in pairs]
    for pair, first in zip(pairs, results, strict=True):
        np.testing.assert_array_equal(result(*pair), first)
    for one, other in itertools.combinations(results, 2):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.5


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sampler", "euler"),
        ("sampler", ""),
        ("steps", 0),
        ("steps", -1),
        ("steps", 1001),
        ("guidance", 0.99),
        ("guidance", 100.5),
        ("guidance", float("nan")),
        ("guidance", float("inf")),
        ("eta", -0.1),
        ("eta", 1.1),
        ("eta", float("nan")),
        ("seed", -1),
        ("seed", 2**64),
        ("timestep_spacing", "leading"),
        ("timestep_spacing", "karras"),  # not with ddim
        ("guidance_interval", (2.0, 1.0)),
        ("guidance_interval", (2.0, 101.0)),
        ("guidance_interval", (2.0, float("inf"))),
        ("guidance_interval", (-1.0, 1.0)),
        ("guidance_interval", (float("nan"), 1.0)),
    ],
)
def test_invalid_setting_is_named(setting, value):
    with pytest.raises(SettingError, match=setting):
        Sampling(**{"sampler": "ddim", setting: value})


@given(
    st.builds(
        Sampling,
        seed=st.integers(0, 2**64 - 1),
        steps=st.integers(1, 1000),
        guidance=st.floats(1, 100),
        guidance_interval=st.tuples(st.floats(0, 50), st.floats(50, 100)),
        timestep_spacing=st.sampled_from(get_args(TimestepSpacing)),
    )
    | st.builds(Sampling, sampler=st.just("ddim"), eta=st.floats(0, 1)),
    st.integers(0, 1000),
)
def test_encode_decode_round_trip(sampling, window):
    assert Sampling.decode(sampling.encode(window)) == (sampling, window)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "JSON"),
        (b"[]", "JSON object"),
        (b'"steps"', "JSON object"),
        (b'{"steps": 0}', "steps"),
        (b'{"step": 3}', "step"),
        (b'{"window": -1}', "window"),
        (b'{"window": "0"}', "window"),
        (b'{"eta": NaN}', "eta"),
        (b"\xff", "JSON"),
    ],
)
def test_decode_rejects_invalid_content(content, named):
    with pytest.raises(SettingError, match=named):
        Sampling.decode(content)


def recorded_steps(**chosen) -> list[Step]:
    recorder = Recorder()
    list(sampler.sample(recorder, Sampling(**chosen)))
    return recorder.steps


def test_guidance_applies_only_within_its_interval():
    levels = training_sigmas()
    for step in recorded_steps(steps=25, guidance=3.5, guidance_interval=(0.3, 5.0)):
        assert step.guidance == (3.5 if 0.3 <= levels[step.timestep] <= 5.0 else 1.0)
    everywhere = recorded_steps(steps=25, guidance=3.5)
    assert {step.guidance for step in everywhere} == {3.5}


def test_rejects_eta_without_ddim():
    with pytest.raises(SettingError, match="eta"):
        Sampling(sampler="dpm++", eta=1.0)


def test_limits_are_inclusive():
    Sampling(sampler="ddim", steps=1, guidance=1.0, eta=0.0, seed=0)
    Sampling(sampler="ddim", steps=1000, guidance=100.0, eta=1.0, seed=2**64 - 1)


@pytest.mark.parametrize(
    ("seed", "window", "first"),
    [
        (7, 0, 5765488047046174021),
        (7, 2, 2563823327860906254),
        (2**33 + 1, 1, 5978213271893806549),
        (2**63 - 1, 0, 3456370129385001151),
    ],
)
def test_noise_of_a_seed_never_changes(seed, window, first):
    """The numbers were drawn by version 0.1.0."""
    assert sampler._generator(seed, window).integers(2**63) == first
