"""Names of results that are in use, so that no two rows write the same file."""

import os
import posixpath
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from foley.errors import SettingError


class OutputNames:
    """Output names in use, compared after case folding and Unicode normalisation, as some file systems do.

    Args:
        folder: The output folder, whose symbolic links are followed; None: a bucket, or names only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._root = os.path.realpath(folder) if folder and folder.is_dir() else ""
        self._targets = {"": self._root}  # folder below the output folder -> where it is
        self._files: dict[str, str] = {}  # folded name -> row with this output
        self._folders: dict[str, str] = {}  # folded name -> a row with an output in this folder

    def owner(self, output: str) -> str | None:
        """Return a row that uses this name for its output or for a folder, if any."""
        name = self._folded(output)
        return self._files.get(name) or self._folders.get(name)

    def need_folders(self, output: str, row: str) -> None:
        """Reserve the parent folders of `output`, so that no output gets their names."""
        for folder in _parents(self._folded(output)):
            self._folders.setdefault(folder, row)

    def add(self, output: str, row: str) -> None:
        """Reserve an output name for a row.

        Raises:
            SettingError: Another row uses the name.
        """
        name = self._folded(output)
        parents = list(_parents(name))
        taken = next((self._files[parent] for parent in parents if parent in self._files), None)
        if owner := self._files.get(name) or self._folders.get(name) or taken:
            raise SettingError(f"output: {output!r} is also the output of {owner}; use another name")
        self._files[name] = row
        for folder in parents:
            self._folders.setdefault(folder, row)

    def _folded(self, name: str) -> str:
        folder, base = posixpath.split(name)
        if folder not in self._targets:
            self._targets[folder] = os.path.realpath(posixpath.join(self._root, folder)) if self._root else folder
        target = posixpath.join(self._targets[folder], base)
        if self._root and posixpath.islink(target):
            target = os.path.realpath(target)
        return unicodedata.normalize("NFC", unicodedata.normalize("NFD", target).casefold())


def _parents(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name).rstrip("/"):
        yield name
