"""Scenes as video files, for people to look at and for examples."""

from pathlib import Path
from tempfile import TemporaryDirectory

import av

from foley import clip
from foley.mux import write_video
from foley.output import check_destination, replacing
from foley_training.data.picture import render
from foley_training.data.scene import Scene
from foley_training.data.sound import synthesise


def write_clip(scene: Scene, path: Path, sound: bool = True) -> None:
    """Write the 10 s of a scene as an .mp4: H.264 at 30 fps, with its sound as AAC or without any.

    The file appears whole or not at all. Raises OutputError where it cannot be written.
    """
    check_destination(path, (".mp4",))
    with replacing(path) as result, TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.mp4" if sound else result
        _write_picture(scene, picture)
        if sound:
            samples = round(clip.CLIP_SECONDS * clip.SAMPLE_RATE_HZ)
            write_video(picture, synthesise(scene)[:samples], clip.SAMPLE_RATE_HZ, result)


def _write_picture(scene: Scene, path: Path) -> None:
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=clip.FRAME_RATE_HZ, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = clip.FRAME_WIDTH, clip.FRAME_HEIGHT, "yuv420p"
        for image in render(scene):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
