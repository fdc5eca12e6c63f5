"""Checks of CLAP's text and audio encoders."""

import numpy as np
import torch

from foley_export.networks.clap_audio import ClapAudio
from foley_export.networks.clap_text import ClapText
from foley_export.presets import PAPER
from foley_export.verification.check import Comparisons, Forward, NetworkCheck
from foley_export.verification.comparison import Comparison
from foley_export.verification.vectors import Vectors

_PAD_ID = 1  # RoBERTa's token id


def _text(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["clap_text"]
    ids, mask, official = vector["input_ids"], vector["attention_mask"], vector["embedding"]
    padding = ((0, 0), (0, int(vector["padded_length"]) - ids.shape[1]))
    padded = np.pad(ids, padding, constant_values=_PAD_ID), np.pad(mask, padding)
    yield Comparison("embedding, padded as officially", forward(*padded)[0], official)
    rows = [forward(ids[i : i + 1, :length], mask[i : i + 1, :length]) for i, length in enumerate(mask.sum(1))]
    yield Comparison("embedding, without padding", np.concatenate([embedding for (embedding,) in rows]), official)


def _front_end(network: ClapAudio, vectors: Vectors) -> Comparisons:
    vector = vectors["clap_audio"]
    waveform = torch.from_numpy(vector["waveform"]).float()[None]
    head = vector["resampled_48k_head"]
    yield Comparison("waveform at 48 kHz", network.upsample(waveform)[0, : len(head)].numpy(), head)
    log_mel = network.spectrogram(waveform)[0, ::8].numpy()
    yield Comparison("log-mel", log_mel, vector["logmel_48k_every_8th_frame"])


def _audio(forward: Forward, vectors: Vectors) -> Comparisons:
    vector = vectors["clap_audio"]
    (embedding,) = forward(vector["waveform"].astype(np.float32)[None])
    yield Comparison("embedding", embedding, vector["embedding"][0])


CHECKS = (
    NetworkCheck("clap_text", lambda: ClapText(PAPER), (_text,)),
    NetworkCheck("clap_audio", lambda: ClapAudio(PAPER), (_audio,), (_front_end,)),
)
