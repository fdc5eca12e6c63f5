"""The timbre prompt, a text or a recording, and its CLAP embedding."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foley import clip
from foley.envelope import Floats
from foley.errors import SettingError
from foley.options import PromptOptions
from foley_pipeline.paths import file_path
from foley_pipeline.triton import TritonClient


@dataclass(frozen=True)
class Prompt:
    """A timbre prompt. The path of the recording may be given as a string.

    Attributes:
        text: Description of the sound; empty: no condition.
        audio: Recording whose timbre is used, in place of a text.
        negative_text: Description of sounds to avoid.

    Raises:
        SettingError: There are both a text and a recording, or a text is too long or not valid Unicode.
    """

    text: str = ""
    audio: Path | None = None
    negative_text: str = ""

    def __post_init__(self) -> None:
        if self.audio is not None:
            object.__setattr__(self, "audio", file_path(self.audio, "audio"))
        if self.text and self.audio:
            raise SettingError("there are both a text and an audio prompt; give one of them")
        PromptOptions(text=self.text, negative_text=self.negative_text)

    def check(self, guidance: float) -> None:
        """Check that a negative text has an effect.

        Raises:
            SettingError: There is a negative text, but guidance is 1, which disables classifier-free guidance.
        """
        if self.negative_text and guidance == 1:
            raise SettingError("negative_text has no effect with guidance 1; set a higher guidance, for example 2")


def as_prompt(prompt: Prompt | str) -> Prompt:
    """Return a prompt; a string is its text."""
    return Prompt(prompt) if isinstance(prompt, str) else prompt


def embed_text(triton: TritonClient, text: str) -> Floats:
    """Return the CLAP embedding of a text, float32 [512] of unit length.

    Each text is a separate call, because batching changes the last bits.
    """
    encoded = np.array([[text.encode()]], np.object_)
    embedding: Floats = triton.infer("text_to_embedding", text=encoded)["embedding"][0]
    return embedding


def embed_audio(triton: TritonClient, waveform: Floats) -> Floats:
    """Return the CLAP embedding of a recording, float32 [512].

    Args:
        triton: The server.
        waveform: float32 [samples at 16 kHz]; repeated or truncated to 10.24 s.
    """
    embedding: Floats = triton.infer("clap_audio", waveform=np.resize(waveform, (1, clip.PADDED_SAMPLES)))["embedding"][
        0
    ]
    return embedding
