"""SDK and command line of Video-Foley: generate synchronised sound for silent video."""

from foley import __version__
from foley_client.api import FoleyClient
from foley_client.api_async import AsyncFoleyClient
from foley_client.embedded import embedded_triton
from foley_pipeline.foley import Foley, Take
from foley_pipeline.job import Curve, Job, Sound
from foley_pipeline.prompt import Prompt
from foley_pipeline.triton import Triton
from foley_pipeline.watch import Watch

__all__ = [
    "AsyncFoleyClient",
    "Curve",
    "Foley",
    "FoleyClient",
    "Job",
    "Prompt",
    "Sound",
    "Take",
    "Triton",
    "Watch",
    "__version__",
    "embedded_triton",
]
