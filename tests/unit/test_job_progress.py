"""Events of a job reach every watcher, at any reading speed, in this process and in others."""

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from foley.errors import NotFound
from foley_pipeline.progress import Progress as StageProgress
from foley_pipeline.progress import Stage
from foley_server.jobs.progress import Progress

ENVELOPE = np.full(100, 0.1, np.float32)
REPORTS = [
    *(StageProgress(Stage.FEATURES, i, 30) for i in range(31)),
    StageProgress(Stage.FEATURES, 30, 30, seconds=1.0),
    StageProgress(Stage.PROMPT),
    StageProgress(Stage.VIDEO2RMS, 1, 1, envelope=ENVELOPE),
    *(StageProgress(Stage.DENOISE, i, 6) for i in range(7)),
    StageProgress(Stage.DECODE, 0, 1),
    StageProgress(Stage.DECODE, 1, 1),
]
LAST = ["accepted", "features 30/30", "prompt 0/0", "envelope_ready", "denoise 6/6", "decode 1/1"]


def shown(event) -> str:
    stage = event.progress
    return f"{stage.stage} {stage.done_count}/{stage.total_count}" if stage.stage else event.WhichOneof("event")


def job(state: str = "succeeded"):
    return SimpleNamespace(state=state)


@pytest.mark.parametrize("remote", [False, True], ids=["same process", "other process"])
@pytest.mark.parametrize("reader", ["late", "fast", "slow"])
def test_every_watcher_receives_last_state_of_every_stage(reader: str, remote: bool) -> None:
    """The envelope comes after the stages of the video and before those of the sound."""

    async def main() -> None:
        source, seen = Progress("id"), []
        watched = Progress("id") if remote else source

        async def read() -> None:
            async for event in watched.events():
                seen.append(shown(event))
                for _ in range(10 if reader == "slow" else 0):
                    await asyncio.sleep(0)

        async def work() -> None:
            watched.set_position(0)
            for report in REPORTS:
                source.report(report)
                if remote:
                    watched.load(source.dumps(), source.envelope)
                if reader != "late":
                    await asyncio.sleep(0)
            watched.end(job())

        if reader == "late":
            await work()
            await read()
        else:
            await asyncio.gather(work(), read())
        assert [one for one in seen if one in LAST] == LAST
        stages = [one.split()[0] for one in seen]
        assert stages == sorted(stages, key=[one.split()[0] for one in LAST].index)

    asyncio.run(main())


def test_stages_of_a_lost_start_are_not_repeated() -> None:
    async def main() -> None:
        progress = Progress("id")
        for report in REPORTS:
            progress.report(report)
        progress.restart(2)
        progress.report(StageProgress(Stage.FEATURES, 1, 30))
        assert json.loads(progress.dumps()) == [["features", 1, 30]]
        assert progress.envelope is None

    asyncio.run(main())


def test_waiting_for_a_removed_job_ends() -> None:
    async def main() -> None:
        progress = Progress("id")
        waiting = asyncio.create_task(progress.wait())
        await asyncio.sleep(0)
        progress.end(None)
        progress.end(job())  # too late
        with pytest.raises(NotFound):
            await asyncio.wait_for(waiting, 5)
        assert [shown(event) async for event in progress.events()] == ["accepted"]

    asyncio.run(main())
