"""Packets that a file decodes but does not show, because of its edit list."""

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


def hidden_packets(file: MediaFile) -> Hidden:
    """Find the hidden packets of the first video stream.

    Raises:
        MediaError: The file is damaged.
    """
    stamps: list[tuple[bool, bool, int]] = []
    with open_media(file.path, file.limits) as again:
        for packet in again.packets(again.video_stream()):
            if packet.size > 0:
                stamps.append((packet.is_discard, packet.is_keyframe, packet.pts or 0))
    shown = [position for position, (hidden, _, _) in enumerate(stamps) if not hidden]
    if len(shown) == len(stamps):
        return Hidden(0, len(stamps), False, False)
    first, last = shown[0], shown[-1]
    start = min(stamps[position][2] for position in shown)
    between = [pts for hidden, _, pts in stamps[first : last + 1] if hidden]
    is_independent = stamps[first][1] and not between
    return Hidden(first, last, not is_independent, any(pts > start for pts in between))
