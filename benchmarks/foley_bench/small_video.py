"""Small inputs for the render farm: videos of 1.5 s, and a manifest with many rows."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, FPS, FRAMES = 96, 64, 24, 36
VIDEOS = 6  # that the rows of a manifest share


def write_small_video(path: Path, speed: int = 2) -> None:
    """Write an .mp4 file without sound, in which a bar falls by `speed` pixels per frame."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(FRAMES):
            picture = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            top = speed * (i % FPS)
            picture[top : top + 12, WIDTH // 3 : 2 * WIDTH // 3] = 220
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def write_manifest(folder: Path, rows: int) -> Path:
    """Write a manifest of `rows` small rows that share a few videos; return its path."""
    for i in range(VIDEOS):
        write_small_video(folder / f"{i}.mp4", speed=i + 1)
    manifest = folder / "rows.jsonl"
    with manifest.open("w") as file:
        for i in range(rows):
            row: dict[str, Any] = {"video": f"{i % VIDEOS}.mp4", "output": f"{i % 7}/{i}.{'mp4' if i % 4 else 'wav'}"}
            row |= {"text": f"thing {i % 11}", "seed": i, "steps": 1 + i % 4, "loudness": ("level", "follow")[i % 2]}
            file.write(json.dumps(row) + "\n")
    return manifest
