"""The published weight files: addresses, hashes and size limits.

Every address and hash was read in a public source, which is named; none of the large files could be downloaded when
this was written. `sha256` is the whole hash if a source states it, a prefix if the file's name contains one (torch
hub's convention: `NAME-<prefix of the sha256>.pth`), and empty if none is published.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

_HUGGING_FACE = "https://huggingface.co"
_VIDEO_FOLEY = f"{_HUGGING_FACE}/jnwnlee/video-foley/resolve/main"
_ROBERTA = f"{_HUGGING_FACE}/FacebookAI/roberta-base/resolve/e2da8e2f811d1448a5b465c236feacd80ffbac7b"

LICENCE_NOTE = (
    "The RMS-ControlNet contains AudioLDM's weights, whose authors refer to CC-BY-NC-SA 4.0: no commercial use. "
    "The other files have their own licences: see their publishers."
)

TOKENIZER_FOLDER = "roberta-base"


@dataclass(frozen=True)
class PublishedFile:
    """One file, and the option of `foley-export import` for it.

    Attributes:
        option: Option name without dashes; files of the same folder share it.
        path: Path below the cache folder and below a mirror.
        urls: URLs, tried in this order.
        sha256: Lower-case hex, whole or a prefix; empty if not published.
        max_bytes: Upper bound of the file's size. A larger response is rejected.
    """

    option: str
    path: str
    urls: tuple[str, ...]
    sha256: str
    max_bytes: int


PUBLISHED = (
    # Source: README of github.com/jnwnlee/video-foley and the model card at huggingface.co/jnwnlee/video-foley.
    # No hash is stated there. Weights and buffers are 2,807 MiB; EMA copies would add the UNet's size again.
    PublishedFile(
        option="rms2sound",
        path="ControlNetstep300000.pth",
        urls=(f"{_VIDEO_FOLEY}/ControlNetstep300000.pth",),
        sha256="",
        max_bytes=16 * 2**30,
    ),
    # Source: the same. 306 MiB of weights.
    PublishedFile(
        option="video2rms",
        path="checkpoint_000500_Video2RMS.pt",
        urls=(f"{_VIDEO_FOLEY}/checkpoint_000500_Video2RMS.pt",),
        sha256="",
        max_bytes=2 * 2**30,
    ),
    PublishedFile(
        option="opts",
        path="opts.yml",
        urls=(f"{_VIDEO_FOLEY}/opts.yml",),
        sha256="",
        max_bytes=2**20,
    ),
    # Source: Raft_Large_Weights.C_T_SKHT_V2 in torchvision/models/optical_flow/raft.py of github.com/pytorch/vision,
    # the weights that the official preprocess/extract_rgb_flow_raft.py loads (DEFAULT). 20.1 MB.
    PublishedFile(
        option="raft",
        path="raft_large_C_T_SKHT_V2-ff5fadd5.pth",
        urls=("https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",),
        sha256="ff5fadd5",
        max_bytes=2**27,
    ),
    # Source and hashes: several projects that pin this revision agree on them (such as "roberta_base_bpe" of
    # KeemenaSubwords.jl); merges.txt is OpenAI's GPT-2 vocab.bpe, whose hash tiktoken states too. MIT licence.
    PublishedFile(
        option="tokenizer",
        path=f"{TOKENIZER_FOLDER}/vocab.json",
        urls=(f"{_ROBERTA}/vocab.json",),
        sha256="9e7f63c2d15d666b52e21d250d2e513b87c9b713cfa6987a82ed89e5e6e50655",
        max_bytes=2**23,
    ),
    PublishedFile(
        option="tokenizer",
        path=f"{TOKENIZER_FOLDER}/merges.txt",
        urls=(f"{_ROBERTA}/merges.txt",),
        sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        max_bytes=2**23,
    ),
    # Last, because its host is the oldest and the most likely to be offline.
    # Source: class BNInception of github.com/yjxiong/tensorflow-model-zoo.torch (the BN-Inception of TSN), which loads
    # it with torch.utils.model_zoo.load_url; that checks the name's suffix as the start of the sha256. Second URL: a
    # comment in pretrainedmodels/models/bninception.py of github.com/Cadene/pretrained-models.pytorch (whose own
    # bn_inception-52deb4733.pth is another file). 39 MiB without the classifier.
    PublishedFile(
        option="bn-inception",
        path="bn_inception-9f5701afb96c8044.pth",
        urls=(
            "https://yjxiong.blob.core.windows.net/models/bn_inception-9f5701afb96c8044.pth",
            "http://yjxiong.me/others/bn_inception-9f5701afb96c8044.pth",
        ),
        sha256="9f5701afb96c8044",
        max_bytes=2**28,
    ),
)

OPTIONS = tuple(dict.fromkeys(file.option for file in PUBLISHED))


def import_command(folder: Path) -> str | None:
    """Return the command that makes a bundle from the cached files in `folder`, or None if any file is missing."""
    if not all((folder / file.path).is_file() for file in PUBLISHED):
        return None
    # the tokenizer option takes a folder
    paths = {
        file.option: folder / (TOKENIZER_FOLDER if file.option == "tokenizer" else file.path) for file in PUBLISHED
    }
    options = " ".join(f"--{option} {shlex.quote(str(path))}" for option, path in paths.items())
    return f"foley-export import {options} -o bundles/official"
