"""Classifier of the material of a sound, trained on real sounds only."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from foley.envelope import Floats, measure
from foley_export.mel import log_mel
from foley_training.data.scene import Material

_RANGE_DB = 60.0  # below the loudest cell; quieter cells are clamped, because a vocoder's noise floor is not a timbre
_ACTIVE_THRESHOLD = 0.1  # frames count that have at least this share of the loudest frame's RMS
_DB = 20 / np.log(10)  # of one unit of natural logarithm


def spectrogram_db(waveform: Floats) -> Floats:
    """Return the log-mel [frames at 100 Hz, 64] of a 16 kHz sound in dB below its maximum, -60 to 0."""
    mel = log_mel(torch.from_numpy(waveform)[None])[0].numpy() * np.float32(_DB)
    return np.asarray(np.maximum(mel - mel.max(), -_RANGE_DB))


def timbre(waveform: Floats) -> Floats:
    """Return mean and standard deviation of each mel band, [128], independent of loudness and rhythm.

    Only sounding frames count, and the mean over the bands is subtracted, so a gain changes nothing.
    """
    envelope = measure(waveform)
    mel = spectrogram_db(waveform)[envelope >= _ACTIVE_THRESHOLD * envelope.max()]
    mean = mel.mean(0)
    return np.concatenate([mean - mean.mean(), mel.std(0)])


def train_classifier(timbres: Sequence[Floats], materials: Sequence[Material]) -> Pipeline:
    """Train a logistic regression from `timbre` to the material."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(np.stack(timbres), materials)
