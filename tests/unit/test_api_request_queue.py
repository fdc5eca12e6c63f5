"""Admission: number of admitted requests, order of execution, and positions in the queue."""

import asyncio
import random
from collections.abc import Coroutine

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley.errors import Overloaded
from foley_server.jobs.request_queue import RequestQueue


def run(work: Coroutine[object, object, object]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(1, 25), st.integers(0, 2**32))
def test_slots_are_bounded_and_granted_in_order(running, waiting, requests, seed):
    rng = random.Random(seed)

    async def scenario():
        queue = RequestQueue(running, waiting)
        started, active, max_active, refused = [], 0, 0, 0

        async def one(number: int) -> None:
            nonlocal active, max_active, refused
            positions: list[int] = []
            try:
                with queue.admit():
                    assert queue.admitted <= running + waiting
                    async with queue.slot(positions.append):
                        started.append(number)
                        active += 1
                        max_active = max(max_active, active)
                        try:
                            for _ in range(rng.randrange(3)):
                                await asyncio.sleep(0)
                        finally:
                            active -= 1
                    assert positions[-1] == 0
                    assert positions == sorted(positions, reverse=True)
            except Overloaded as error:
                refused += 1
                assert error.retry_after_s  # noqa: PT017

        tasks = []
        for number in range(requests):
            tasks.append(asyncio.create_task(one(number)))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in ended if isinstance(error, Exception)]
        assert max_active <= running
        for i, number in enumerate(started):  # slots granted at the same time may start in any order
            assert sum(other > number for other in started[:i]) < running
        assert (queue.admitted, queue.waiting) == (0, 0)
        async with queue.slot(lambda position: None):  # all slots are free again
            assert queue.waiting == 0

    run(scenario())


def test_rejects_exactly_the_excess():
    async def scenario():
        queue = RequestQueue(1, 2)
        with queue.admit(), queue.admit(), queue.admit(), pytest.raises(Overloaded):
            queue.admit().__enter__()
        with queue.admit():
            pass

    run(scenario())


def test_waiting_requests_receive_position_updates():
    async def scenario():
        queue, positions = RequestQueue(1, 9), {name: [] for name in "abc"}
        release = asyncio.Event()

        async def hold_slot(name: str) -> None:
            async with queue.slot(positions[name].append):
                await release.wait()

        tasks = {}
        for name in "abc":
            tasks[name] = asyncio.create_task(hold_slot(name))
            await asyncio.sleep(0)
        tasks["b"].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert positions == {"a": [0], "b": [1], "c": [2, 1, 0]}

    run(scenario())
