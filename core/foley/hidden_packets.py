"""Packets that a file decodes but does not show, because of its edit list."""

import sys
from array import array
from dataclasses import dataclass

from foley.container import MediaFile, open_media


@dataclass(frozen=True)
class Hidden:
    """Which packets of a video stream are hidden. Packets are counted in decoding order.

    Attributes:
        first_shown: The first packet that is shown.
        last_shown: The last packet that is shown.
        needs_edit_list: Whether shown packets refer to hidden ones at the start.
        needs_encoding: Whether shown packets refer to hidden ones that are not at the start. FFmpeg's muxers write edit
            lists only for the start.
    """

    first_shown: int
    last_shown: int
    needs_edit_list: bool
    needs_encoding: bool

    def is_dropped(self, position: int) -> bool:
        """Return whether a hidden packet is left out of a copy, because no shown packet refers to it."""
        return position > self.last_shown or (position < self.first_shown and not self.needs_edit_list)


_NONE = Hidden(0, sys.maxsize, False, False)


def hidden_packets(file: MediaFile) -> Hidden:
    """Find the hidden packets of the first video stream.

    Raises:
        MediaError: The file is damaged.
    """
    if "mov" not in file.container.format.name:  # of MOV and MP4; other formats have no edit list
        return _NONE
    times, hidden, keyframes = array("q"), bytearray(), bytearray()
    with open_media(file.path, file.limits) as again:
        for packet in again.packets(again.video_stream()):
            if packet.size > 0:
                times.append(packet.pts or 0)
                hidden.append(packet.is_discard)
                keyframes.append(packet.is_keyframe)
    if not any(hidden):
        return _NONE
    first, last = hidden.index(False), hidden.rindex(False)
    start = min(time for time, is_hidden in zip(times, hidden, strict=True) if not is_hidden)
    between = [times[position] for position in range(first, last + 1) if hidden[position]]
    is_independent = keyframes[first] and not between
    return Hidden(first, last, not is_independent, any(time > start for time in between))
