"""Golden vectors: npz files in a folder `vectors/`, computed by the official implementation.

The README in `shared/reference` describes each file. Reads are recorded, so that unchecked arrays can be reported.
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
    """The arrays of one file by name, loaded on first access. Records which arrays are read."""

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
            # TypeError: a bare npy array is not a context manager
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
    """The vectors in `reference/vectors/`: `vectors["raft"]` is `raft.npz`, loaded on first access to an array."""

    def __init__(self, reference: Path | None = None) -> None:
        """Open the folder of the vectors.

        Args:
            reference: Folder that holds `vectors/`; None: `../shared/reference` beside the checkout.

        Raises:
            InvalidInput: If the folder does not exist.
        """
        if reference is None and not _BESIDE_CHECKOUT.is_dir():
            raise InvalidInput(f"there are no vectors at {_BESIDE_CHECKOUT}; pass their folder with --vectors")
        self.folder = (reference or _BESIDE_CHECKOUT) / "vectors"
        if not self.folder.is_dir():
            raise InvalidInput(
                f"{self.folder} is not a folder; pass the folder that contains `vectors/` with --vectors"
            )
        self._vectors: dict[str, Vector] = {}

    def __getitem__(self, name: str) -> Vector:
        return self._vectors.setdefault(name, Vector(self.folder / f"{name}.npz"))

    def unread(self) -> list[str]:
        """Return the files, and the arrays of files, that were not read: `extra.npz`, `raft.npz: extra`."""
        found = []
        for path in sorted(self.folder.glob("*.npz")):
            vector = self._vectors.get(path.stem)
            if vector is None:
                found.append(path.name)
            elif vector.read:  # otherwise loading failed, which the table reports
                found += [f"{path.name}: {name}" for name in vector if name not in vector.read]
        return found
