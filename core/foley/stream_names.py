"""Words for codecs and streams, for messages."""

from typing import Any

from av.stream import Disposition

from foley.track_copy import tags

_CODECS = {
    **{"h263": "H.263", "h264": "H.264", "hevc": "HEVC", "av1": "AV1", "vp8": "VP8", "vp9": "VP9", "mpeg4": "MPEG-4"},
    **{"mpeg1video": "MPEG-1", "mpeg2video": "MPEG-2", "mjpeg": "MJPEG", "gif": "GIF", "png": "PNG", "apng": "APNG"},
    **{"prores": "ProRes", "dnxhd": "DNxHD", "cfhd": "CineForm", "dvvideo": "DV", "ffv1": "FFV1", "theora": "Theora"},
    **{"qtrle": "QuickTime Animation", "rawvideo": "uncompressed video", "aac": "AAC", "mp2": "MP2", "mp3": "MP3"},
    **{"ac3": "AC-3", "eac3": "E-AC-3", "dts": "DTS", "truehd": "TrueHD", "opus": "Opus", "vorbis": "Vorbis"},
    **{"flac": "FLAC", "alac": "ALAC", "wavpack": "WavPack"},
}


def codec_name(stream: Any) -> str:
    """Return the usual name of a stream's codec."""
    codec = str(stream.codec_context.codec.canonical_name)
    return "PCM" if codec.startswith("pcm_") else _CODECS.get(codec, codec)


def described(stream: Any) -> str:
    """Return a few words for a stream, for messages."""
    kind = {"video": "video", "audio": "sound", "subtitle": "subtitle", "data": "data"}.get(stream.type)
    if stream.disposition & Disposition.attached_pic:
        return "the cover"
    if kind is None:
        return f"the attachment {stream.metadata.get('filename', '')}".strip()
    words = tags(stream.metadata)
    details = (words.get(name) for name in ("title", "name", "handler_name", "language"))
    return " ".join([f"the {kind} track", *[f'"{detail}"' for detail in details if detail][:1]])
