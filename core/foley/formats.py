"""Media formats: which ones FFmpeg may read, and what a file of another format is."""

from collections.abc import Iterator
from typing import BinaryIO

# FFmpeg's demuxers that may read a file. Each is self-contained: it opens no other file, local or remote. Excluded are
#
# - playlists and descriptions, which name other files: hls, dash, concat, imf, sdp, rtsp, webm_dash_manifest, vobsub;
# - recordings in several files: mlv;
# - image sequences (image2) and single images (*_pipe), which have no motion;
# - devices and filters (lavfi, x11grab, alsa), scripts (sbg), and text (subtitles, tty);
# - raw samples (rawvideo, s16le, ...), which have no header;
# - formats of games and of discontinued systems, which nobody records in: each parser can have vulnerabilities.
DEMUXERS = ",".join(
    (
        # cameras, phones, editing, delivery, the web. mov ignores references to other files unless `enable_drefs` is
        # set; mxf reads only essence in the file itself, which is the operational pattern OP1a.
        "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mxf,gxf,dv,mpegts,mpeg,flv,ogg,gif,apng",
        # older recordings, television, surveillance, high-speed cameras, encoders
        "asf,rm,wtv,dhav,cine,nut,ivf,yuv4mpegpipe",
        # elementary streams: the video alone, without time stamps
        "h264,hevc,vvc,obu,av1,mpegvideo,m4v,mjpeg,vc1,dnxhd",
        # sounds
        "wav,w64,aiff,au,caf,flac,mp3,aac,loas,ac3,eac3,dts,dtshd,truehd,amr,ape,wv,tta,mpc,mpc8,dsf,voc,sox",
    )
)

# (offset, first bytes) of containers in DEMUXERS. If such a file cannot be opened, it is damaged.
_READABLE = (
    (4, b"ftyp"),
    (4, b"moov"),
    (0, b"\x1aE\xdf\xa3"),
    (0, b"RIFF"),
    (0, b"RF64"),
    (0, b"GIF8"),
    (0, b"OggS"),
    (0, b"fLaC"),
    (0, b"\x06\x0e+4\x02\x05\x01\x01\r\x01\x02"),  # MXF
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF
    (0, b"FLV\x01"),
    (0, b"YUV4MPEG2"),
    (0, b"DKIF"),
)

_IMAGE = "a video has several pictures: export one"
_ARCHIVE = "extract the video first"
_PLAYLIST = "download or copy the video that it names"
_RAW = "export it as MOV or MP4 with the software of the camera's maker"

# (offset, first bytes, what the file is, what to do) of other files that people give.
_UNREADABLE = (
    (8, b"WEBP", "a WebP image", _IMAGE),
    (0, b"\xff\xd8\xff", "a JPEG image", _IMAGE),
    (0, b"\x89PNG", "a PNG image", _IMAGE),
    (0, b"8BPS", "a Photoshop image", _IMAGE),
    (0, b"II*\0", "a TIFF image or a camera's raw image", _IMAGE),
    (0, b"MM\0*", "a TIFF image or a camera's raw image", _IMAGE),
    (4, b"ftypheic", "an HEIC image", _IMAGE),
    (4, b"ftypheix", "an HEIC image", _IMAGE),
    (4, b"ftypmif1", "an HEIC or AVIF image", _IMAGE),
    (4, b"ftypavif", "an AVIF image", _IMAGE),
    (4, b"ftypcrx ", "Canon RAW", _RAW),
    (4, b"RED1", "REDCODE RAW", _RAW),
    (4, b"RED2", "REDCODE RAW", _RAW),
    (0, b"ARRI", "ARRIRAW", _RAW),
    (0, b"%PDF", "a PDF document", "give the video itself"),
    (0, b"PK\x03\x04", "a ZIP archive", _ARCHIVE),
    (0, b"Rar!", "a RAR archive", _ARCHIVE),
    (0, b"7z\xbc\xaf", "a 7z archive", _ARCHIVE),
    (0, b"\x1f\x8b", "a gzip archive", _ARCHIVE),
    (0, b"MThd", "a MIDI file, which has notes but no sound", "render it to WAV"),
    (0, b"\0\x05\x16\x07", "macOS metadata of another file", "give the file without `._` before its name"),
    (0, b"FWS", "a Flash program", "record it as MP4"),
    (0, b"CWS", "a Flash program", "record it as MP4"),
    (0, b"#EXTM3U", "a playlist", _PLAYLIST),
    (0, b"ffconcat", "a playlist", _PLAYLIST),
    (0, b"[playlist]", "a playlist", _PLAYLIST),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "run `git lfs pull` to get the file itself"),
    (0, b"<!doctype html", "a web page", "the address needs a login or has moved: download the video itself"),
    (0, b"<html", "a web page", "the address needs a login or has moved: download the video itself"),
    (0, b"<?xml", "an XML file", "give the video itself"),
)

_BLACKMAGIC_RAW = {"brxq", "brhq", "brst", "brlt", "brvn"}  # its sample entries in MOV

_MAX_BOXES = 10_000

HEAD = 4096  # bytes of the start of a file that the functions below need


def is_readable(head: bytes) -> bool:
    """Return whether a file that starts with `head` has one of the formats of `DEMUXERS`."""
    return any(head.startswith(magic, offset) for offset, magic in _READABLE)


def unreadable(head: bytes) -> str | None:
    """Return what a file that FFmpeg must not or cannot read is, and what to do; None if that is not known.

    Args:
        head: The first `HEAD` bytes of the file.
    """
    if head[8:16] == b"WEBPVP8X" and any(flags & 2 for flags in head[20:21]):  # the flag of an animation
        return "is an animated WebP, which cannot be decoded; convert it to GIF, APNG or MP4"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for offset, magic, what, advice in _UNREADABLE:
        if head.startswith(magic, offset) or (magic[:1] in b"<#[v" and start.startswith(magic.lower())):
            return f"is {what}, not a video or a sound; {advice}"
    if head and not head.strip(b"\0"):
        return "contains only zeros, so copying or downloading it failed; copy or download it again"
    if _is_text(head):
        return "is a text file, not a video or a sound; give the video itself"
    return None


def undecodable(names: set[str], kind: str) -> str:
    """Return what is wrong with a stream that has no decoder, and what to do.

    Args:
        names: The `sample_entries` of the file.
        kind: "video" or "audio".
    """
    if names & _BLACKMAGIC_RAW:
        return f"is Blackmagic RAW; {_RAW}"
    named = f", {min(names)!r}," if len(names) == 1 else ""  # of several, any could be the one
    return f"uses a {kind} codec{named} that cannot be decoded; convert it to {'H.264' if kind == 'video' else 'WAV'}"


def sample_entries(file: BinaryIO) -> set[str]:
    """Return the four-character codes of the codecs of a MOV or MP4 file; none for another or a damaged file."""
    spans, reads = [(0, file.seek(0, 2))], iter(range(_MAX_BOXES))
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        spans = [inner for span in spans for inner in _boxes(file, *span, name, reads)]
    names = set()
    for start, _ in spans:
        file.seek(start + 12)
        names.add(file.read(4).decode("latin-1").strip())
    return names


def segment_end(head: bytes) -> int | None:
    """Return where the segment of a Matroska file ends, its number of bytes if it is complete; None if not declared.

    Args:
        head: The first `HEAD` bytes of the file.
    """
    position = 4
    size, position = _vint(head, position)
    position += size or 0
    if head[position : position + 4] != b"\x18\x53\x80\x67":
        return None
    size, position = _vint(head, position + 4)
    return None if size is None else position + size


def _boxes(file: BinaryIO, start: int, end: int, name: bytes, reads: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the content of the boxes called `name` between two positions of a MOV or MP4 file.

    Each box takes an item of `reads`, which ends the search in a hostile file.
    """
    for _ in reads:
        file.seek(start)
        head = file.read(16)
        size, body = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, body = int.from_bytes(head[8:], "big"), 16
        stop = end if size == 0 else start + size
        if len(head) < 8 or stop < start + body or stop > end:
            return
        if head[4:8] == name:
            yield start + body, stop
        start = stop


def _vint(data: bytes, position: int) -> tuple[int | None, int]:
    """Return an integer of EBML and the position after it; None for the reserved value that means unknown."""
    if position >= len(data) or data[position] == 0:
        return None, position
    length = 9 - data[position].bit_length()
    value = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), position + length


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character is cut at the end
            return False
        text = head[: error.start].decode()
    return bool(text) and all(character.isprintable() or character.isspace() for character in text)
