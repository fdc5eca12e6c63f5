"""Waiting for events."""

import asyncio


async def wait(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait for an event, up to `timeout_s` seconds.

    Unlike `asyncio.wait_for` before Python 3.12, this never swallows a cancellation.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=timeout_s)
    finally:
        waiting.cancel()
