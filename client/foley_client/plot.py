"""Plots of envelopes: the requested curve and, if there is sound, the produced curve and the spectrogram."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foley import clip
from foley.envelope import Floats, measure

_REQUESTED, _PRODUCED = "#ff9f1c", "#2ec4b6"
_WINDOW = 1024  # samples in each FFT window of the spectrogram
_COLUMNS = 6_000  # most FFT windows, more than the plot has pixels; all of a long sound would take gigabytes


def draw(destination: Path, requested: Floats, waveform: Floats | None = None) -> None:
    """Plot an envelope to a PNG file.

    Args:
        destination: The file to write.
        requested: RMS values [frames at 100 Hz].
        waveform: Sound [samples at 16 kHz], whose envelope and spectrogram are added.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    if waveform is None:
        _curves(figure.subplots(), {"envelope": (requested, _REQUESTED)})
    else:
        curves, spectrogram = figure.subplots(2, sharex=True, height_ratios=(2, 3))
        sound = np.pad(waveform, (0, max(0, _WINDOW - len(waveform))))
        sound += np.float32(1e-5) * np.sin(np.arange(len(sound), dtype=np.float32))  # the logarithm of zero is infinite
        hop = max(clip.HOP, len(sound) // _COLUMNS)
        windows = np.lib.stride_tricks.sliding_window_view(sound, _WINDOW)[::hop]
        edges = (_WINDOW - hop) / 2 + np.array([0, len(windows) * hop])
        extent = tuple(edges / clip.SAMPLE_RATE_HZ)
        spectrogram.specgram(windows.ravel(), _WINDOW, clip.SAMPLE_RATE_HZ, noverlap=0, xextent=extent)
        spectrogram.set(xlabel="time (s)", ylabel="frequency (Hz)")
        _curves(curves, {"requested": (requested, _REQUESTED), "produced": (measure(waveform), _PRODUCED)})
    figure.savefig(destination, dpi=120, format="png")


def _curves(axes: Axes, curves: dict[str, tuple[Floats, str]]) -> None:
    for label, (values, colour) in curves.items():
        seconds = np.arange(len(values)) / clip.ENVELOPE_RATE_HZ
        axes.plot(seconds, values, label=label, color=colour, linewidth=1.5)
    axes.set(xlabel="time (s)", ylabel="RMS", ylim=(0, None))
    axes.margins(x=0)
    axes.legend(loc="upper right")
