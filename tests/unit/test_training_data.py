"""The procedural dataset: splits are disjoint, and video, sound and caption match the scene."""

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import clip, envelope
from foley_training.data import motion
from foley_training.data.canvas import ROWS
from foley_training.data.caption import VERBS, WORDS, caption, plain_caption
from foley_training.data.objects import place_object
from foley_training.data.picture import render
from foley_training.data.reaction import Reaction
from foley_training.data.scene import HELD_OUT_STYLE, MATERIALS, SPLITS, STYLES, Contact, Scene, make_scene
from foley_training.data.sound import synthesise

FRAME_S = 1 / clip.FRAME_RATE_HZ
scenes = st.builds(
    make_scene,
    st.sampled_from(SPLITS),
    st.integers(0, 10**6),
    st.integers(0, 100),
    st.sampled_from((None, *MATERIALS)),
)


def staged(material: str, *strengths: float, duration_s: float = 0.0, style: str = "plain") -> Scene:
    """Return a scene with contacts of these strengths, 2 s apart, the first at 1.01 s, between two frames."""
    contacts = (Contact(1.01 + 2 * i, duration_s, strength, 0.0, 1) for i, strength in enumerate(strengths))
    action = "scratch" if duration_s else "hit"
    return Scene((7, 7, 7), material, action, 0.5, style, tuple(contacts))


# Scenes


@given(scenes)
def test_contacts_are_ordered_within_the_clip_and_spaced(scene):
    assert scene.contacts
    ends = [contact.start_s + contact.duration_s for contact in scene.contacts]
    assert scene.contacts[0].start_s >= 0.3
    assert ends[-1] <= clip.CLIP_SECONDS
    for end_s, later in zip(ends, scene.contacts[1:], strict=False):
        assert later.start_s - end_s >= 0.3 - 1e-9
    for contact in scene.contacts:
        assert (contact.duration_s > 0) == (scene.action == "scratch")
        assert 0 <= contact.strength <= 1
        assert -1 <= contact.x <= 1


def test_scenes_of_all_splits_are_distinct():
    drawn = [make_scene(split, index) for split in SPLITS for index in range(250)]
    assert len({scene.seed for scene in drawn}) == len(drawn)
    assert len({scene.contacts for scene in drawn}) == len(drawn)
    assert len({scene.random(9).random() for scene in drawn}) == len(drawn)


@given(scenes)
def test_held_out_style_occurs_only_in_its_split(scene):
    is_held_out = SPLITS[scene.seed[0]] == "test-night"
    assert (scene.style == HELD_OUT_STYLE) == is_held_out
    assert HELD_OUT_STYLE not in STYLES


@given(st.sampled_from(SPLITS), st.integers(0, 10**6))
def test_scene_is_deterministic(split, index):
    assert make_scene(split, index) == make_scene(split, index)
    assert make_scene(split, index) != make_scene(split, index, seed=1)


def test_material_argument_changes_only_the_material():
    free = make_scene("train", 5)
    for material in MATERIALS:
        assert make_scene("train", 5, material=material) == dataclasses.replace(free, material=material)


def test_every_material_action_and_style_occurs_often():
    drawn = [make_scene("train", index) for index in range(600)]
    counts = [sum(scene.material == material for scene in drawn) for material in MATERIALS]
    counts += [sum(scene.style == style for scene in drawn) for style in STYLES]
    counts += [sum(scene.action == action for scene in drawn) for action in VERBS]
    assert min(counts) > 60


# Sounds


@given(scenes)
@settings(max_examples=20, deadline=None)
def test_sound_has_padded_length_and_ends_with_the_video(scene):
    sound = synthesise(scene)
    assert sound.shape == (clip.PADDED_SAMPLES,)
    assert sound.dtype == np.float32
    assert 0.01 < np.abs(sound).max() <= 1
    assert not sound[round(clip.CLIP_SECONDS * clip.SAMPLE_RATE_HZ) :].any()
    assert np.array_equal(sound, synthesise(scene))


@pytest.mark.parametrize("duration_s", [0.0, 0.8])
@pytest.mark.parametrize("material", MATERIALS)
def test_contact_is_audible_at_its_time_and_louder_with_strength(material, duration_s):
    scene = staged(material, 0.2, 0.5, 0.9, duration_s=duration_s)
    sound = synthesise(scene)
    first = round(scene.contacts[0].start_s * clip.SAMPLE_RATE_HZ)
    assert not sound[: first - 1].any()

    loudness = envelope.measure(sound)
    loudest = []
    for contact in scene.contacts:
        frame = round(contact.start_s * clip.ENVELOPE_RATE_HZ)
        before = loudness[frame - 10 : frame - 4].max()  # a frame spans 64 ms
        after = loudness[frame : frame + 20].max()
        assert after > 4 * before
        loudest.append(loudness[frame : frame + 100].max())
    assert loudest == sorted(loudest)
    assert loudest[-1] > 2.5 * loudest[0]


@pytest.mark.parametrize("material", MATERIALS)
def test_scratch_sounds_while_the_stick_moves(material):
    loudness = envelope.measure(synthesise(staged(material, 0.8, duration_s=1.0)))
    during = loudness[110:195]
    assert during.min() > 0.1 * during.max()
    assert loudness[400:].max() < 0.02 * during.max()


def test_large_object_sounds_lower():
    def centre_hz(size: float) -> float:
        sound = synthesise(dataclasses.replace(staged("metal", 0.8), size=size))
        power = np.abs(np.fft.rfft(sound)) ** 2
        return float((np.fft.rfftfreq(len(sound), 1 / clip.SAMPLE_RATE_HZ) * power).sum() / power.sum())

    assert centre_hz(1.0) < 0.8 * centre_hz(0.0)


# Captions


@given(scenes, st.integers(0, 10**6))
def test_caption_names_action_and_material(scene, variant):
    sentence = caption(scene, variant).lower()
    assert any(word in sentence for word in WORDS[scene.material])
    assert any(verb in sentence for verb in VERBS[scene.action])
    assert sentence == caption(scene, variant).lower()


def test_captions_vary():
    assert len({caption(make_scene("train", 0), variant) for variant in range(50)}) > 25


def test_plain_caption():
    assert plain_caption("metal", "hit") == "A person hits metal with a wooden stick."
    assert plain_caption("cloth", "scratch") == "A person scratches cloth with a wooden stick."


# Pictures


@given(scenes, st.integers(0, 10**6))
@settings(deadline=None)
def test_stick_motion_matches_contacts(scene, seed):
    """It is at the surface at contacts and never below, moves as fast as the strength requires, and does not jump."""
    reach, tick_s = 50.0, 1e-4
    contacts = scene.contacts
    starts_s = np.array([contact.start_s for contact in contacts])
    times_s = np.unique(np.concatenate([np.arange(0, 10, 1 / 300), starts_s, starts_s - tick_s, starts_s - 2 * tick_s]))
    along, above = motion.tip_positions(contacts, times_s, reach, 0.5, np.random.default_rng(seed))

    assert above.min() >= -1e-9
    assert np.hypot(np.diff(along), np.diff(above)).max() < 20 * clip.FRAME_RATE_HZ / 300 + 4  # surface roughness
    for contact in contacts:
        at = int(np.searchsorted(times_s, contact.start_s))
        assert along[at] == pytest.approx(contact.x * reach, abs=0.5)
        if contact.duration_s:
            inside = (times_s > contact.start_s) & (times_s < contact.start_s + contact.duration_s)
            assert above[inside].max() < 4
            assert np.abs(along[inside]).max() <= reach + 0.5
        else:
            assert above[at] == pytest.approx(0, abs=0.02)
            speed = (above[at - 2] - above[at - 1]) / (times_s[at - 1] - times_s[at - 2])
            assert speed == pytest.approx(motion.impact_speed(contact.strength), rel=0.1)


def test_stronger_scratches_move_faster():
    times_s = np.arange(1.01, 1.81, 1e-3)
    distances = []
    for strength in (0.1, 0.5, 1.0):
        along = motion.stroke(Contact(1.01, 0.8, strength, 0.3, -1), times_s, 40.0)
        assert along[0] == pytest.approx(12)
        assert along[10] < along[0]
        distances.append(np.abs(np.diff(along)).sum())
        assert np.abs(np.diff(along)).max() <= motion.stroke_speed(strength) * 1e-3 * 1.01
    assert distances == sorted(distances)
    assert distances[-1] > 3 * distances[0]


@pytest.mark.parametrize("style", [*STYLES, HELD_OUT_STYLE])
def test_render_yields_300_reproducible_frames(style):
    scene = staged(MATERIALS[[*STYLES, HELD_OUT_STYLE].index(style)], 0.4, 0.9, style=style)
    frames = list(render(scene))
    assert len(frames) == clip.CLIP_FRAMES
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((256, 344, 3), "uint8")}
    assert all(np.array_equal(a, b) for a, b in zip(frames[:60], render(scene), strict=False))


def lowest_rows(frames: list[np.ndarray]) -> np.ndarray:
    """Return the row of the lowest moving pixels of every frame, [n]. Uses only the frames, not the scene."""
    smooth = [cv2.GaussianBlur(frame, (0, 0), 1.5).astype(np.float32) for frame in frames]
    still = np.median(smooth[::5], axis=0)
    moving = [(np.abs(frame - still).sum(axis=2) > 60).sum(axis=1) >= 3 for frame in smooth]
    return np.array([np.flatnonzero(rows)[-1] if rows.any() else 0 for rows in moving])


# cameras on a tripod: `lowest_rows` assumes a still background
@pytest.mark.parametrize(("material", "index"), [("wood", 3), ("metal", 7), ("glass", 8), ("wood", 6), ("metal", 16)])
def test_stick_touches_within_a_frame_of_contact_and_faster_with_strength(material, index):
    scene = make_scene("validation", index, material=material)
    assert scene.action == "hit"
    low = lowest_rows(list(render(scene)))
    speeds = []
    for contact in scene.contacts:
        nearest = round(contact.start_s * clip.FRAME_RATE_HZ)
        around = low[nearest - 4 : nearest + 5]
        seen_s = (nearest - 4 + np.flatnonzero(around == around.max()).mean()) * FRAME_S
        assert seen_s == pytest.approx(contact.start_s, abs=FRAME_S)
        last_before = int(contact.start_s * clip.FRAME_RATE_HZ)
        speeds.append(low[last_before] - low[last_before - 1])
    assert np.corrcoef(speeds, [contact.strength for contact in scene.contacts])[0, 1] > 0.7


def reaction_strength(material: str, strength: float, time_s: float) -> int:
    """Return how much an object changes without the stick: the sum of differences of a grey ramp."""
    scene = staged(material, strength)
    random = np.random.default_rng(0)
    still = np.repeat((0.9 * ROWS).astype(np.uint8)[..., None], 3, axis=2)
    reaction = Reaction(scene, place_object(scene, random), 40.0, np.ones(3, np.float32), still, random)
    image = reaction.frame_at(time_s).copy()
    reaction.draw_particles(image, time_s)
    return int(np.abs(image.astype(int) - still).sum())


@pytest.mark.parametrize("material", ["cloth", "water", "gravel"])
def test_soft_objects_react_more_to_stronger_contacts(material):
    assert reaction_strength(material, 0.9, 1.0) == 0
    assert 0 < reaction_strength(material, 0.1, 1.06) < reaction_strength(material, 0.9, 1.06)
    assert reaction_strength(material, 0.9, 2.0) == 0


@pytest.mark.parametrize("material", ["wood", "metal", "glass"])
def test_hard_objects_do_not_react(material):
    assert reaction_strength(material, 0.9, 1.06) == 0
