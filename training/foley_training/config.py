"""The configuration of a training run: data set sizes, length of each stage, seed."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foley.errors import SettingError

Count = Annotated[int, Field(gt=0)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoopConfig(_Config):
    """Length and learning rate of one stage."""

    steps: Count
    batch: Count
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warm_up: Count = 200  # steps
    validate_every: Annotated[int, Field(ge=0)] = 0  # steps; 0: only at the end


class TrainingConfig(_Config):
    """Everything that, together with the code, determines the weights."""

    preset: str = "demo"
    seed: int = 0
    sounds: Count  # training clips of CLAP, the VAE, the vocoder and the diffusion stages
    videos: Count  # training clips of Video2RMS
    pictured_videos: Count  # the first of `videos`, whose frames train the feature networks
    validation: Count  # validation sounds
    validation_videos: Count  # validation videos

    clap: LoopConfig
    vae: LoopConfig
    vocoder: LoopConfig
    unet: LoopConfig
    control_net: LoopConfig
    rgb_features: LoopConfig
    flow_features: LoopConfig
    video2rms: LoopConfig
    video2rms_regression: LoopConfig


def read_config(path: Path) -> TrainingConfig:
    """Read the configuration from a YAML file.

    Raises:
        SettingError: If the file cannot be read or is not a training configuration.
    """
    try:
        return TrainingConfig.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"{path} cannot be read ({error}); pass a file such as training/demo.yaml") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise SettingError(
            f"{path} is not a training configuration ({where}: {first['msg']}); compare it with training/demo.yaml"
        ) from error
