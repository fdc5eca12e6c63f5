"""The header of a Broadcast Wave file: `bext` (EBU Tech 3285), RF64 from 4 GiB on (EBU Tech 3306), and iXML.

Neither FFmpeg nor libsndfile writes iXML, which holds the rate of the timecode and the recipe.
"""

import struct
from xml.etree.ElementTree import Element, SubElement, tostring

from foley.sound_format import BitDepth
from foley.sound_tags import ORIGINATOR, SoundTags

_PCM, _FLOAT = 1, 3  # format tags of Microsoft's RIFF WAVE
_WIDTHS: dict[BitDepth, int] = {"16": 2, "24": 3, "32f": 4}  # bytes of a sample
_MAX_UINT32 = 2**32 - 1


def header(samples: int, rate: int, bit_depth: BitDepth, tags: SoundTags) -> bytes:
    """Return everything before the samples of a mono file.

    The file must end with a byte of padding if the size of the samples is odd.

    Args:
        samples: Number of samples.
        rate: Sample rate in Hz.
        bit_depth: Sample format, little-endian.
        tags: Metadata.
    """
    width = _WIDTHS[bit_depth]
    size = samples * width
    code = _FLOAT if bit_depth == "32f" else _PCM
    chunks = _chunk(b"fmt ", struct.pack("<HHIIHH", code, 1, rate, rate * width, width, 8 * width))
    if code == _FLOAT:
        chunks += _chunk(b"fact", struct.pack("<I", min(samples, _MAX_UINT32)))
    chunks += _chunk(b"bext", _bext(rate, width, tags)) + _chunk(b"iXML", _ixml(rate, width, tags))
    total = len(b"WAVE" + chunks) + 8 + size + size % 2
    if total <= _MAX_UINT32:
        return struct.pack("<4sI4s", b"RIFF", total, b"WAVE") + chunks + struct.pack("<4sI", b"data", size)
    ds64 = _chunk(b"ds64", struct.pack("<QQQI", total + 36, size, samples, 0))
    return (
        struct.pack("<4sI4s", b"RF64", _MAX_UINT32, b"WAVE") + ds64 + chunks + struct.pack("<4sI", b"data", _MAX_UINT32)
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk; what is added to an odd size is counted, because libsndfile does not expect padding in RF64."""
    content += (b"\n" if name == b"iXML" else b"\0") * (len(content) % 2)
    return struct.pack("<4sI", name, len(content)) + content


def _bext(rate: int, width: int, tags: SoundTags) -> bytes:
    """Return the content of a `bext` chunk, version 1, without a UMID; its text is ASCII."""
    fields = (tags.line, ORIGINATOR, tags.reference, tags.recorded.date, tags.recorded.time)
    texts = (text.encode("ascii", "replace") for text in fields)
    history = f"A=PCM,F={rate},W={8 * width},M=mono,T={ORIGINATOR}\r\n"
    return struct.pack("<256s32s32s10s8sQH254x", *texts, tags.time_reference(rate), 1) + history.encode()


def _ixml(rate: int, width: int, tags: SoundTags) -> bytes:
    root = Element("BWFXML")
    SubElement(root, "IXML_VERSION").text = "1.61"
    SubElement(root, "NOTE").text = tags.line
    speed = SubElement(root, "SPEED")
    if timecode := tags.recorded.timecode:
        SubElement(speed, "TIMECODE_RATE").text = f"{timecode.rate.numerator}/{timecode.rate.denominator}"
        SubElement(speed, "TIMECODE_FLAG").text = "DF" if timecode.drop_frame else "NDF"
    high, low = divmod(tags.time_reference(rate), 2**32)
    values = {
        "FILE_SAMPLE_RATE": rate,
        "AUDIO_BIT_DEPTH": 8 * width,
        "TIMESTAMP_SAMPLE_RATE": rate,
        "TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI": high,
        "TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO": low,
    }
    for name, value in values.items():
        SubElement(speed, name).text = str(value)
    SubElement(SubElement(root, "FOLEY"), "RECIPE").text = tags.recipe
    return b'<?xml version="1.0" encoding="UTF-8"?>' + tostring(root, encoding="unicode").encode()
