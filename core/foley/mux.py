"""Writes results: a video with its sound.

The video stream is copied without re-encoding if the output format supports its codec. For an atomic write, pass the
temporary path from `foley.output.replacing`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
from av.container import OutputContainer
from av.stream import Disposition
from numpy.typing import NDArray

from foley.audio import DecodedAudio, Samples, fit, layout_of, read_sound, resample
from foley.container import DEFAULT_LIMITS, Limits, MediaFile, open_media
from foley.errors import SettingError
from foley.media import Frames, VideoInfo, read_frames, to_rgb
from foley.options import SourceAudio
from foley.output import check_destination
from foley.sound_file import check_waveform
from foley.sound_format import DEFAULT_SOUND, SoundFormat

_SECONDARY = Disposition(0)  # of a track that players do not select by default
_CLOCK_HZ = 90_000  # 1 / time base of encoded frames; a multiple of the usual frame rates


@dataclass(frozen=True)
class _Format:
    """One output format.

    Attributes:
        muxer: FFmpeg's name of the muxer.
        video_encoder: FFmpeg's name of the video encoder.
        audio_encoder: FFmpeg's name of the audio encoder.
        video_codecs: Video codecs that are copied, those that players support in this format; None: all that FFmpeg's
            muxer supports.
        audio_codecs: Audio codecs that are copied, likewise.
    """

    muxer: str
    video_encoder: str
    audio_encoder: str
    video_codecs: frozenset[str] | None
    audio_codecs: frozenset[str] | None


_MP4 = _Format(
    "mp4",
    "libx264",
    "aac",
    frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg"}),
    frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}),
)
_MOV = _Format(
    "mov",
    "libx264",
    "aac",
    frozenset({"h264", "hevc", "mpeg4", "mjpeg", "prores", "dnxhd", "qtrle"}),
    frozenset({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le"}),
)
_WEBM = _Format("webm", "libvpx-vp9", "libopus", frozenset({"vp8", "vp9", "av1"}), frozenset({"opus", "vorbis"}))
_MKV = _Format("matroska", "libx264", "flac", None, None)
_FORMATS = {".mp4": _MP4, ".m4v": _MP4, ".mov": _MOV, ".mkv": _MKV, ".webm": _WEBM}

VIDEO_EXTENSIONS = tuple(_FORMATS)

_ENCODER_OPTIONS = {
    "libx264": {"crf": "18"},
    "libvpx-vp9": {"crf": "30", "b": "0", "cpu-used": "4", "row-mt": "1"},
}


@dataclass(frozen=True)
class Muxed:
    """The result of `write_video`.

    Attributes:
        video_codec: FFmpeg's name of the video codec in the output.
        video_copied: Whether the video stream was copied; False: it was re-encoded.
    """

    video_codec: str
    video_copied: bool


def write_video(
    source: Path,
    waveform: Samples,
    rate: int,
    destination: Path,
    source_audio: SourceAudio = "replace",
    comment: str = "",
    limits: Limits = DEFAULT_LIMITS,
    sound: SoundFormat = DEFAULT_SOUND,
) -> Muxed:
    """Write the video of `source` with a new sound that starts at its first frame.

    The sound is encoded as AAC in .mp4, .m4v and .mov, as FLAC in .mkv, and as Opus in .webm. The video stream is
    re-encoded, upright, as H.264 (VP9 in WebM) if the output format does not support its codec (GIF, or H.264 in WebM)
    or if the source has no PTS (AVI, MPEG-PS).

    Args:
        source: The video.
        waveform: The new sound, float32 [n] in [-1, 1].
        rate: Sample rate of `waveform` in Hz.
        destination: The output file; its extension selects the format.
        source_audio: What happens to the source's audio track, if it has one. "replace": it is dropped. "mix": it is
            added to the new sound, at the source's sample rate and with the length of the new sound; the sum is
            scaled down if it would clip. "keep": it becomes a second track.
        comment: Comment in the file's metadata.
        limits: Limits on the source.
        sound: Sample format of the new sound; its rate is used unless it is mixed.

    Raises:
        MediaError: The source cannot be read.
        OutputError: The destination or the waveform is invalid.
        SettingError: `source_audio` is unknown.
    """
    if source_audio not in get_args(SourceAudio):
        raise SettingError(f"source_audio is {source_audio!r}: use one of {', '.join(get_args(SourceAudio))}")
    check_destination(destination, VIDEO_EXTENSIONS, source)
    check_waveform(waveform)
    video = read_frames(source, limits)
    info = video.info
    samples = waveform[None]
    if source_audio == "mix" and info.has_audio:
        own = read_sound(source, limits)
        samples, rate = _mixed(own, samples, rate, info.start_s), own.rate
    elif sound.rate:
        samples, rate = resample(samples, rate, sound.rate), sound.rate

    kind = _FORMATS[destination.suffix.lower()]
    with ExitStack() as stack:
        file = stack.enter_context(open_media(source, limits))
        # `file:` prevents a colon in the name from being parsed as a protocol. The index goes first, so that browsers
        # can start playback before the download is complete.
        options = {"movflags": "+faststart"} if kind in (_MP4, _MOV) else {}
        output = stack.enter_context(av.open(f"file:{destination}", "w", format=kind.muxer, options=options))
        output.metadata["comment"] = comment
        # The output starts at 0 (broadcast recordings do not): all tracks are shifted by the same time.
        shift_s = max(0.0, min((file.container.start_time or 0) / av.time_base, info.start_s))

        stream = file.video_stream()
        copied = file.has_pts and _supports(output, kind.video_codecs, info.codec)
        if copied:
            target = output.add_stream_from_template(stream)
            tracks = [_copied(file, stream, target, shift_s)]
        else:
            target = _video_encoder(output, kind.video_encoder, info)
            tracks = [_encoded_video(target, video, shift_s)]
        tracks.append(
            _encoded_audio(output, kind.audio_encoder, samples, rate, info.start_s - shift_s, Disposition.default)
        )
        if source_audio == "keep" and info.has_audio:
            again = stack.enter_context(open_media(source, limits))  # the tracks are read at different positions
            tracks.append(_source_audio(output, kind, again, shift_s))
        for packet in merge(*tracks, key=_decoding_time_s):  # interleaved, or the muxer buffers a whole track
            output.mux(packet)
    return Muxed(target.codec_context.codec.canonical_name, copied)


def _supports(output: OutputContainer, codecs: frozenset[str] | None, codec: str) -> bool:
    return codec in (output.supported_codecs if codecs is None else codecs)


def _mixed(own: DecodedAudio, samples: Samples, rate: int, video_start_s: float) -> Samples:
    """Mix the source's audio and the new sound, aligned at the first video frame.

    Returns:
        The mix, float32 [channels of the source, n], at the sample rate of the source.
    """
    new = resample(samples, rate, own.rate)
    mix = fit(own.from_time(video_start_s), new.shape[1]) + new
    return mix / max(1.0, float(np.abs(mix).max()))


def _copied(file: MediaFile, stream: Any, target: Any, shift_s: float) -> Iterator[Any]:
    """Yield the packets of one stream unchanged, except that their time stamps are `shift_s` earlier."""
    shift = round(shift_s / stream.time_base)
    for packet in file.packets(stream):
        if packet.size > 0:
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            packet.stream = target
            yield packet


def _video_encoder(output: OutputContainer, name: str, info: VideoInfo) -> Any:
    stream: Any = output.add_stream(
        name, rate=Fraction(info.fps).limit_denominator(1001), options=_ENCODER_OPTIONS[name]
    )
    # 4:2:0 requires even sizes: an odd row or column is cut off, or duplicated if it is the only one.
    stream.width, stream.height = max(2, info.width // 2 * 2), max(2, info.height // 2 * 2)
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, _CLOCK_HZ)
    return stream


def _encoded_video(stream: Any, video: Frames, shift_s: float) -> Iterator[Any]:
    """Decode the source's video and re-encode it upright, keeping the time of each frame."""
    for frame, from_s, until_s in video.source_frames():
        if from_s == until_s:
            continue  # never shown, and encoders refuse duplicate PTS
        image = to_rgb(frame, video.info.rotation)[: stream.height, : stream.width]
        doubled = [(0, stream.height - image.shape[0]), (0, stream.width - image.shape[1]), (0, 0)]
        encoded = av.VideoFrame.from_ndarray(np.pad(image, doubled, mode="edge"), format="rgb24")
        encoded.time_base = Fraction(1, _CLOCK_HZ)
        encoded.pts = round((from_s + video.info.start_s - shift_s) * _CLOCK_HZ)
        encoded.duration = round((until_s - from_s) * _CLOCK_HZ)
        yield from stream.encode(encoded)
    yield from stream.encode(None)


def _source_audio(output: OutputContainer, kind: _Format, file: MediaFile, shift_s: float) -> Iterator[Any]:
    """Yield the packets of the source's audio track: copied if the output format supports the codec, else encoded."""
    stream = file.audio_stream()
    if not _supports(output, kind.audio_codecs, stream.codec_context.codec.canonical_name):
        own = read_sound(file.path, file.limits)
        return _encoded_audio(output, kind.audio_encoder, own.samples, own.rate, own.start_s - shift_s, _SECONDARY)
    target: Any = output.add_stream_from_template(stream)
    target.disposition = _SECONDARY
    return _copied(file, stream, target, shift_s)


def _encoded_audio(
    output: OutputContainer, encoder: str, samples: Samples, rate: int, start_s: float, disposition: Disposition
) -> Iterator[Any]:
    """Add a track for float32 [channels, n] that starts at `start_s`; its packets are encoded lazily."""
    allowed = av.codec.Codec(encoder, "w").audio_rates
    if allowed and rate not in allowed:
        new_rate = min((r for r in allowed if r > rate), default=max(allowed))
        samples, rate = resample(samples, rate, new_rate), new_rate
    stream: Any = output.add_stream(encoder, rate=rate, layout=layout_of(samples))
    stream.disposition = disposition
    return _audio_packets(stream, np.clip(samples, -1, 1), rate, round(start_s * rate))


def _audio_packets(stream: Any, samples: Samples, rate: int, start: int) -> Iterator[Any]:
    for offset in range(0, samples.shape[1], rate):
        block: NDArray[np.float32] = np.ascontiguousarray(samples[:, offset : offset + rate])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout_of(samples))
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start + offset
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _decoding_time_s(packet: Any) -> float:
    return float((packet.pts if packet.dts is None else packet.dts) * packet.time_base)
