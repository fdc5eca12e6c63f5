"""The smallest video that takes the whole way: a second and a half of a bright bar that falls."""

from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FPS, FRAMES = 96, 64, 24, 36


def write_small_video(path: Path, speed: int = 2) -> None:
    """Write it as an .mp4 without sound; the bar falls by `speed` pixels a frame."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(FRAMES):
            picture = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            top = speed * (i % FPS)
            picture[top : top + 12, WIDTH // 3 : 2 * WIDTH // 3] = 220
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
