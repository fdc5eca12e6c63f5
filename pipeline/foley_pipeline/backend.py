"""The interface of what runs the pipeline: a Triton server, or a public API."""

from pathlib import Path
from typing import Protocol, TypeAlias

from foley.envelope import Floats
from foley.options import OpticalFlow
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.progress import OnProgress, ignore_progress
from foley_pipeline.prompt import Prompt
from foley_pipeline.request import GenerationRequest
from foley_pipeline.result import GenerationResult

Embeddings: TypeAlias = tuple[Floats, Floats]
"""CLAP embeddings of the prompt and of the negative prompt, float32 [512] each."""


class Backend(Protocol):
    """Runs the two stages of Video-Foley. Thread-safe.

    All methods report to `progress`, and raise `Cancelled` within a second after `cancel.cancel()`.
    """

    def generate(
        self, request: GenerationRequest, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> GenerationResult:
        """Generate sound.

        Raises:
            MediaError: The video or the audio prompt cannot be used.
            EnvelopeError: The envelope is invalid.
            SettingError: A setting is out of range or has no effect.
            ServerUnavailable: The server cannot be reached.
        """

    def predict_envelope(
        self,
        video: Path | str,
        *,
        flow: OpticalFlow | None = None,
        progress: OnProgress = ignore_progress,
        cancel: CancelToken | None = None,
    ) -> Floats:
        """Predict the envelope of a video with Video2RMS.

        Args:
            video: The video.
            flow: Optical flow; None: the backend's default.
            progress: Receives the progress.
            cancel: Cancels the call.

        Returns:
            Linear RMS, float32 [ceil(duration * 100)].

        Raises:
            MediaError: The video cannot be used.
            SettingError: The bundle is not served with this `flow`.
        """

    def embed_prompt(
        self, prompt: Prompt | str, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> Embeddings:
        """Compute the embeddings of a prompt and of its negative text, which is empty by default.

        Raises:
            MediaError: The audio prompt cannot be read.
        """
