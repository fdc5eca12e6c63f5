"""Synthesises the sound of a scene: an excitation for every contact, filtered by the object's response.

Struck solids ring in modes (van den Doel & Pai 1998: damped sines, shorter at higher frequencies); cloth is a dull
noise burst, water a splash with bubbles (van den Doel 2005: sines that rise in pitch as they fade), gravel many short
grains. A scratch is noise with a level proportional to the stick's speed and the texture of the surface, filtered by
the same object.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import signal

from foley import clip
from foley_training.data.scene import Contact, Material, Scene

Floats = npt.NDArray[np.float32]
Wave = npt.NDArray[np.float64]

PURPOSE = 1  # random stream of the scene
RATE = clip.SAMPLE_RATE_HZ
_MAX_RMS = 0.3  # RMS over 64 ms of the hardest hit on the loudest material
_RANGE_DB = 18.0  # level difference between the softest and the hardest contact


@dataclass(frozen=True)
class Modes:
    """The partials of a struck solid."""

    lowest_hz: tuple[float, float]  # lowest partial of a large object, of a small one
    ratios: tuple[float, ...]
    decay_s: tuple[float, float]  # time to decay by 60 dB, of the lowest partial, of the highest
    click: float  # level of the contact's click relative to the ringing


SOLIDS: dict[Material, Modes] = {
    "wood": Modes((170, 420), (1, 2.57, 4.1, 6.3, 9.2), (0.3, 0.08), 0.35),
    "metal": Modes((420, 900), (1, 1.48, 2.09, 2.56, 3.39, 4.08, 5.31, 6.29, 7.7, 8.9, 10.3), (1.5, 0.6), 0.1),
    "glass": Modes((1500, 2600), (1, 1.72, 2.31, 2.76), (0.5, 0.25), 0.15),
}
LOUDNESS: dict[Material, float] = {"wood": 0.8, "metal": 1.0, "glass": 0.7, "cloth": 0.5, "water": 0.7, "gravel": 0.8}


def synthesise(scene: Scene) -> Floats:
    """Return the sound of a scene: 10.24 s at 16 kHz, [163840], in [-1, 1]. The last 0.24 s are padding."""
    random = scene.random(PURPOSE)
    wave = np.zeros(clip.PADDED_SAMPLES + RATE)
    ring = _ringing(scene, random) if scene.material in SOLIDS else None
    for contact in scene.contacts:
        sound = _scratch(scene, contact, random) if contact.duration_s else _hit(scene, contact, random)
        if ring is not None:
            sound = signal.fftconvolve(sound, ring)
        sound *= _level(scene.material, contact) / _max_rms(sound)
        first = round(contact.start_s * RATE)
        sound = sound[: len(wave) - first]
        wave[first : first + len(sound)] += sound
    wave = wave[: clip.PADDED_SAMPLES]
    fade = np.clip((clip.CLIP_SECONDS * RATE - np.arange(len(wave))) / (0.05 * RATE), 0, 1)
    return np.tanh(wave * fade).astype(np.float32)


def _level(material: Material, contact: Contact) -> float:
    """Return the RMS of the loudest 64 ms of a contact."""
    below_db = (1 - contact.strength) * _RANGE_DB + (4 if contact.duration_s else 0)
    return _MAX_RMS * LOUDNESS[material] * 10 ** (-below_db / 20)


def _max_rms(sound: Wave, window: int = 1024) -> float:
    power = np.convolve(np.square(sound), np.ones(window) / window)
    return float(np.sqrt(power.max())) + 1e-9


def _ringing(scene: Scene, random: np.random.Generator) -> Wave:
    """Return the impulse response of the object."""
    modes = SOLIDS[scene.material]
    large, small = modes.lowest_hz
    lowest = large * (small / large) ** (1 - scene.size)
    time = np.arange(int(max(modes.decay_s) * RATE)) / RATE
    response = np.zeros_like(time)
    for i, ratio in enumerate(modes.ratios):
        frequency = lowest * ratio * random.uniform(0.97, 1.03)
        if frequency > 0.47 * RATE:
            break
        fraction = i / max(1, len(modes.ratios) - 1)
        decay_s = modes.decay_s[0] * (modes.decay_s[1] / modes.decay_s[0]) ** fraction
        gain = random.uniform(0.5, 1.0) * 0.75**i
        response += gain * np.sin(2 * np.pi * frequency * time + random.uniform(0, 6.28)) * 10 ** (-3 * time / decay_s)
    response[0] += modes.click * len(modes.ratios)
    return response


def _hit(scene: Scene, contact: Contact, random: np.random.Generator) -> Wave:
    if scene.material in SOLIDS:
        return _burst(random, 0.004 - 0.003 * contact.strength, 0.02)  # a harder hit is shorter, and so brighter
    if scene.material == "cloth":
        return _band(_burst(random, 0.05, 0.4), 60, 500 - 250 * scene.size)
    if scene.material == "water":
        splash = _band(_burst(random, 0.09, 0.6, attack_s=0.012), 500, 2500)
        return splash / _max_rms(splash) + 0.8 * _bubbles(scene, random, 0.6, rate_hz=40)
    return _grains(scene, random, _decay(0.5, 0.09))


def _scratch(scene: Scene, contact: Contact, random: np.random.Generator) -> Wave:
    time = np.arange(int(contact.duration_s * RATE)) / RATE
    speed = np.sin(np.pi * np.clip(time / contact.duration_s, 0, 1)) ** 0.5
    if scene.material == "gravel":
        return _grains(scene, random, speed)
    noise = random.standard_normal(len(time)) * speed
    if scene.material == "water":
        swish = _band(noise, 400, 1800)
        bubbles = _bubbles(scene, random, contact.duration_s, rate_hz=25)
        return swish / _max_rms(swish) + 0.8 * np.resize(bubbles, len(swish))
    if scene.material == "cloth":
        return _band(noise, 200, 1100 - 400 * scene.size)
    grain_hz = 60 + 120 * contact.strength  # rate at which the stick crosses the surface's ridges
    return noise * (1 + 0.8 * np.sin(2 * np.pi * grain_hz * time)) * 0.3


def _decay(length_s: float, decay_s: float, attack_s: float = 0.001) -> Wave:
    time = np.arange(int(length_s * RATE)) / RATE
    return np.minimum(time / attack_s, 1) * np.exp(-time / decay_s)


def _burst(random: np.random.Generator, decay_s: float, length_s: float, attack_s: float = 0.001) -> Wave:
    envelope = _decay(length_s, decay_s, attack_s)
    return random.standard_normal(len(envelope)) * envelope


def _band(noise: Wave, low_hz: float, high_hz: float) -> Wave:
    sections = signal.butter(2, [low_hz, high_hz], "bandpass", fs=RATE, output="sos")
    return np.asarray(signal.sosfilt(sections, noise))


def _bubbles(scene: Scene, random: np.random.Generator, length_s: float, rate_hz: float) -> Wave:
    wave = np.zeros(int(length_s * RATE))
    for start in random.uniform(0, 0.7, max(3, int(rate_hz * length_s))) * len(wave):
        time = np.arange(int(0.08 * RATE)) / RATE
        frequency = random.uniform(500, 1100) * (1.3 - 0.6 * scene.size)
        bubble = np.sin(2 * np.pi * frequency * time * (1 + 5 * time)) * np.exp(-time / 0.02) * random.uniform(0.3, 1)
        bubble = bubble[: len(wave) - int(start)]
        wave[int(start) : int(start) + len(bubble)] += bubble * np.exp(-start / len(wave))
    return wave / _max_rms(wave)


def _grains(scene: Scene, random: np.random.Generator, density: Wave) -> Wave:
    """Return short clicks at a rate of `density` (0 to 1) times 400 per second."""
    clicks = random.standard_normal(len(density)) * (random.random(len(density)) < density * 400 / RATE)
    centre = 3500 - 1200 * scene.size
    return _band(clicks, centre * 0.75, min(centre * 1.8, 7500)) * np.sqrt(density + 1e-3)
