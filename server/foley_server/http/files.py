"""Bounded LRU storage of the studio for videos, recordings and takes, as files in one folder."""

import secrets
import shutil
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from foley.errors import NotFound

VIDEOS, RECORDINGS, TAKES = 16, 16, 128


@dataclass(frozen=True)
class Video:
    """An uploaded video.

    Attributes:
        path: Path of the file.
        duration_s: Duration in seconds.
        samples: Duration in samples at 16 kHz.
    """

    path: Path
    duration_s: float
    samples: int


@dataclass(frozen=True)
class Recording:
    """An uploaded recording, used as an audio prompt or for its envelope."""

    path: Path


@dataclass(frozen=True)
class Take:
    """A generated sound, as a WAV file."""

    path: Path


Item = TypeVar("Item", Video, Recording, Take)


class LruStore(Generic[Item]):
    """LRU container of at most `size` items with unguessable names, each in its own folder.

    Args:
        root: Folder to create.
        kind: Kind of item, for error messages.
        size: Maximum number of items.
    """

    def __init__(self, root: Path, kind: str, size: int) -> None:
        self._root, self._kind, self._size = root, kind, size
        self._items: OrderedDict[str, Item] = OrderedDict()
        root.mkdir(parents=True)

    def __getitem__(self, name: str) -> Item:
        """Return the item `name`, and mark it as most recently used.

        Raises:
            NotFound: There is no such item, or it was evicted.
        """
        try:
            self._items.move_to_end(name)
        except KeyError:
            raise NotFound(f"this {self._kind} is no longer stored; send it again") from None
        return self._items[name]

    def allocate(self) -> tuple[str, Path]:
        """Create a name and an empty folder for a new item."""
        name = secrets.token_urlsafe(12)
        folder = self._root / name
        folder.mkdir()
        return name, folder

    def add(self, name: str, item: Item) -> None:
        """Add an item; evict the least recently used items beyond `size`."""
        self._items[name] = item
        while len(self._items) > self._size:
            oldest, _ = self._items.popitem(last=False)
            self.remove(oldest)

    def remove(self, name: str) -> None:
        """Remove an item and its folder."""
        self._items.pop(name, None)
        shutil.rmtree(self._root / name, ignore_errors=True)


@dataclass
class StudioFiles:
    """The files of the studio.

    Attributes:
        root: Parent folder.
        videos: Uploaded videos.
        recordings: Uploaded recordings.
        takes: Generated takes.
    """

    root: Path
    videos: LruStore[Video] = field(init=False)
    recordings: LruStore[Recording] = field(init=False)
    takes: LruStore[Take] = field(init=False)

    def __post_init__(self) -> None:
        self.videos = LruStore(self.root / "videos", "video", VIDEOS)
        self.recordings = LruStore(self.root / "recordings", "recording", RECORDINGS)
        self.takes = LruStore(self.root / "takes", "take", TAKES)
