"""A tokenizer for bundles with seeded weights: RoBERTa's format, with bytes instead of learned merges."""

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing

from foley.manifest import ClapTextConfig

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as RoBERTa has them


def byte_tokenizer(config: ClapTextConfig) -> Tokenizer:
    """One token a byte, `<s> ... </s>`, padded to the longest text, cut at the network's limit."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.enable_truncation(config.max_tokens)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    return tokenizer
