"""Admission: how many are let in, whose turn it is, and that nobody is forgotten."""

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
def test_11_turns_are_bounded_and_in_order_whoever_goes_away(running, waiting, requests, seed):
    dice = random.Random(seed)

    async def all_of_it():
        queue = RequestQueue(running, waiting)
        began, having, most, refused = [], 0, 0, 0

        async def one(number: int) -> None:
            nonlocal having, most, refused
            positions: list[int] = []
            try:
                with queue.admit():
                    assert queue.admitted <= running + waiting
                    async with queue.slot(positions.append):
                        began.append(number)
                        having += 1
                        most = max(most, having)
                        try:
                            for _ in range(dice.randrange(3)):
                                await asyncio.sleep(0)
                        finally:
                            having -= 1
                    assert positions[-1] == 0
                    assert positions == sorted(positions, reverse=True)
            except Overloaded as error:
                refused += 1
                assert error.retry_after_s  # noqa: PT017

        tasks = []
        for number in range(requests):
            tasks.append(asyncio.create_task(one(number)))
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
            if dice.random() < 0.3:
                dice.choice(tasks).cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in ended if isinstance(error, Exception)]
        assert most <= running
        for i, number in enumerate(began):  # two whose turns come in the same moment may begin in either order
            assert sum(other > number for other in began[:i]) < running
        assert (queue.admitted, queue.waiting) == (0, 0)
        async with queue.slot(lambda position: None):  # and all turns are free again
            assert queue.waiting == 0

    run(all_of_it())


def test_11_exactly_the_excess_is_refused_at_once():
    async def all_of_it():
        queue = RequestQueue(1, 2)
        with queue.admit(), queue.admit(), queue.admit(), pytest.raises(Overloaded):
            queue.admit().__enter__()
        with queue.admit():
            pass

    run(all_of_it())


def test_those_who_wait_are_told_when_somebody_in_front_goes():
    async def all_of_it():
        queue, told = RequestQueue(1, 9), {name: [] for name in "abc"}
        let_go = asyncio.Event()

        async def have(name: str) -> None:
            async with queue.slot(told[name].append):
                await let_go.wait()

        tasks = {}
        for name in "abc":
            tasks[name] = asyncio.create_task(have(name))
            await asyncio.sleep(0)
        tasks["b"].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        let_go.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert told == {"a": [0], "b": [1], "c": [2, 1, 0]}

    run(all_of_it())
