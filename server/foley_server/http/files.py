"""Bounded LRU storage of the studio for videos, recordings and takes, as files in one folder."""

import secrets
import shutil
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from foley.errors import NotFound

VIDEOS, RECORDINGS, TAKES = 16, 16, 128
OWNERS = 4


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
    """LRU container with unguessable names, each item in its own folder: at most `size` items of one owner.

    Beyond `OWNERS` times as many in all, those of the owner with the most items are evicted first.

    Args:
        root: Folder to create.
        kind: Kind of item, for error messages.
        size: Maximum number of items.
    """

    def __init__(self, root: Path, kind: str, size: int) -> None:
        self._root, self._kind, self._size = root, kind, size
        self._items: OrderedDict[str, tuple[str, Item]] = OrderedDict()  # with their owners
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
        return self._items[name][1]

    def allocate(self) -> tuple[str, Path]:
        """Create a name and an empty folder for a new item."""
        name = secrets.token_urlsafe(12)
        folder = self._root / name
        folder.mkdir()
        return name, folder

    def add(self, name: str, item: Item, owner: str) -> None:
        """Add an item of `owner`; evict the least recently used items beyond the limits."""
        self._items[name] = (owner, item)
        while True:
            counts = Counter(owner for owner, _ in self._items.values())
            most, count = counts.most_common(1)[0]
            if count <= self._size and len(self._items) <= OWNERS * self._size:
                return
            self.remove(next(name for name, (owner, _) in self._items.items() if owner == most))

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
