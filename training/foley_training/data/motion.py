"""The motion of the stick: it swings down onto the object, rebounds or is dragged along it.

A faster tip at the contact makes a louder sound, so the strength of a hit is visible as speed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicHermiteSpline

from foley import clip
from foley_training.data.scene import Contact

Floats = npt.NDArray[np.float64]

_DOWN_S = 0.27  # longest downswing, from the highest point to the contact
_LIFT_S = 0.25
_SETTLE_S = 0.35  # from a contact to the hover height
_LANDING_SPEED = 3.0 * clip.FRAME_RATE_HZ  # px/s: vertical speed at the start of a scratch, slower than a hit
_PHASE = np.linspace(0, 1, 201)  # progress of a scratch, 0 to 1
_TRAVEL = np.append(0, np.cumsum(np.sqrt(np.sin(np.pi * (_PHASE[1:] + _PHASE[:-1]) / 2)))) / (len(_PHASE) - 1)


def impact_speed(strength: float) -> float:
    """Return the speed of the tip at a hit in pixels per second; 4 to 17 pixels per frame."""
    return (4 + 13 * strength) * clip.FRAME_RATE_HZ


def stroke_speed(strength: float) -> float:
    """Return the peak speed of the tip in a scratch in pixels per second; 2 to 12 pixels per frame."""
    return (2 + 10 * strength) * clip.FRAME_RATE_HZ


def tip_positions(
    contacts: Sequence[Contact], times_s: Floats, reach: float, rebound: float, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the tip's position at `times_s`: pixels along the object from its centre, and pixels above it; [n] each.

    Args:
        contacts: The contacts of the scene.
        times_s: Ascending times [n] in seconds.
        reach: Distance in pixels from the object's centre of a contact at |x| = 1.
        rebound: Fraction of the impact speed that remains after a hit.
        random: Source of the scene's random numbers.
    """
    along, above = np.zeros_like(times_s), np.zeros_like(times_s)
    hover = random.uniform(22, 38)
    start_s, x, speed = min(0.0, times_s[0]), random.uniform(-1, 1) * reach, 0.0
    height = hover
    for contact in contacts:
        gap = (times_s >= start_s) & (times_s < contact.start_s)
        keys = [(start_s, height, speed), *_swing(contact, start_s, height, hover)]
        above[gap] = CubicHermiteSpline(*zip(*keys, strict=True))(times_s[gap])
        along[gap] = _glide(times_s[gap], start_s, contact.start_s, x, contact.x * reach)

        end_s = contact.start_s + contact.duration_s
        touching = (times_s >= contact.start_s) & (times_s < end_s)
        along[touching] = stroke(contact, times_s[touching], reach)
        above[touching] = np.abs(random.normal(0, 0.6, touching.sum()))  # roughness of the surface
        x = float(stroke(contact, np.array([end_s]), reach)[0])
        start_s, height = end_s, 0.0
        speed = _LANDING_SPEED if contact.duration_s else rebound * impact_speed(contact.strength)

    rest = times_s >= start_s
    end_s = start_s + random.uniform(0.7, 1.5)
    retreat = CubicHermiteSpline((start_s, end_s), (height, random.uniform(50, 110)), (speed, 0))
    above[rest] = retreat(np.minimum(times_s[rest], end_s))
    along[rest] = _glide(times_s[rest], start_s, end_s, x, x + random.uniform(-40, 40))

    tremor_scale = np.minimum(above / 30, 1)  # tremor of the hand in the air
    return along + tremor_scale * _tremor(times_s, random), above + tremor_scale * _tremor(times_s, random)


def stroke(contact: Contact, times_s: Floats, reach: float) -> Floats:
    """Return the position of a scratch in pixels along the object, reflected between -`reach` and `reach`; [n]."""
    travel = np.zeros_like(times_s)
    if contact.duration_s:
        phase = np.clip((times_s - contact.start_s) / contact.duration_s, 0, 1)
        travel = stroke_speed(contact.strength) * contact.duration_s * np.interp(phase, _PHASE, _TRAVEL)
    unfolded = contact.x * reach + contact.direction * travel
    return np.abs((unfolded + 3 * reach) % (4 * reach) - 2 * reach) - reach


def _swing(contact: Contact, start_s: float, height: float, hover: float) -> Iterator[tuple[float, float, float]]:
    """Yield time, height and vertical speed at the turning points from the current position to the next contact."""
    gap_s = contact.start_s - start_s
    speed = _LANDING_SPEED if contact.duration_s else impact_speed(contact.strength)
    down_s = min(_DOWN_S, 0.45 * gap_s)
    highest_s = contact.start_s - down_s
    if height == 0 and gap_s > _SETTLE_S + _LIFT_S + _DOWN_S:
        yield start_s + _SETTLE_S, hover, 0.0
    if gap_s > _SETTLE_S + _LIFT_S + 2 * _DOWN_S:
        yield highest_s - _LIFT_S, hover, 0.0
    yield highest_s, speed * down_s / 2, 0.0  # evenly accelerated from here
    yield contact.start_s, 0.0, -speed


def _glide(times_s: Floats, start_s: float, end_s: float, start: float, end: float) -> Floats:
    phase = np.clip((times_s - start_s) / (end_s - start_s), 0, 1)
    return start + (end - start) * phase * phase * (3 - 2 * phase)


def _tremor(times_s: Floats, random: np.random.Generator) -> Floats:
    rates_hz, phases = random.uniform(0.4, 2.0, (3, 1)), random.uniform(0, 6.28, (3, 1))
    return np.asarray(np.sin(2 * np.pi * rates_hz * times_s + phases).mean(axis=0) * random.uniform(0.5, 2))
