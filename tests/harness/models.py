"""Model repositories: read the configuration of a model, find its version, or replace a model."""

import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    """Return the configuration of the model in `folder`."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def served(folder: Path) -> Path:
    """Return the folder of the only version of the model in `folder`."""
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def replace_model(models: Path, name: str, source: str) -> Path:
    """Create the model repository `models`, in which `source` is the code of the model `name`; return `models`."""
    shutil.copytree(REPOSITORY, models)
    folder = models / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(source)
    return models
