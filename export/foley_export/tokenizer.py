"""Tokenizers of bundles: RoBERTa's from its published files, a BPE trained here, or plain bytes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer

from foley.errors import CheckpointError
from foley.manifest import ClapTextConfig

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in RoBERTa
MASK = "<mask>"  # has the last id
_SINGLE_FILE = ("tokenizer.json",)
_SEPARATE_FILES = ("vocab.json", "merges.txt")


def byte_tokenizer(config: ClapTextConfig) -> Tokenizer:
    """Return a byte-level tokenizer without merges.

    Encodes `<s> ... </s>`, pads to the longest text of a batch and truncates to `config.max_tokens`.
    """
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    return _configure(Tokenizer(BPE(vocabulary, [], unk_token="<unk>")), config)


def train_tokenizer(texts: Iterable[str], config: ClapTextConfig) -> Tokenizer:
    """Train a byte-level BPE on `texts`, up to `config.vocabulary` tokens; all bytes are in the vocabulary."""
    tokenizer = _configure(Tokenizer(BPE(unk_token="<unk>")), config)
    trainer = BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def published_files(folder: Path) -> Sequence[Path]:
    """Return the files of the RoBERTa tokenizer in `folder`: `vocab.json` and `merges.txt`, or `tokenizer.json`.

    Raises:
        CheckpointError: If the folder holds neither.
    """
    for names in (_SEPARATE_FILES, _SINGLE_FILE):
        paths = [folder / name for name in names]
        if all(path.is_file() for path in paths):
            return paths
    raise CheckpointError(
        f"there is no tokenizer in {folder}; pass a folder with vocab.json and merges.txt, or tokenizer.json, as "
        "--tokenizer, or run `foley-export fetch --only tokenizer`"
    )


def published_tokenizer(folder: Path, config: ClapTextConfig) -> Tokenizer:
    """Load the RoBERTa tokenizer in `folder`, with the padding and truncation of `byte_tokenizer`.

    Raises:
        CheckpointError: If the files are missing or damaged, or do not match the text encoder's vocabulary.
    """
    paths = published_files(folder)
    try:
        if len(paths) == 1:
            tokenizer = Tokenizer.from_file(str(paths[0]))
        else:
            tokenizer = Tokenizer(BPE.from_file(*map(str, paths), unk_token="<unk>"))
    except Exception as error:  # tokenizers raises bare `Exception`
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read ({error}); pass the files of FacebookAI/roberta-base"
        ) from error
    vocabulary = tokenizer.get_vocab()
    expected = {token: i for i, token in enumerate(SPECIAL)} | {MASK: config.vocabulary - 1}
    found = {token: vocabulary.get(token) for token in expected}
    problem = ""
    if not isinstance(tokenizer.model, BPE):
        problem = f"its model is {type(tokenizer.model).__name__} instead of BPE"
    elif sorted(vocabulary.values()) != list(range(config.vocabulary)):
        problem = f"it has {len(vocabulary)} tokens with ids up to {max(vocabulary.values(), default=0)}"
    elif found != expected:
        problem = "its special tokens are " + ", ".join(f"{token} = {i}" for token, i in found.items())
    if problem:
        raise CheckpointError(
            f"the tokenizer in {folder} is not RoBERTa's with {config.vocabulary} tokens: {problem}; "
            "pass the files of FacebookAI/roberta-base"
        )
    return _configure(tokenizer, config, published=True)


def _configure(tokenizer: Tokenizer, config: ClapTextConfig, published: bool = False) -> Tokenizer:
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    if published:  # special tokens in a prompt's text are parsed as such, as in the official implementation
        tokenizer.add_special_tokens([*SPECIAL, AddedToken(MASK, lstrip=True, normalized=False)])
    tokenizer.enable_truncation(config.max_tokens)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    return tokenizer
