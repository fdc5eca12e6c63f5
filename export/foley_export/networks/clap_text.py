"""CLAP's text encoder: RoBERTa and a projection into the joint embedding space.

Wu et al., "Large-Scale Contrastive Language-Audio Pretraining" (ICASSP 2023). The modules are transformers';
checkpoint keys are those of the LAION checkpoint that AudioLDM contains.
"""

from torch import Tensor, nn
from torch.nn import functional
from transformers.models.clap import configuration_clap, modeling_clap

from foley import clip
from foley.manifest import Manifest
from foley_export.networks.network import Network

CHECKPOINT_PREFIX = "cond_stage_models.0.model."
_PAD_ID = 1  # RoBERTa's token id; also the offset of the position ids
_MASK_BIAS = -1e4  # score of a padded token: zero weight after softmax, and within float16's range


class ClapText(Network):
    """Token ids and attention mask int64 [B, L] -> unit-length embedding [B, 512].

    The embedding is independent of the amount of padding (id 1, mask 0).
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
            max_position_embeddings=config.max_tokens + _PAD_ID + 1,
            pad_token_id=_PAD_ID,
            layer_norm_eps=1e-5,  # RoBERTa's; the class defaults to BERT's
            projection_dim=clip.EMBEDDING_DIM,
        )
        self.text_branch = modeling_clap.ClapTextModel(settings)
        self.text_projection = modeling_clap.ClapProjectionLayer(settings)
        _exclude_ids_from_state_dict(self.text_branch.embeddings)

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for `key`."""
        return CHECKPOINT_PREFIX + projection_key(key)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the unit-length embedding [B, 512]."""
        # Call the submodules directly: the model's own forward builds the mask with gathers that cost time in a graph.
        hidden = self.text_branch.embeddings(input_ids, position_ids=_position_ids(input_ids))
        mask = (1 - attention_mask)[:, None, None, :].to(hidden.dtype) * _MASK_BIAS
        hidden = self.text_branch.encoder(hidden, attention_mask=mask).last_hidden_state
        pooled = self.text_branch.get_submodule("pooler")(hidden)
        return functional.normalize(self.text_projection(pooled), dim=-1)


def _position_ids(input_ids: Tensor) -> Tensor:
    """Return RoBERTa's position ids: tokens count from 2, padding has 1.

    The cumulative sum is over floats, because TensorRT's CumSum takes no integers.
    """
    real = (input_ids != _PAD_ID).float()
    return (real.cumsum(1) * real).long() + _PAD_ID


def projection_key(key: str) -> str:
    """Return LAION's name of a projection layer: a sequence of Linear, ReLU, Linear."""
    return key.replace("projection.linear1.", "projection.0.").replace("projection.linear2.", "projection.2.")


def _exclude_ids_from_state_dict(embeddings: nn.Module) -> None:
    """Make the position and token-type ids non-persistent, because checkpoints do not hold them."""
    for name in ("position_ids", "token_type_ids"):
        embeddings.register_buffer(name, embeddings.get_buffer(name), persistent=False)
