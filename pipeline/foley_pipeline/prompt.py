"""The timbre prompt: a text or a sound, as a CLAP embedding."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foley import clip
from foley.envelope import Floats
from foley.errors import SettingError
from foley.options import PromptOptions
from foley_pipeline.triton import Triton


@dataclass(frozen=True)
class Prompt:
    """What the sound is made of: a text (empty: anything), or an audio file instead; and what it should not be.

    Raises:
        SettingError: both a text and a sound, a text that is too long, or one that is not Unicode.
    """

    text: str = ""
    audio: Path | None = None
    negative_text: str = ""

    def __post_init__(self) -> None:
        if self.text and self.audio:
            raise SettingError("give a text or an audio prompt, not both")
        PromptOptions(text=self.text, negative_text=self.negative_text)

    def check(self, guidance: float) -> None:
        """Raises SettingError where a negative text would do nothing: at guidance 1 nothing leads away from it."""
        if self.negative_text and guidance == 1:
            raise SettingError("with guidance 1 a negative text does nothing; ask for more guidance, for example 2")


def embed_text(triton: Triton, text: str) -> Floats:
    """CLAP embedding of a text, unit length: [512]. One call a text: in company it would differ in its last bits."""
    encoded = np.array([[text.encode()]], np.object_)
    embedding: Floats = triton.infer("text_to_embedding", text=encoded)["embedding"][0]
    return embedding


def embed_audio(triton: Triton, waveform: Floats) -> Floats:
    """CLAP embedding [512] of a 16 kHz sound; a short one is repeated to 10.24 s, of a long one the start counts."""
    embedding: Floats = triton.infer("clap_audio", waveform=np.resize(waveform, (1, clip.PADDED_SAMPLES)))["embedding"][
        0
    ]
    return embedding
