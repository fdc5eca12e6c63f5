"""Writes a video with a new sound: the source's streams and tags are copied, and only encoded again where they must be.

For an atomic write, pass the temporary path from `foley.output.replacing`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from typing import Any, get_args

import av
from av.stream import Disposition

from foley.audio import Samples, resample, resampled
from foley.container import DEFAULT_LIMITS, Limits, MediaFile, open_media
from foley.errors import SettingError
from foley.hidden_packets import Hidden, hidden_packets
from foley.lost_tags import Tags, lost_tags
from foley.matroska import set_aspect
from foley.media import read_frames
from foley.mp4_tags import ExtraTags
from foley.options import SourceAudio
from foley.output import check_destination
from foley.output_format import FORMATS, VIDEO_EXTENSIONS, OutputFormat
from foley.sound_file import check_waveform
from foley.sound_format import DEFAULT_SOUND, SoundFormat
from foley.sound_track import EncodedSound, SourceSound, mixed
from foley.track_copy import (
    Convert,
    add_copy,
    add_cover,
    add_subtitle,
    aspect_of,
    copier,
    is_chapter_track,
    set_tags,
    tags,
)
from foley.video_encoding import EncodedVideo

__all__ = ["VIDEO_EXTENSIONS", "Muxed", "write_video"]

RECIPE_TAG = "foley_recipe"
_SOUND_TITLE = "Foley"  # of the new sound beside other tracks
_NAMES = {
    "h264": "H.264",
    "hevc": "HEVC",
    "av1": "AV1",
    "vp9": "VP9",
    "prores": "ProRes",
    "aac": "AAC",
    "opus": "Opus",
    "flac": "FLAC",
}


@dataclass(frozen=True)
class Muxed:
    """The result of `write_video`.

    Attributes:
        video_codec: FFmpeg's name of the video codec in the output.
        video_copied: Whether the video stream was copied; False: it was encoded again.
        notes: What is not as in the source, and why; one sentence each.
    """

    video_codec: str
    video_copied: bool
    notes: tuple[str, ...] = ()


def write_video(
    source: Path,
    waveform: Samples,
    rate: int,
    destination: Path,
    source_audio: SourceAudio = "replace",
    recipe: str = "",
    limits: Limits = DEFAULT_LIMITS,
    sound: SoundFormat = DEFAULT_SOUND,
) -> Muxed:
    """Write the video of `source` with a new sound that starts at its first frame.

    All streams, tags and chapters of the source are copied if the output format can hold them; docs/formats.md lists
    what each format holds. The new sound is the first sound track and the default one: AAC in .mp4, .m4v and .mov,
    FLAC in .mkv, Opus in .webm; with a bit depth of 24 or 32f, PCM in .mov.

    Args:
        source: The video.
        waveform: The new sound, float32 [n] in [-1, 1].
        rate: Sample rate of `waveform` in Hz.
        destination: The output file; its extension selects the format.
        source_audio: What happens to the sound of the source, if it has any. "replace": it is left out. "mix": its
            first track is added to the new sound, with the track's sample rate and channels and the length of the new
            sound; the sum is scaled down if it would clip; the other tracks are kept. "keep": all tracks are kept.
        recipe: How the sound was made, for the tag `foley_recipe`.
        limits: Limits on the source.
        sound: Sample format of the new sound's track. A mix has the sample rate of the source.

    Raises:
        MediaError: The source cannot be read.
        OutputError: The destination or the waveform is invalid.
        SettingError: `source_audio` is unknown.
    """
    if source_audio not in get_args(SourceAudio):
        raise SettingError(f"source_audio is {source_audio!r}: use one of {', '.join(get_args(SourceAudio))}")
    check_destination(destination, VIDEO_EXTENSIONS, source)
    check_waveform(waveform)
    kind = FORMATS[destination.suffix.lower()]
    with ExitStack() as stack:
        file = stack.enter_context(open_media(source, limits))
        # `file:` prevents a colon in the name from being parsed as a protocol.
        output = stack.enter_context(
            av.open(f"file:{destination}", "w", format=kind.muxer, container_options=kind.options)
        )
        delivery = _Delivery(file, output, kind, destination.suffix.lower())
        delivery.add_video()
        delivery.add_sound(waveform, rate, sound, mix=source_audio == "mix")
        if source_audio != "replace":
            delivery.add_sound_tracks(skip_first=source_audio == "mix")
        delivery.add_other_tracks()
        delivery.add_tags(recipe)
        for packet in merge(delivery.copied_packets(), *delivery.encoded, key=_decoding_time_s):
            output.mux(packet)
    delivery.finish(destination)
    return Muxed(delivery.video_codec, delivery.video_copied, tuple(delivery.notes))


class _Delivery:
    """The streams of an output file that is being written.

    Args:
        file: The source.
        output: The output, without a header yet.
        kind: Its format.
        extension: Its extension, for messages.

    Attributes:
        encoded: Packets of each stream that is encoded.
        notes: What is not as in the source, and why; one sentence each.
        aspect: Sample aspect ratio of the video; None: square.
        video_codec: FFmpeg's name of the video codec.
        video_copied: Whether the video is copied.
    """

    def __init__(self, file: MediaFile, output: Any, kind: OutputFormat, extension: str) -> None:
        self._file, self._output, self._kind, self._extension = file, output, kind, extension
        self._video = read_frames(file.path, file.limits)
        # The output starts at 0 (broadcast recordings do not): all tracks are shifted by the same time.
        start_s = (file.container.start_time or 0) / av.time_base
        self._shift_s = max(0.0, min(start_s, self._video.info.start_s))
        self._convert: dict[int, Convert] = {}  # by the index of the stream in the source
        self.encoded: list[Iterator[Any]] = []
        self.notes: list[str] = []

    def add_video(self) -> None:
        """Add the first video stream: copied if possible, else encoded again."""
        stream = self._file.video_stream()
        hidden = hidden_packets(self._file)
        self.aspect = aspect_of(stream)
        reason, copy = self._why_not_copied(stream, hidden), None
        if reason is None:
            copy = add_copy(self._output, self._kind, stream)
            reason = None if copy else self._cannot_hold(stream)
        self.video_copied = copy is not None
        if copy:
            self._copy_timecode(copy)
            self._convert[stream.index] = copier(self._file, copy, self._shift_s, hidden)
        else:
            encoded = EncodedVideo(self._output, self._kind, self._video, stream, self._shift_s)
            copy, self.aspect = encoded.stream, encoded.aspect
            set_tags(copy, self._kind, {k: v for k, v in stream.metadata.items() if k.lower() != "alpha_mode"})
            self._copy_timecode(copy)
            self.encoded.append(encoded.packets())
            changes = ", ".join(["", *encoded.changes])
            codec = copy.codec_context.codec.canonical_name
            self.notes.append(f"the picture is encoded again as {_named(codec)}{changes}: {reason}")
        had_alpha = stream.metadata.get("alpha_mode") == "1"
        if had_alpha and (self._kind.family != "matroska" or not self.video_copied):
            self.notes.append("the transparency of the picture is lost")
        self.video_codec = copy.codec_context.codec.canonical_name

    def _why_not_copied(self, stream: Any, hidden: Hidden) -> str | None:
        codec = stream.codec_context.codec.canonical_name
        if not self._kind.plays("video", codec, self._file.container):
            return self._cannot_hold(stream)
        if not self._file.has_pts and stream.codec_context.has_b_frames:
            return "its frames have no presentation times"
        if hidden.needs_encoding or (hidden.needs_edit_list and not self._kind.is_quicktime):
            return f"it shows a part of the recording, and {self._extension} has no edit list for that"
        return None

    def _cannot_hold(self, stream: Any) -> str:
        return f"{self._extension} does not hold {_named(stream.codec_context.codec.canonical_name)}"

    def _copy_timecode(self, copy: Any) -> None:
        """Set the start timecode, from which MOV and MP4 get a timecode track."""
        for stream in self._file.container.streams:
            if timecode := stream.metadata.get("timecode"):
                copy.metadata.setdefault("timecode", timecode)

    def add_sound(self, waveform: Samples, rate: int, form: SoundFormat, mix: bool) -> None:
        """Add the new sound, mixed with the first track of the source if `mix`."""
        own = next(iter(self._file.container.streams.audio), None)
        start_s = self._video.info.start_s
        if mix and own is not None:
            source = SourceSound(self._file.path, self._file.limits, own.index)
            track = EncodedSound(self._output, self._kind, source.rate, source.layout, form.bit_depth)
            set_tags(track.stream, self._kind, own.metadata)
            blocks = mixed(source, resample(waveform[None], rate, track.rate), track.rate, start_s)
        else:
            track = EncodedSound(self._output, self._kind, form.rate or rate, "mono", form.bit_depth)
            blocks = (block[None] for block in resampled(waveform, rate, track.rate))
        if form.bit_depth != "16" and track.is_lossy:
            codec = _named(track.stream.codec_context.codec.canonical_name)
            self.notes.append(
                f"the sound is {codec}, which has no bit depth; use .mov or .mkv for {form.bit_depth} bits"
            )
        track.stream.disposition = Disposition.default
        self.encoded.append(track.packets(blocks, start_s - self._shift_s))
        self._sound = track

    def add_sound_tracks(self, skip_first: bool) -> None:
        """Add the sound tracks of the source: copied if possible, else encoded again."""
        streams = self._file.container.streams.audio[1 if skip_first else 0 :]
        if streams and not skip_first:
            self._sound.stream.metadata["title"] = _SOUND_TITLE
        for stream in streams:
            context = stream.codec_context
            if context is None:
                self._leave_out(stream)
                continue
            codec = context.codec.canonical_name
            plays = self._kind.plays("audio", codec, self._file.container)
            copy = add_copy(self._output, self._kind, stream) if plays else None
            if copy:
                self._convert[stream.index] = copier(self._file, copy, self._shift_s)
            else:
                own = SourceSound(self._file.path, self._file.limits, stream.index)
                track = EncodedSound(self._output, self._kind, own.rate, own.layout)
                copy = track.stream
                set_tags(copy, self._kind, stream.metadata)
                self.encoded.append(track.packets(own.blocks(track.rate), own.start_s - self._shift_s))
                name = _named(copy.codec_context.codec.canonical_name)
                self.notes.append(f"{_described(stream)} is encoded again as {name}: {self._cannot_hold(stream)}")
            copy.disposition = stream.disposition & ~Disposition.default

    def add_other_tracks(self) -> None:
        """Add further video streams, subtitles, cover art, data and attachments."""
        first = self._file.video_stream()
        for stream in self._file.container.streams:
            if stream is first or stream.type == "audio":
                continue
            if "timecode" in stream.metadata and stream.type == "data":
                continue  # written from the tag
            if is_chapter_track(self._file.container, stream):
                continue  # written from the list of chapters
            if convert := self._other(stream):
                self._convert[stream.index] = convert
            else:
                self._leave_out(stream)

    def _other(self, stream: Any) -> Convert | None:
        if stream.type == "video" and stream.disposition & Disposition.attached_pic:
            return add_cover(self._output, self._kind, self._file, stream)
        if stream.type == "subtitle":
            return add_subtitle(self._output, self._kind, self._file, stream, self._shift_s)
        if stream.type == "attachment":
            if self._kind.muxer != "matroska":
                return None
            self._output.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
            return lambda packet: []
        copy = add_copy(self._output, self._kind, stream)
        return copier(self._file, copy, self._shift_s) if copy else None

    def _leave_out(self, stream: Any) -> None:
        self.notes.append(f"{_described(stream)} is left out: {self._extension} does not hold it")

    def add_tags(self, recipe: str) -> None:
        """Add the tags and chapters of the source, and the recipe."""
        container = self._file.container
        meant = {k: v for k, v in tags(container.metadata).items() if k != RECIPE_TAG}
        if recipe:
            meant[RECIPE_TAG] = recipe
        self._extra_tags = ExtraTags(meant if self._kind.muxer == "mp4" else {})
        self._output.metadata.update(self._extra_tags.known or meant)
        self._output.set_chapters([_shifted(chapter, self._shift_s) for chapter in container.chapters()])

        self._meant = Tags.of(self._output, meant)

    def finish(self, destination: Path) -> None:
        """Add to the written file what FFmpeg's muxers do not write, and note the tags that are missing in it."""
        self._extra_tags.write(destination)
        if self.aspect and self._kind.family == "matroska" and not set_aspect(destination, self.aspect):
            self.notes.append(f"the shape of the pixels, {self.aspect}, is lost: {self._extension} has no room for it")
        self.notes += lost_tags(self._meant, destination)

    def copied_packets(self) -> Iterator[Any]:
        """Yield the packets of all streams that are copied, in the order of the source."""
        streams = [self._file.container.streams[index] for index in self._convert]
        if streams:
            for packet in self._file.packets(*streams):
                yield from self._convert[packet.stream.index](packet)


def _named(codec: str) -> str:
    return _NAMES.get(codec, codec)


def _described(stream: Any) -> str:
    """Return a few words for a stream, for messages."""
    kind = {"video": "video", "audio": "sound", "subtitle": "subtitle", "data": "data"}.get(stream.type)
    if stream.disposition & Disposition.attached_pic:
        return "the cover"
    if kind is None:
        return f"the attachment {stream.metadata.get('filename', '')}".strip()
    words = tags(stream.metadata)
    details = (words.get(name) for name in ("title", "handler_name", "language"))
    return " ".join([f"the {kind} track", *[f'"{detail}"' for detail in details if detail][:1]])


def _shifted(chapter: Any, shift_s: float) -> Any:
    shift = round(shift_s / chapter["time_base"])
    return {**chapter, "start": max(0, chapter["start"] - shift), "end": max(0, chapter["end"] - shift)}


def _decoding_time_s(packet: Any) -> float:
    return float((packet.pts if packet.dts is None else packet.dts) * packet.time_base)
