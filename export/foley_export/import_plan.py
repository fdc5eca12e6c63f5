"""Plans a bundle from published files: every tensor is accounted for before anything is written."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from foley import schedule
from foley.errors import CheckpointError
from foley.manifest import Manifest
from foley.stages import weighted_networks
from foley_export import checkpoint, video2rms_opts
from foley_export.checkpoint import Checkpoint, shorten
from foley_export.layouts import LAYOUTS, Layout
from foley_export.networks import NETWORKS
from foley_export.recognise import RMS2SOUND, VIDEO2RMS, Kind, recognise
from foley_export.tokenizer import published_files, published_tokenizer

_COUNTER = "num_batches_tracked"  # training-time buffer of batch normalisation; absent from older files
_SCHEDULE: Mapping[str, Callable[[], np.ndarray]] = {
    "betas": schedule.betas,
    "alphas_cumprod": schedule.alphas_cumprod,
}
_SCALE_FACTOR = "scale_factor"
_POSITIONS = "position_ids"  # buffer of older RoBERTa models: 0, 1, 2, ...; not part of our network


@dataclass(frozen=True)
class Files:
    """The user's input files.

    Attributes:
        checkpoints: Paths of the files of all `layouts.LAYOUTS`, by option (`--raft`, ...).
        tokenizer: Folder with RoBERTa's files.
        opts: Video2RMS' `opts.yml`.
    """

    checkpoints: Mapping[str, Path]
    tokenizer: Path
    opts: Path | None = None


class Part(NamedTuple):
    """A checkpoint and its layout."""

    layout: Layout
    file: Checkpoint


class Origin(NamedTuple):
    """Where a network's tensor comes from: the file and the tensor's key in it."""

    file: Checkpoint
    key: str


@dataclass(frozen=True)
class Plan:
    """A validated plan for writing a bundle.

    Attributes:
        manifest: The bundle's manifest, still without sources and file hashes.
        origins: Origins by stage and state-dict key.
        tokenizer: The bundle's tokenizer.
        sources: All files that the bundle is made from.
        unused: By file, counts of unused items, by what they are.
    """

    manifest: Manifest
    origins: Mapping[str, Mapping[str, Origin]]
    tokenizer: Tokenizer
    sources: Sequence[Path]
    unused: Mapping[Path, Mapping[str, int]]


def plan(preset: Manifest, files: Files) -> Plan:
    """Read all files and locate the tensors of a bundle like `preset`.

    The sizes of Video2RMS and the VAE's scale factor come from the files; all other sizes must match the preset.

    Raises:
        CheckpointError: If any file does not fit; the message lists all problems.
    """
    problems: list[str] = []
    parts = _parts(files.checkpoints, problems)
    manifest = _manifest(preset, parts, problems)
    if files.opts:
        try:
            problems += video2rms_opts.contradictions(files.opts, manifest)
        except CheckpointError as error:
            problems.append(str(error))
    tokenizer = None
    try:
        tokenizer = published_tokenizer(files.tokenizer, manifest.clap_text)
    except CheckpointError as error:
        problems.append(str(error))

    resolver = _Resolver(manifest, parts)
    for stage in weighted_networks(manifest):
        problems += resolver.resolve(stage)
    unused = {}
    for part in parts:
        unused[part.file.path], unexpected = resolver.unused(part)
        problems += unexpected
    if problems or tokenizer is None:
        raise CheckpointError(_message(problems))
    sources = [*files.checkpoints.values(), *([files.opts] if files.opts else []), *published_files(files.tokenizer)]
    return Plan(manifest, resolver.origins, tokenizer, sources, unused)


def _parts(checkpoints: Mapping[str, Path], problems: list[str]) -> list[Part]:
    """Return the files that are readable and match their option; append the others to `problems`."""
    found = []
    for layout in LAYOUTS:
        try:
            file = checkpoint.read(checkpoints[layout.option])
        except CheckpointError as error:
            problems.append(str(error))
            continue
        tensors = {key: layout.normalise(key, tensor) for key, tensor in file.tensors.items()}
        kind = recognise(tensors)
        problems += [
            f"{file.path} belongs to another network: its {key} are not 0, 1, 2, ...; download it again"
            for key, tensor in tensors.items()
            if key.endswith(_POSITIONS) and not _is_range(tensor)
        ]
        if kind == layout.kind:
            found.append(Part(layout, Checkpoint(file.path, tensors, file.others)))
        else:
            problems.append(_wrong_model(file, layout.kind, kind))
    return found


def _wrong_model(file: Checkpoint, expected: Kind, kind: Kind | None) -> str:
    if kind is None:
        looks = f"its tensors belong to no known model: {shorten(list(file.tensors), 4)}"
    else:
        looks = f"it looks like {kind.name}" + (f", which is passed as {kind.option}" if kind.option else "")
    return f"{file.path} is not {expected.name}: {looks}; choose another file for {expected.option}"


def _manifest(preset: Manifest, parts: list[Part], problems: list[str]) -> Manifest:
    """Return `preset` with the sizes and the scale factor from the files; check the noise schedule too."""
    sizes, scale_factor = None, None
    for layout, file in parts:
        if layout.kind == VIDEO2RMS:
            sizes = video2rms_opts.sizes(file.tensors)
        if layout.kind == RMS2SOUND:
            problems += [
                f"{file.path} was trained with another noise schedule: its {name} differ from AudioLDM's; pass another"
                for name, schedule in _SCHEDULE.items()
                if name in file.tensors and not _is_close(file.tensors[name], schedule())
            ]
            if (tensor := file.tensors.get(_SCALE_FACTOR)) is None:
                # The official loader defaults to 1, AudioLDM has 0.9227: no default is right for every file.
                problems.append(f"{file.path} lacks scale_factor, by which latents are divided; download it again")
            else:
                # the shortest decimal that rounds to the float32 value: 0.9227, not 0.9226999878883362
                scale_factor = float(str(tensor.float().numpy()[()])) if tensor.dim() == 0 else 0.0
                if not 0 < scale_factor < np.inf:
                    problems.append(f"{file.path} has a scale_factor that is not a positive number; download it again")
                    scale_factor = None
    return preset.model_copy(
        update={
            "video2rms": sizes or preset.video2rms,
            "vae_decoder": preset.vae_decoder.model_copy(update={"scale_factor": scale_factor} if scale_factor else {}),
        }
    )


def _is_close(tensor: Tensor, expected: np.ndarray) -> bool:
    return tuple(tensor.shape) == expected.shape and np.allclose(tensor.double().numpy(), expected, rtol=1e-4, atol=0)


class _Resolver:
    """Maps every tensor of a network to its origin, and tracks which tensors of the files are used."""

    def __init__(self, manifest: Manifest, parts: Sequence[Part]) -> None:
        self.manifest = manifest
        self.parts = parts
        self.origins: dict[str, dict[str, Origin]] = {}
        self._used: dict[Path, set[str]] = {part.file.path: set() for part in parts}

    def resolve(self, stage: str) -> list[str]:
        """Resolve the tensors of a stage; return the problems found."""
        with torch.device("meta"):
            network = NETWORKS[stage](self.manifest)
        origins = self.origins[stage] = dict[str, Origin]()
        part = next((part for part in self.parts if stage in part.layout.stages), None)
        if part is None:
            return []  # its file could not be used, which is already reported
        path, used = part.file.path, self._used[part.file.path]
        missing, wrong = [], []
        for key, tensor in network.state_dict().items():
            if key.endswith(_COUNTER):
                continue
            name = network.checkpoint_key(key)
            reported = name in used  # for another network, or another part of the same tensor
            used.add(name)
            theirs = part.file.tensors.get(name)
            if theirs is not None:
                origins[key] = Origin(part.file, name)
                if not reported and (fault := _incompatibility(theirs, tensor, network.checkpoint_shape(key))):
                    wrong.append(f"{name} {fault}")
            elif not reported and tensor.is_floating_point():
                missing.append(name)
        faults = {"lacks tensors": missing, "has incompatible tensors": wrong}
        return [f"{path} {fault} of {stage}: {shorten(names)}" for fault, names in faults.items() if names]

    def unused(self, part: Part) -> tuple[dict[str, int], list[str]]:
        """Return the counts of a file's unused items by what they are, and a problem if any tensor is unexpected."""
        groups: Counter[str] = Counter({"non-tensor values": len(part.file.others)})
        unexpected = []
        for key in part.file.tensors:
            if key in self._used[part.file.path]:
                continue
            group = part.layout.group(key)
            if group is None:
                unexpected.append(key)
            else:
                groups[group] += 1
        problem = f"{part.file.path} has unexpected tensors: {shorten(unexpected)}"
        return {name: count for name, count in groups.items() if count}, [problem] if unexpected else []


def _incompatibility(theirs: Tensor, ours: Tensor, shape: tuple[int, ...]) -> str:
    """Return why `theirs` cannot replace `ours`, whose shape in the file is `shape`; empty if it can."""
    if tuple(theirs.shape) != shape:
        return f"has shape {list(theirs.shape)} instead of {list(shape)}"
    if theirs.is_floating_point() != ours.is_floating_point():
        return f"is {theirs.dtype} instead of {ours.dtype}".replace("torch.", "")
    return "" if _is_plain(theirs) else "is quantized, sparse or not on the CPU"


def _is_plain(tensor: Tensor) -> bool:
    return not tensor.is_quantized and tensor.layout == torch.strided and tensor.device.type == "cpu"


def _is_range(tensor: Tensor) -> bool:
    """Whether the values are 0, 1, 2, ..., of any dtype."""
    return _is_plain(tensor) and torch.equal(tensor.flatten().double(), torch.arange(tensor.numel()).double())


def _message(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"the files have {len(problems)} problems; fix all of them:\n" + "\n".join(
        f"- {problem}" for problem in problems
    )
