"""What a studio has at hand: videos, recordings and takes, as files in one folder, the oldest making room."""

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
        samples: of a sound at 16 kHz that is as long.
    """

    path: Path
    duration_s: float
    samples: int


@dataclass(frozen=True)
class Recording:
    """An uploaded sound: a timbre to be like, or a loudness to follow."""

    path: Path


@dataclass(frozen=True)
class Take:
    """A sound that was made, as WAV."""

    path: Path


Item = TypeVar("Item", Video, Recording, Take)


class Shelf(Generic[Item]):
    """At most `size` things of a kind, by names that nobody guesses, in a folder each."""

    def __init__(self, root: Path, what: str, size: int) -> None:
        self._root, self._what, self._size = root, what, size
        self._items: OrderedDict[str, Item] = OrderedDict()
        root.mkdir(parents=True)

    def __getitem__(self, name: str) -> Item:
        """The thing called `name`, which is used now and goes last. Raises NotFound."""
        try:
            self._items.move_to_end(name)
        except KeyError:
            raise NotFound(f"this {self._what} is not here any more; send it again") from None
        return self._items[name]

    def room(self) -> tuple[str, Path]:
        """A new name, and an empty folder for what will have it."""
        name = secrets.token_urlsafe(12)
        folder = self._root / name
        folder.mkdir()
        return name, folder

    def put(self, name: str, item: Item) -> None:
        """Keep it; the one that was used longest ago goes, where there are too many."""
        self._items[name] = item
        while len(self._items) > self._size:
            oldest, _ = self._items.popitem(last=False)
            self.drop(oldest)

    def drop(self, name: str) -> None:
        """Remove what lies in its folder."""
        self._items.pop(name, None)
        shutil.rmtree(self._root / name, ignore_errors=True)


@dataclass
class Shelves:
    """All that a studio has at hand, below `root`."""

    root: Path
    videos: Shelf[Video] = field(init=False)
    recordings: Shelf[Recording] = field(init=False)
    takes: Shelf[Take] = field(init=False)

    def __post_init__(self) -> None:
        self.videos = Shelf(self.root / "videos", "video", VIDEOS)
        self.recordings = Shelf(self.root / "recordings", "recording", RECORDINGS)
        self.takes = Shelf(self.root / "takes", "take", TAKES)
