"""Following one job: who is slow gets fewer states, never without the last one."""

from __future__ import annotations

import asyncio

from llmgallery.catalog.install.job import Asked, Job
from llmgallery.core.installs import FileProgress, Install

DEADLINE = 10.0


def begun() -> Job:
    return Job(Install("1", "tiny"), Asked(reference="tiny"), lambda: 0.0, lambda state: None)


async def test_a_job_that_ends_while_a_state_is_being_shown_ends_for_all():
    job = begun()
    states = job.follow()
    assert (await anext(states)).phase == "queued"
    job.phase("planning")
    job.end(job.at_end("done"))
    assert [state.phase async for state in states] == ["done"]


async def test_a_server_that_stops_ends_the_following_with_what_came_last():
    job = begun()
    states = job.follow()
    assert (await anext(states)).phase == "queued"
    job.phase("downloading")
    job.stop()
    assert [state.phase async for state in states] == ["downloading"]
    assert [state.phase async for state in job.follow()] == ["downloading"]


async def test_who_waits_is_told_each_phase_and_the_end():
    job, seen = begun(), []

    async def follow() -> None:
        async for state in job.follow():
            seen.append(state.phase)

    async with asyncio.timeout(DEADLINE):
        following = asyncio.create_task(follow())
        for phase in ("planning", "downloading", "writing"):
            await asyncio.sleep(0)
            job.phase(phase)
        await asyncio.sleep(0)
        job.tell((FileProgress("a", 1, 1),))
        job.end(job.at_end("done"))
        await following
    assert seen == ["queued", "planning", "downloading", "writing", "done"]
