"""The timbre prompt: a text or a sound, as a CLAP embedding."""

from collections.abc import Sequence

import numpy as np

from foley import clip
from foley.envelope import Floats
from foley.errors import SettingError
from foley_client.triton import Triton

MAX_TEXT = 2_000  # characters; CLAP reads 512 tokens


def embed_texts(triton: Triton, texts: Sequence[str]) -> Floats:
    """CLAP embeddings of `texts`, unit length: [n, 512].

    Raises:
        SettingError: a text is longer than `MAX_TEXT` characters.
    """
    for text in texts:
        if len(text) > MAX_TEXT:
            raise SettingError(f"the prompt has {len(text)} characters; at most {MAX_TEXT} are read")
    encoded = np.array([[text.encode()] for text in texts], np.object_)
    return triton.infer("text_to_embedding", text=encoded)["embedding"]


def embed_audio(triton: Triton, waveform: Floats) -> Floats:
    """CLAP embedding [512] of a 16 kHz sound; a short one is repeated to 10.24 s, of a long one the start counts."""
    embedding: Floats = triton.infer("clap_audio", waveform=np.resize(waveform, (1, clip.PADDED_SAMPLES)))["embedding"][
        0
    ]
    return embedding
