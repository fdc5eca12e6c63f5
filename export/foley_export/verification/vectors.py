"""Golden vectors: a folder `vectors/` of npz files, what the official implementation computed.

Its README (`shared/reference`) says what each holds. Reading is counted, so that nothing stays unchecked silently.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from foley.errors import InvalidInput

_BESIDE_CHECKOUT = Path(__file__).resolve().parents[4] / "shared" / "reference"


class Vector(Mapping[str, np.ndarray]):
    """The arrays of one file by name; remembers which were asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: set[str] = set()

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return dict(arrays)
        except FileNotFoundError as error:
            raise InvalidInput(f"the vector {self.path} is missing; copy it again") from error
        except (OSError, ValueError, EOFError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            # TypeError: a bare npy array, which is no context
            raise InvalidInput(f"{self.path} is damaged or not an npz file of plain arrays; copy it again") from error

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise InvalidInput(f"{self.path} has no array {name!r}; copy it again")
        self.read.add(name)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class Vectors:
    """The vectors in `reference/vectors/`: `vectors["raft"]` is its `raft.npz`, read when its arrays are."""

    def __init__(self, reference: Path | None = None) -> None:
        """`reference` is `../shared/reference` beside the checkout by default.

        Raises:
            InvalidInput: there is no such folder.
        """
        if reference is None and not _BESIDE_CHECKOUT.is_dir():
            raise InvalidInput(f"there are no vectors at {_BESIDE_CHECKOUT}: name their folder with --vectors")
        self.folder = (reference or _BESIDE_CHECKOUT) / "vectors"
        if not self.folder.is_dir():
            raise InvalidInput(f"{self.folder} is no folder: give --vectors the folder that holds `vectors/`")
        self._vectors: dict[str, Vector] = {}

    def __getitem__(self, name: str) -> Vector:
        return self._vectors.setdefault(name, Vector(self.folder / f"{name}.npz"))

    def unread(self) -> list[str]:
        """Files, and arrays of files, that nothing has asked for: `extra.npz`, `raft.npz: extra`."""
        found = []
        for path in sorted(self.folder.glob("*.npz")):
            vector = self._vectors.get(path.stem)
            if vector is None:
                found.append(path.name)
            elif vector.read:  # else it could not be read, which is a failure in the table
                found += [f"{path.name}: {name}" for name in vector if name not in vector.read]
        return found
