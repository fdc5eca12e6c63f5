"""The video formats that are written, and what each of them can hold."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import av
from av.container import InputContainer, OutputContainer


@dataclass(frozen=True)
class OutputFormat:
    """A video format.

    Attributes:
        muxer: FFmpeg's name of the muxer.
        options: Options of the muxer.
        family: A word in FFmpeg's name of the demuxer.
        video_encoder: Encoder of video that cannot be copied.
        hdr_encoder: The same for PQ and HLG, with 10 bits.
        alpha_encoder: The same for video with transparency, and its pixel format; None: it has no transparency.
        audio_encoder: Encoder of sound.
        subtitle_encoder: Encoder of text subtitles that cannot be copied.
        video_codecs: Video codecs that players support in this format; None: all that the muxer supports.
        audio_codecs: Audio codecs, likewise.
    """

    muxer: str
    options: dict[str, str]
    family: str
    video_encoder: str
    hdr_encoder: str
    alpha_encoder: tuple[str, str] | None
    audio_encoder: str
    subtitle_encoder: str
    video_codecs: frozenset[str] | None
    audio_codecs: frozenset[str] | None

    @property
    def is_quicktime(self) -> bool:
        """Whether the format is MP4 or MOV."""
        return self.family == "mov"

    def plays(self, kind: str, codec: str, container: InputContainer) -> bool:
        """Return whether a codec is usual in this format, or was so in a source of the same format.

        Args:
            kind: "video" or "audio".
            codec: FFmpeg's name of the codec.
            container: The source.
        """
        codecs = self.video_codecs if kind == "video" else self.audio_codecs
        is_quicktime = container.metadata.get("major_brand", "qt").strip() == "qt"
        is_same = self.muxer in container.format.name.split(",") and not (self.muxer == "mp4" and is_quicktime)
        return codecs is None or codec in codecs or is_same

    def holds(self, add: Callable[[OutputContainer], object]) -> bool:
        """Return whether the muxer accepts a stream: whether it writes a header after `add` has added the stream."""
        options = {name: value for name, value in self.options.items() if name != "movflags"}  # which need a file
        with BytesIO() as file, av.open(file, "w", format=self.muxer, container_options=options) as output:
            try:
                add(output)
                output.start_encoding()
            except (av.FFmpegError, ValueError, NotImplementedError):
                return False
            return True


# The index goes first, so that browsers can start playback before the download is complete. FFmpeg counts Dolby Vision
# and the projection of 360-degree video as unofficial.
_MP4_OPTIONS = {"movflags": "+faststart", "strict": "unofficial", "movie_timescale": "90000"}
_MOV_OPTIONS = {**_MP4_OPTIONS, "movflags": "+faststart+use_metadata_tags"}  # for tags in MP4 see `foley.mp4_tags`

_MP4 = OutputFormat(
    "mp4",
    _MP4_OPTIONS,
    "mov",
    "libx264",
    "libx265",
    None,
    "aac",
    "mov_text",
    frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg"}),
    frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}),
)
_MOV = OutputFormat(
    "mov",
    _MOV_OPTIONS,
    "mov",
    "libx264",
    "libx265",
    ("prores_ks", "yuva444p10le"),
    "aac",
    "mov_text",
    frozenset(
        {"h264", "hevc", "mpeg4", "mpeg2video", "mjpeg", "jpeg2000", "h263", "svq3", "cinepak"}
        | {"prores", "dnxhd", "cfhd", "dvvideo", "hap", "dxv", "qtrle", "png", "v210", "v410", "r210"}
    ),
    frozenset(
        {"aac", "mp3", "ac3", "eac3", "alac"}
        | {"pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be"}
    ),
)
_WEBM = OutputFormat(
    "webm",
    {},
    "matroska",
    "libvpx-vp9",
    "libsvtav1",
    ("libvpx-vp9", "yuva420p"),
    "libopus",
    "webvtt",
    frozenset({"vp8", "vp9", "av1"}),
    frozenset({"opus", "vorbis"}),
)
_MKV = OutputFormat(
    "matroska",
    {},
    "matroska",
    "libx264",
    "libx265",
    ("libvpx-vp9", "yuva420p"),
    "flac",
    "subrip",
    None,
    None,
)
FORMATS = {".mp4": _MP4, ".m4v": _MP4, ".mov": _MOV, ".mkv": _MKV, ".webm": _WEBM}
VIDEO_EXTENSIONS = tuple(FORMATS)
