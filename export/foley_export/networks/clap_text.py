"""CLAP's text encoder: RoBERTa and a projection into the space that text and sound share.

Wu et al., "Large-Scale Contrastive Language-Audio Pretraining" (ICASSP 2023); transformers' modules
under the keys of the LAION checkpoint that AudioLDM carries.
"""

from torch import Tensor, nn
from torch.nn import functional
from transformers.models.clap import configuration_clap, modeling_clap

from foley import clip
from foley.manifest import Manifest
from foley_export.networks.network import Network

CHECKPOINT_PREFIX = "cond_stage_models.0.model."
_PADDING = 1  # RoBERTa's token id; it also shifts the positions
_MASKED = -1e4  # score of a padded token: no weight is left, and float16 can hold it


class ClapText(Network):
    """Token ids and attention mask int64 [B, L] -> embedding [B, 512] of unit length.

    The embedding does not depend on how far a text is padded (id 1, mask 0).
    """

    stage_name = "clap_text"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        config = manifest.clap_text
        settings = configuration_clap.ClapTextConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.feed_forward_width,
            max_position_embeddings=config.max_tokens + _PADDING + 1,
            pad_token_id=_PADDING,
            layer_norm_eps=1e-5,  # RoBERTa's; the class' own default is BERT's
            projection_dim=clip.EMBEDDING,
        )
        self.text_branch = modeling_clap.ClapTextModel(settings)
        self.text_projection = modeling_clap.ClapProjectionLayer(settings)
        _forget_counters(self.text_branch.embeddings)

    @staticmethod
    def checkpoint_key(key: str) -> str:
        return CHECKPOINT_PREFIX + projection_key(key)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # the branch's parts, since its own forward makes the mask with gathers that only cost time in a graph
        hidden = self.text_branch.embeddings(input_ids, position_ids=_positions(input_ids))
        mask = (1 - attention_mask)[:, None, None, :].to(hidden.dtype) * _MASKED
        hidden = self.text_branch.encoder(hidden, attention_mask=mask).last_hidden_state
        pooled = self.text_branch.get_submodule("pooler")(hidden)
        return functional.normalize(self.text_projection(pooled), dim=-1)


def _positions(input_ids: Tensor) -> Tensor:
    """RoBERTa's positions of tokens: they count from 2, padding has 1. Summed as floats, which TensorRT does."""
    real = (input_ids != _PADDING).float()
    return (real.cumsum(1) * real).long() + _PADDING


def projection_key(key: str) -> str:
    """LAION's name of a projection's layer: a sequence of Linear, ReLU, Linear."""
    return key.replace("projection.linear1.", "projection.0.").replace("projection.linear2.", "projection.2.")


def _forget_counters(embeddings: nn.Module) -> None:
    """Keep the position and type counters, which checkpoints do not hold, out of the state dict."""
    for name in ("position_ids", "token_type_ids"):
        embeddings.register_buffer(name, embeddings.get_buffer(name), persistent=False)
