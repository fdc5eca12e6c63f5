"""What a sound file says about its sound."""

import hashlib
from dataclasses import dataclass, field

from foley import __version__
from foley.timecode import DAY_S, Recorded

ORIGINATOR = f"Video-Foley {__version__}"


@dataclass(frozen=True)
class SoundTags:
    """Metadata of a sound file.

    Attributes:
        description: Description for users, in one line.
        recipe: How the sound was made, as JSON in ASCII.
        recorded: When the video was recorded, at whose first frame the sound starts.
    """

    description: str = ""
    recipe: str = ""
    recorded: Recorded = field(default_factory=Recorded)

    @property
    def line(self) -> str:
        """The description without control characters, which XML cannot contain."""
        return "".join(letter if letter.isprintable() else " " for letter in self.description)

    @property
    def reference(self) -> str:
        """Identifier of the sound, 32 characters: the same recipe gives the same one."""
        return hashlib.sha256(self.recipe.encode()).hexdigest()[:32]

    def time_reference(self, rate: int) -> int:
        """Return the number of samples at `rate` Hz from midnight to the first sample."""
        return round(self.recorded.start_s * rate) % (DAY_S * rate)


NO_TAGS = SoundTags()
