"""The first stage, Video2RMS: video frames -> features -> envelope."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from foley import clip
from foley.envelope import Floats, frames
from foley.windows import crossfade, cut, window_starts_s
from foley_pipeline.media_loader import FrameStream, Image
from foley_pipeline.progress import Stage, StageTimer
from foley_pipeline.triton import TritonClient

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
    rows = extract_features(triton, video, timer, features)
    static_features, motion = rows[-1], rows[:-1]
    pieces = []
    starts = window_starts_s(duration_s)
    with timer.stage(Stage.VIDEO2RMS, len(starts)) as stage:
        for start_s in starts:
            start = round(start_s * clip.FRAME_RATE_HZ)
            window = clip_features(motion[start : start + clip.CLIP_FRAMES - 1], static_features)
            pieces.append(triton.infer("video2rms", features=window[None])["envelope"][0, : clip.CLIP_ENVELOPE])
            stage.advance()
    return crossfade(pieces, clip.ENVELOPE_RATE_HZ, frames(duration_s), "linear")


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

    While `CHUNKS_ON_SERVER` (2) chunks are processed on the server, the next one is decoded. Memory for frames does not
    grow with the length of the video: three chunks of 256 * 344 * 3 bytes per frame, 4.5 MB each, plus gRPC's copies.

    Args:
        triton: The server.
        video: Frames at 30 fps.
        timer: Progress and timings.
        features: Name of the ensemble that computes the features; see `foley.stages.features_stage`.

    Returns:
        Features, float32 [frames, width]: RGB features, then flow features.
    """
    rows: list[Floats] = []
    pending = deque[Future[Floats]]()

    def collect() -> None:
        rows.append(pending.popleft().result())
        stage.advance(len(rows[-1]))

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
                collect()
        while pending:
            collect()
    return np.concatenate(rows)


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
