"""The first stage: video frames -> features -> envelope."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from foley import clip
from foley.envelope import Floats, frames
from foley.stages import FlowMethod, features_stage
from foley.windows import crossfade, cut, window_starts_s
from foley_pipeline.reader import FrameStream, Image
from foley_pipeline.triton import Triton
from foley_pipeline.watch import Watch

CHUNKS_ON_SERVER = 2  # the flow of one is found while the networks behind it read the flow of the other


def predict_envelope(
    triton: Triton, video: FrameStream, duration_s: float, watch: Watch, flow: FlowMethod = "exact"
) -> Floats:
    """The envelope [frames(duration_s)] that Video2RMS predicts for a video of any length."""
    rows = extract_features(triton, video, watch, flow)
    still, motion = rows[-1], rows[:-1]
    pieces = []
    starts = window_starts_s(duration_s)
    server = triton.under(watch)
    with watch.stage("Video2RMS", len(starts)) as stage:
        for start_s in starts:
            start = round(start_s * clip.FRAME_RATE_HZ)
            window = clip_features(motion[start : start + clip.CLIP_FRAMES - 1], still)
            pieces.append(server.infer("video2rms", features=window[None])["envelope"][0, : clip.CLIP_ENVELOPE])
            stage.advance()
    return crossfade(pieces, clip.ENVELOPE_RATE_HZ, frames(duration_s), "linear")


def clip_features(rows: Floats, still: Floats) -> Floats:
    """Up to 299 `rows` as the 300 that Video2RMS reads.

    A video that ends early stands still: `still` is repeated. The last row is zeros, as in the official
    features, which lack the first frame's.
    """
    missing = clip.CLIP_FRAMES - 1 - len(rows)
    return cut(np.concatenate([rows, np.repeat(still[None], missing, axis=0)]), 0, clip.CLIP_FRAMES)


def extract_features(triton: Triton, video: FrameStream, watch: Watch, flow: FlowMethod = "exact") -> Floats:
    """Features of every pair of neighbouring frames, RGB then flow, and of the last frame held still: [n, width].

    `CHUNKS_ON_SERVER` chunks are on the server while the next one is decoded. Memory does not grow with the video:
    each of these three is a chunk of 256 * 344 * 3 bytes a frame, 4.5 MB, and what gRPC copies of it to send.
    """
    rows: list[Floats] = []
    pending: deque[Future[Floats]] = deque()

    def collect() -> None:
        rows.append(pending.popleft().result())
        stage.advance(len(rows[-1]))

    def call(chunk: npt.NDArray[np.uint8]) -> Floats:
        outputs = server.infer(features_stage(flow), frames=chunk)
        return np.concatenate([outputs["rgb"], outputs["flow"]], axis=1)

    with (
        watch.stage("optical flow and features", len(video)) as stage,
        ThreadPoolExecutor(CHUNKS_ON_SERVER) as pool,
        watch.part() as part,
    ):
        server = triton.under(part)
        for chunk in _chunks(video):
            pending.append(pool.submit(call, chunk))
            if len(pending) > CHUNKS_ON_SERVER:
                collect()
        while pending:
            collect()
    return np.concatenate(rows)


def _chunks(video: Iterable[Image]) -> Iterator[npt.NDArray[np.uint8]]:
    """Chunks of pairs, with a frame more: the first one is the last of the chunk before; the last frame comes twice."""
    chunk: list[Image] = []
    for frame in video:
        if len(chunk) > clip.CHUNK_PAIRS:
            stacked = np.stack(chunk)
            chunk = chunk[-1:]  # before the others wait with us for the server
            yield stacked
        chunk.append(frame)
    yield np.stack([*chunk, chunk[-1]])
