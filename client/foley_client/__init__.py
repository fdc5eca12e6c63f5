"""SDK and command line of Video-Foley: generate synchronised sound for silent video.

    with foley_client.FoleyClient("grpcs://foley.example.com") as client:
        result = client.generate("hits.mp4", text="a stick hits metal", steps=10, seed=3)
        result.save("out.mp4")

`FoleyClient` and `AsyncFoleyClient` call a public API; `Foley` has the same methods on a Triton server.
"""

from foley import __version__, errors
from foley.errors import FoleyError
from foley.options import GenerateOptions
from foley.sound_format import SoundFormat
from foley_client._async.client import AsyncFoleyClient, AsyncGenerationJob
from foley_client._sync.client import FoleyClient, GenerationJob
from foley_client._wire import AudioChunk, Event, JobStatus
from foley_client.local import Foley
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.progress import OnProgress, Progress, Stage
from foley_pipeline.result import GenerationResult, Take

__all__ = [
    "AsyncFoleyClient",
    "AsyncGenerationJob",
    "AudioChunk",
    "CancelToken",
    "Event",
    "Foley",
    "FoleyClient",
    "FoleyError",
    "GenerateOptions",
    "GenerationJob",
    "GenerationResult",
    "JobStatus",
    "OnProgress",
    "Progress",
    "SoundFormat",
    "Stage",
    "Take",
    "__version__",
    "errors",
]
