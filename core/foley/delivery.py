"""The streams of a delivered video: which are copied, which are encoded again, and what that changes."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from foley.audio import Samples, resampled
from foley.container import MediaFile
from foley.errors import MediaError, MediaTooLarge
from foley.hidden_packets import Hidden, hidden_packets
from foley.lost_tags import Tags, lost_tags
from foley.matroska import set_aspect
from foley.media import read_frames
from foley.mp4_tags import ExtraTags
from foley.output_format import OutputFormat
from foley.sound_format import BitDepth, SoundFormat
from foley.sound_track import EncodedSound, SourceSound, mixed
from foley.stream_names import codec_name, described
from foley.track_copy import (
    Convert,
    add_copy,
    add_cover,
    add_text,
    aspect_of,
    copier,
    is_chapter_track,
    is_text,
    set_tags,
    tags,
)
from foley.video_encoding import EncodedVideo

RECIPE_TAG = "foley_recipe"
_SOUND_TITLE = "Foley"  # of the new sound beside other tracks


class Delivery:
    """The streams of an output file that is being written.

    Call the `add_` methods in the order in which they are defined, then mux `copied_packets()` and `encoded`, then
    call `finish`.

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
        self._shift_s = max(min(0.0, self._video.info.start_s), min(start_s, self._video.info.start_s))
        self._convert: dict[int, Convert] = {}  # by the index of the stream in the source
        self._sources: list[tuple[str, SourceSound]] = []  # with words for messages
        self._extra_tags = ExtraTags({})
        self._meant = Tags({}, (), ())
        self.encoded: list[Iterator[Any]] = []
        self.notes: list[str] = []
        self.aspect: Fraction | None = None
        self.video_codec, self.video_copied = "", False

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
            self._convert[stream.index] = copier(self._file, copy, self._shift_s, hidden=hidden)
        else:
            encoded = EncodedVideo(self._output, self._kind, self._video, stream, self._shift_s)
            copy, self.aspect = encoded.stream, encoded.aspect
            set_tags(copy, self._kind, {k: v for k, v in stream.metadata.items() if k.lower() != "alpha_mode"})
            self._copy_timecode(copy)
            self.encoded.append(encoded.packets())
            changes = ", ".join(["", *encoded.changes])
            self.notes.append(f"the picture is encoded again as {codec_name(copy)}{changes}: {reason}")
        had_alpha = stream.metadata.get("alpha_mode") == "1"
        if had_alpha and (self._kind.family != "matroska" or not self.video_copied):
            why = f"{self._extension} does not hold it" if self.video_copied else "it cannot be decoded"
            self.notes.append(f"the transparency of the picture is lost: {why}")
        self.video_codec = copy.codec_context.codec.canonical_name

    def _why_not_copied(self, stream: Any, hidden: Hidden) -> str | None:
        codec = stream.codec_context.codec.canonical_name
        if not self._kind.plays("video", codec, self._file.container):
            return self._cannot_hold(stream)
        if not self._file.has_pts and stream.codec_context.has_b_frames:
            return "its frames have no presentation times"
        starts_late = self._video.info.start_s > self._shift_s  # FFmpeg writes edit lists for times before 0 only
        if hidden.needs_encoding or (hidden.needs_edit_list and (starts_late or not self._kind.is_quicktime)):
            return f"it shows a part of the recording, and {self._extension} has no edit list for that"
        return None

    def _cannot_hold(self, stream: Any) -> str:
        return f"{self._extension} does not hold {codec_name(stream)}"

    def _copy_timecode(self, copy: Any) -> None:
        """Set the start timecode, from which MOV and MP4 get a timecode track."""
        for tagged in (*self._file.container.streams, self._file.container):
            if timecode := tags(tagged.metadata).get("timecode"):
                copy.metadata.setdefault("timecode", timecode)

    def add_sound(self, waveform: Samples, rate: int, form: SoundFormat, mix: bool) -> None:
        """Add the new sound, mixed with the first track of the source if `mix`."""
        own = next(iter(self._file.container.streams.audio), None) if mix else None
        source = self._source_sound(own, "is not mixed in") if own else None
        start_s, bit_depth = self._video.info.start_s, None if form.bit_depth == "16" else form.bit_depth
        blocks: Iterator[Samples]
        if source and own:
            track = self._encoded_sound(own, source, bit_depth)
            blocks = mixed(source, lambda: resampled(waveform, rate, track.rate), track.rate, start_s)
        else:
            track = EncodedSound(self._output, self._kind, form.rate or rate, "mono", bit_depth)
            blocks = (block[None] for block in resampled(waveform, rate, track.rate))
            if own is None and self._file.container.streams.audio:
                track.stream.metadata["title"] = _SOUND_TITLE
        if bit_depth and track.is_lossy:
            codec = codec_name(track.stream)
            self.notes.append(
                f"the sound is {codec}, which has no bit depth; .mov and .mkv have --bit-depth {bit_depth}"
            )
        track.stream.disposition = Disposition.default
        self.encoded.append(track.packets(blocks, start_s - self._shift_s))

    def add_sound_tracks(self, skip_first: bool) -> None:
        """Add the sound tracks of the source: copied if possible, else encoded again."""
        for stream in self._file.container.streams.audio[1 if skip_first else 0 :]:
            codec = stream.codec_context and stream.codec_context.codec.canonical_name
            plays = codec and self._kind.plays("audio", codec, self._file.container)
            copy = add_copy(self._output, self._kind, stream) if plays else None
            if copy:
                keeps_hidden = self._kind.is_quicktime  # the decoder needs them for the first shown ones
                self._convert[stream.index] = copier(self._file, copy, self._shift_s, keeps_hidden=keeps_hidden)
            elif source := self._source_sound(stream, "is left out"):
                track = self._encoded_sound(stream, source, source.bit_depth)
                copy = track.stream
                self.encoded.append(track.packets(source.blocks(track.rate), source.start_s - self._shift_s))
                is_reduced = track.layout == "stereo" and len(source.channels) > 2
                how = f"{codec_name(copy)}{', mixed to stereo' if is_reduced else ''}"
                self.notes.append(f"{described(stream)} is encoded again as {how}: {self._cannot_hold(stream)}")
            if copy:
                copy.disposition = stream.disposition & ~Disposition.default

    def _source_sound(self, stream: Any, otherwise: str) -> SourceSound | None:
        """Return a track of the source to be decoded; None, with a note, if it cannot be."""
        try:
            source = SourceSound(self._file.path, self._file.limits, stream.index)
        except MediaTooLarge:
            raise
        except MediaError as error:
            self.notes.append(f"{described(stream)} {otherwise}: {error}")
            return None
        self._sources.append((described(stream), source))
        return source

    def _encoded_sound(self, stream: Any, source: SourceSound, bit_depth: BitDepth | None) -> EncodedSound:
        track = EncodedSound(self._output, self._kind, source.rate, source.layout, bit_depth)
        set_tags(track.stream, self._kind, stream.metadata)
        return track

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
            return self._subtitle(stream)
        if stream.type == "attachment":
            if self._kind.muxer != "matroska":
                return None
            self._output.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
            return lambda packet: []
        copy = add_copy(self._output, self._kind, stream)
        return copier(self._file, copy, self._shift_s) if copy else None

    def _subtitle(self, stream: Any) -> Convert | None:
        if copy := add_copy(self._output, self._kind, stream):
            return copier(self._file, copy, self._shift_s)
        if not is_text(stream):
            return None
        if stream.codec_context.codec.canonical_name == "ass":
            self.notes.append(f"the styles of {described(stream)} are lost: {self._extension} holds plain text")

        def leave_out(text: str) -> None:
            self.notes.append(f"a text of {len(text)} characters in {described(stream)} is left out: it is too long")

        return add_text(self._output, self._kind, self._file, stream, self._shift_s, leave_out)

    def _leave_out(self, stream: Any) -> None:
        self.notes.append(f"{described(stream)} is left out: {self._extension} does not hold it")

    def add_tags(self, recipe: str) -> None:
        """Add the tags and chapters of the source, and the recipe."""
        container = self._file.container
        meant = {k: v for k, v in tags(container.metadata).items() if k not in (RECIPE_TAG, "timecode")}
        if recipe:
            meant[RECIPE_TAG] = recipe
        self._extra_tags = ExtraTags(meant if self._kind.muxer == "mp4" else {})
        self._output.metadata.update(self._extra_tags.known or meant)
        chapters = [_shifted(chapter, self._shift_s) for chapter in container.chapters()]
        if chapters and chapters[0]["start"] > 0 and self._kind.is_quicktime:  # where chapters have no gaps before them
            chapters.insert(0, {**chapters[0], "start": 0, "end": chapters[0]["start"], "metadata": {"title": ""}})
        self._output.set_chapters([{**chapter, "id": number} for number, chapter in enumerate(chapters)])
        self._meant = Tags.of(self._output, meant)

    def finish(self, destination: Path) -> None:
        """Add to the written file what FFmpeg's muxers do not write, and note the tags that are missing in it."""
        for words, source in self._sources:
            if source.damaged_s is not None:
                self.notes.append(f"{words} is damaged, so it ends at {source.damaged_s:.1f} s")
        self._extra_tags.write(destination)
        if self.aspect and self._kind.family == "matroska" and not set_aspect(destination, self.aspect):
            self.notes.append(f"the shape of the pixels, {self.aspect}, is lost: {self._extension} has no room for it")
        self.notes += lost_tags(self._meant, destination)

    def copied_packets(self) -> Iterator[Any]:
        """Read the packets of all streams that are copied, in the order of the source.

        Yields:
            Packets of the output.

        Raises:
            MediaError: The source is damaged.
        """
        streams = [self._file.container.streams[index] for index in self._convert]
        if streams:
            for packet in self._file.packets(*streams):
                yield from self._convert[packet.stream.index](packet)


def _shifted(chapter: Any, shift_s: float) -> Any:
    shift = round(shift_s / chapter["time_base"])
    return {**chapter, "start": max(0, chapter["start"] - shift), "end": max(0, chapter["end"] - shift)}
