"""The sizes of Video2RMS: from the shapes of its weights, checked against the `opts.yml` published beside them.

The options are those of config.py in github.com/jnwnlee/video-foley, written as YAML by yacs.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from foley import clip
from foley.envelope import MU, QUIETEST
from foley.errors import CheckpointError
from foley.manifest import Manifest, Video2RMSConfig
from foley_export.checkpoint import shorten

_MAX_BYTES = 2**20


def sizes(weights: Mapping[str, Tensor]) -> Video2RMSConfig | None:
    """Infer the sizes of Video2RMS from the shapes of `weights`; None if they cannot be inferred.

    Shapes are not checked for consistency here; loading into a network of these sizes detects any mismatch.
    """
    blocks = _count(weights, r"encoder\.convolutions\.(\d+)\.0\.conv\.weight")
    layers = _count(weights, r"encoder\.BiLSTM\.weight_ih_l(\d+)")
    convolution = weights.get("encoder.convolutions.0.0.conv.weight")
    recurrent = weights.get("encoder.BiLSTM.weight_hh_l0")
    head = weights.get("encoder.BiLSTM_projs.1.weight")
    if convolution is None or recurrent is None or head is None or not layers:
        return None
    if (convolution.dim(), recurrent.dim(), head.dim()) != (3, 2, 2):
        return None
    found = (blocks, convolution.shape[2], layers, recurrent.shape[1], head.shape[0])
    if not all(found):
        return None
    return Video2RMSConfig(
        convolutions=blocks, kernel=found[1], lstm_layers=layers, lstm_width=found[3], classes=found[4]
    )


def contradictions(path: Path, manifest: Manifest) -> list[str]:
    """Return a sentence that lists the options at `path` that contradict `manifest`, or an empty list.

    Raises:
        CheckpointError: If the file cannot be read or is not an `opts.yml`.
    """
    opts = _read(path)
    config = manifest.video2rms
    expected: dict[str, object] = {
        "model.encoder_embedding_dim": manifest.features_width,
        "model.encoder_kernel_size": config.kernel,
        "model.encoder_n_convolutions": config.convolutions,
        "model.encoder_n_lstm": config.lstm_layers,
        "data.video_samples": clip.CLIP_FRAMES,
        "data.audio_samples": clip.CLIP_SECONDS,
        "data.rms_samples": clip.CLIP_CLASSES,
        "data.rms_discretize": True,
        "data.rms_num_bins": config.classes,
        "data.rms_mu": MU,
        "data.rms_min": QUIETEST,
    }
    stated = {
        name: opts[section][key] for name in expected for section, key in [name.split(".")] if key in opts[section]
    }
    different = [
        f"{name} is {value} instead of {expected[name]}" for name, value in stated.items() if value != expected[name]
    ]
    return (
        [f"{path} contradicts the weights: {shorten(different)}; pass the opts.yml that was published with them"]
        if different
        else []
    )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many keys match `pattern`, whose group captures an index, with contiguous indices from 0."""
    numbers = {int(found[1]) for key in weights if (found := re.fullmatch(pattern, key))}
    return next(i for i in range(len(numbers) + 1) if i not in numbers)


def _read(path: Path) -> Mapping[str, Mapping[str, Any]]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} is larger than 1 MiB; pass the opts.yml of Video2RMS")
        opts = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not plain YAML; pass the opts.yml of Video2RMS") from error
    sections = ("model", "data")
    if not isinstance(opts, dict) or not all(isinstance(opts.get(name), dict) for name in sections):
        raise CheckpointError(f"{path} lacks the sections model and data; pass the opts.yml of Video2RMS")
    return {name: opts[name] for name in sections}
