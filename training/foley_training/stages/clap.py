"""CLAP at small scale: a joint embedding space of texts and sounds.

Wu et al. (ICASSP 2023) train with the symmetric contrastive loss of CLIP. Here many clips of a batch have the same
text, so all pairs with equal labels are positives (supervised contrastive learning, Khosla et al. 2020). A second term
minimises the distance of the two embeddings of a pair: the diffusion model is trained on audio embeddings and prompted
with text embeddings, so the modality gap of contrastive learning (Liang et al. 2022) would be audible. The empty text,
used when there is no prompt, matches no sound and is pushed away from all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from foley.manifest import Manifest
from foley_export.networks.clap_audio import ClapAudio
from foley_export.networks.clap_text import ClapText
from foley_training.config import LoopConfig
from foley_training.data.caption import caption, plain_caption
from foley_training.data.scene import ACTIONS, MATERIALS, Scene, make_scene
from foley_training.loop import Losses, Pass, Task
from foley_training.sounds import CLAP_FRAMES, Sounds

_ALIGNMENT_WEIGHT = 0.5  # weight of the distance between the two embeddings of a pair
_TEMPERATURE = 0.07
_PLAIN_FRACTION = 0.15  # fraction of captions that are the evaluation's sentence
_EMPTY_FRACTION = 0.1  # fraction of empty texts
_NO_LABEL = -1  # label of the empty text
_VARIANTS = 1_000_000


@dataclass(frozen=True)
class Pairs:
    """Sounds, CLAP's log-mel [batch, 1001, 64], and texts, token ids and mask [batch, tokens].

    `audio_labels` and `text_labels` [batch] number the meanings of sounds and texts; the empty text's `_NO_LABEL`
    matches no sound.
    """

    spectrograms: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    audio_labels: Tensor
    text_labels: Tensor


class Clap(Task[Pairs]):
    """The audio and the text encoder, trained from scratch."""

    name = "clap"

    def __init__(
        self, manifest: Manifest, config: LoopConfig, tokenizer: Tokenizer, train: Sounds, validation: Sounds
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.train_set, self.validation_set = config, tokenizer, train, validation
        self.audio, self.text = ClapAudio(manifest), ClapText(manifest)
        self.networks = nn.ModuleDict({"audio": self.audio, "text": self.text})
        self.passes = [Pass(self.networks, self.losses)]

    def batch(self, random: np.random.Generator) -> Pairs:
        """Return a batch of matching sounds and captions; some captions are replaced by the empty text."""
        indices = random.integers(len(self.train_set.scenes), size=self.config.batch)
        scenes = [self.train_set.scenes[i] for i in indices]
        labels = [_label(scene) for scene in scenes]
        empty = random.random(len(scenes)) < _EMPTY_FRACTION
        texts = ["" if none else _text(scene, random) for scene, none in zip(scenes, empty, strict=True)]
        # short audio prompts are repeated to fill the clip, so it may start at any moment: roll randomly
        spectrograms = [np.roll(self.train_set.clap_mels[i], random.integers(CLAP_FRAMES), 0) for i in indices]
        input_ids, attention_mask = tokenize(self.tokenizer, texts)
        pairs = (
            torch.from_numpy(np.stack(spectrograms).astype(np.float32)),
            input_ids,
            attention_mask,
            torch.tensor(labels),
            torch.from_numpy(np.where(empty, _NO_LABEL, labels)),
        )
        return Pairs(*(tensor.to(self.device) for tensor in pairs))

    def losses(self, batch: Pairs) -> Losses:
        """Return the contrastive loss and the distance between the embeddings of a pair."""
        audio = embed_spectrograms(self.audio, batch.spectrograms)
        text = self.text(batch.input_ids, batch.attention_mask)
        is_match = (batch.audio_labels[:, None] == batch.text_labels).float()
        scores = audio.float() @ text.float().T / _TEMPERATURE
        contrast = _cross_entropy(scores, is_match) + _cross_entropy(scores.T, is_match.T)
        distance = 1 - (audio * text).sum(1)[batch.audio_labels == batch.text_labels].mean()
        return {"contrast": contrast / 2, "distance": _ALIGNMENT_WEIGHT * distance}

    def validate(self) -> dict[str, float]:
        """Return the accuracy of nearest-sentence retrieval among all twelve, and the mean cosine with the true one."""
        audio = torch.cat([embed_spectrograms(self.audio, part) for part in self._spectrograms(self.validation_set)])
        sentences = [plain_caption(material, action) for material in MATERIALS for action in ACTIONS]
        text = self.embed_texts(sentences)
        label = torch.tensor([_label(scene) for scene in self.validation_set.scenes], device=audio.device)
        scores = audio @ text.T
        matching = scores.gather(1, label[:, None])
        return {"accuracy": float((scores.argmax(1) == label).float().mean()), "cosine": float(matching.mean())}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length embeddings [texts, 512] on the task's device."""
        embeddings: Tensor = self.text(*(tensor.to(self.device) for tensor in tokenize(self.tokenizer, texts)))
        return embeddings

    def _spectrograms(self, sounds: Sounds) -> Iterator[Tensor]:
        for first in range(0, len(sounds.scenes), self.config.batch):
            part = sounds.clap_mels[first : first + self.config.batch].astype(np.float32)
            yield torch.from_numpy(part).to(self.device)


def embed_spectrograms(audio: ClapAudio, spectrograms: Tensor) -> Tensor:
    """Return unit-length embeddings [batch, 512] of CLAP's log-mel [batch, 1001, 64]; skips the front end."""
    pooled = audio.audio_branch(spectrograms[:, None]).pooler_output
    with torch.autocast(pooled.device.type, enabled=False):  # float32, because embeddings differ little at first
        return functional.normalize(audio.audio_projection(pooled.float()), dim=-1)


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, int64 [texts, tokens], padded to the longest text."""
    encoded = tokenizer.encode_batch(list(texts))
    return torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded])


def sentences(count: int) -> Iterator[str]:
    """Yield captions of the first `count` training scenes, for training the tokenizer."""
    for i in range(count):
        scene = make_scene("train", i)
        yield plain_caption(scene.material, scene.action)
        yield from (caption(scene, variant) for variant in range(4))


def _label(scene: Scene) -> int:
    return MATERIALS.index(scene.material) * len(ACTIONS) + ACTIONS.index(scene.action)


def _text(scene: Scene, random: np.random.Generator) -> str:
    if random.random() < _PLAIN_FRACTION:
        return plain_caption(scene.material, scene.action)
    return caption(scene, int(random.integers(_VARIANTS)))


def _cross_entropy(scores: Tensor, is_match: Tensor) -> Tensor:
    """Return the cross-entropy with all pairs of equal labels as equally likely targets; rows without any add zero."""
    matching = is_match / is_match.sum(1, keepdim=True).clamp(min=1)
    return -(matching * scores.log_softmax(1)).sum(1).mean()
