"""Events of a generation reach every caller, at any reading speed."""

import asyncio

import numpy as np
import pytest

from foley.errors import MediaError
from foley_pipeline.progress import Progress as StageProgress
from foley_pipeline.progress import Stage
from foley_pipeline.result import GenerationResult, Take
from foley_server.jobs.progress import Progress

ENVELOPE = np.full(100, 0.1, np.float32)
RESULT = GenerationResult(ENVELOPE, [Take(np.zeros(16_000, np.float32), {})])
REPORTS = [
    *(StageProgress(Stage.FEATURES, i, 30) for i in range(31)),
    StageProgress(Stage.FEATURES, 30, 30, seconds=1.0),
    StageProgress(Stage.PROMPT),
    StageProgress(Stage.VIDEO2RMS, 1, 1, envelope=ENVELOPE),
    *(StageProgress(Stage.DENOISE, i, 6) for i in range(7)),
    StageProgress(Stage.DECODE, 0, 1),
    StageProgress(Stage.DECODE, 1, 1),
]


def shown(event) -> str:
    stage = event.progress
    return f"{stage.stage} {stage.done_count}/{stage.total_count}" if stage.stage else event.WhichOneof("event")


@pytest.mark.parametrize("reader", ["late", "fast", "slow"])
def test_every_reader_receives_last_state_of_every_stage(reader: str) -> None:
    """The envelope comes after the stages of the video and before those of the sound."""

    async def main() -> None:
        progress, seen = Progress("id"), []

        async def read() -> None:
            async for event in progress.events():
                seen.append(shown(event))
                for _ in range(10 if reader == "slow" else 0):
                    await asyncio.sleep(0)

        async def work() -> None:
            progress.set_position(0)
            for report in REPORTS:
                progress.report(report)
                if reader != "late":
                    await asyncio.sleep(0)
            progress.result = RESULT
            progress.changed()

        if reader == "late":
            await work()
            await read()
        else:
            await asyncio.gather(work(), read())
        last = ["accepted", "features 30/30", "prompt 0/0", "envelope_ready", "denoise 6/6", "decode 1/1"]
        assert [one for one in seen if one in [*last, "audio", "finished"]] == [*last, "audio", "finished"]
        stages = [one.split()[0] for one in seen]
        assert stages == sorted(stages, key=[one.split()[0] for one in [*last, "audio", "finished"]].index)

    asyncio.run(main())


def test_error_follows_earlier_progress() -> None:
    async def main() -> list[str]:
        progress, seen = Progress("id"), []
        progress.report(StageProgress(Stage.FEATURES, 3, 30))
        progress.error = MediaError("no")
        try:
            async for event in progress.events():
                seen.append(shown(event))
        except MediaError:
            seen.append("error")
        return seen

    assert asyncio.run(main()) == ["accepted", "features 3/30", "error"]
