"""The first stage, Video2RMS: video frames -> features -> envelope."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import numpy.typing as npt

from foley import clip
from foley.envelope import Floats, frames
from foley.windows import OVERLAP_S, crossfade, cut, window_starts_s
from foley_pipeline.media_loader import FrameStream, Image
from foley_pipeline.progress import Stage, StageTimer
from foley_pipeline.triton import TritonClient

_HOP_FRAMES = round((clip.CLIP_SECONDS - OVERLAP_S) * clip.FRAME_RATE_HZ)  # between the starts of windows
CHUNKS_ON_SERVER = 2  # the optical flow of one chunk overlaps with the feature networks of the other


def predict_envelope(
    triton: TritonClient, video: FrameStream, duration_s: float, timer: StageTimer, features: str = "frames_to_features"
) -> Floats:
    """Predict the envelope of a video of any length.

    Args:
        triton: The server.
        video: Frames at 30 fps.
        duration_s: Duration of the video in seconds.
        timer: Progress and timings.
        features: Name of the ensemble that computes the features; see `foley.stages.features_stage`.

    Returns:
        Linear RMS, float32 [frames(duration_s)].
    """
    starts = window_starts_s(duration_s)
    pieces: list[Floats] = []
    rows = np.empty((0, 0), np.float32)  # the features from the start of the next window on

    def predict() -> None:
        window = clip_features(rows[:-1][: clip.CLIP_FRAMES - 1], rows[-1])
        pieces.append(triton.infer("video2rms", features=window[None])["envelope"][0, : clip.CLIP_ENVELOPE])

    with closing(_features(triton, video, timer, features)) as chunks:
        for chunk in chunks:
            rows = np.concatenate([rows, chunk]) if rows.size else chunk
            # the features of a long video take more memory than its sound: those of finished windows are dropped
            while len(rows) >= clip.CLIP_FRAMES and len(pieces) < len(starts) - 1:
                predict()
                rows = rows[_HOP_FRAMES:]
    with timer.stage(Stage.VIDEO2RMS, len(starts)) as stage:
        if pieces:
            stage.advance(len(pieces))
        while len(pieces) < len(starts):
            predict()
            rows = rows[_HOP_FRAMES:]
            stage.advance()
    return crossfade(pieces, len(pieces), clip.ENVELOPE_RATE_HZ, frames(duration_s), "linear")


def clip_features(rows: Floats, static_features: Floats) -> Floats:
    """Pad feature rows to a full clip, the input of Video2RMS.

    The last row is zero, as in the official features, which have no row for the first frame.

    Args:
        rows: Features of frame pairs, float32 [at most 299, width].
        static_features: Features of a static frame, float32 [width]; repeated if the video ends before the clip.

    Returns:
        Features, float32 [300, width].
    """
    missing = clip.CLIP_FRAMES - 1 - len(rows)
    return cut(np.concatenate([rows, np.repeat(static_features[None], missing, axis=0)]), 0, clip.CLIP_FRAMES)


def extract_features(
    triton: TritonClient, video: FrameStream, timer: StageTimer, features: str = "frames_to_features"
) -> Floats:
    """Compute the features of every pair of consecutive frames, and of the last frame paired with itself.

    Args:
        triton: The server.
        video: Frames at 30 fps.
        timer: Progress and timings.
        features: Name of the ensemble that computes the features; see `foley.stages.features_stage`.

    Returns:
        Features, float32 [frames, width]: RGB features, then flow features.
    """
    return np.concatenate(list(_features(triton, video, timer, features)))


def _features(
    triton: TritonClient, video: FrameStream, timer: StageTimer, features: str
) -> Generator[Floats, None, None]:
    """Yield the rows of `extract_features` in pieces.

    While `CHUNKS_ON_SERVER` (2) chunks are processed on the server, the next one is decoded. Memory for frames does not
    grow with the length of the video: three chunks of 256 * 344 * 3 bytes per frame, 4.5 MB each, plus gRPC's copies.
    """
    pending = deque[Future[Floats]]()

    def collect() -> Floats:
        rows = pending.popleft().result()
        stage.advance(len(rows))
        return rows

    def call(chunk: npt.NDArray[np.uint8]) -> Floats:
        outputs = server.infer(features, frames=chunk)
        return np.concatenate([outputs["rgb"], outputs["flow"]], axis=1)

    with (
        timer.stage(Stage.FEATURES, len(video)) as stage,
        ThreadPoolExecutor(CHUNKS_ON_SERVER) as pool,
        triton.cancel.child() as cancel,
    ):
        server = triton.under(cancel)
        for chunk in _chunks(video):
            pending.append(pool.submit(call, chunk))
            if len(pending) > CHUNKS_ON_SERVER:
                yield collect()
        while pending:
            yield collect()


def _chunks(video: Iterable[Image]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield chunks of up to `CHUNK_PAIRS` + 1 frames, [n + 1, 256, 344, 3] for n pairs.

    Chunks overlap by one frame, and the last frame of the video is repeated once.
    """
    chunk: list[Image] = []
    for frame in video:
        if len(chunk) > clip.CHUNK_PAIRS:
            stacked = np.stack(chunk)
            chunk = chunk[-1:]  # free the other frames before the caller waits for the server
            yield stacked
        chunk.append(frame)
    yield np.stack([*chunk, chunk[-1]])
