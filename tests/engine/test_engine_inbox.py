"""What an engine's thread is asked, and when it wakes."""

import threading

import pytest

from llmgallery.core.errors import WorkerDied
from llmgallery.core.jobs import Job
from llmgallery.core.sampling import Sampling
from llmgallery.engine.inbox import Inbox

DEADLINE = 10


def job(id: int) -> Job:
    return Job(id, (1,), Sampling())


def test_jobs_come_in_order_with_what_was_withdrawn() -> None:
    inbox = Inbox()
    for id in (3, 1, 2):
        inbox.submit(job(id))
    inbox.withdraw(9)
    inbox.withdraw(1)
    assert inbox.has_withdrawals
    taken = inbox.take(lambda: False)
    assert taken is not None and [each.id for each in taken[0]] == [3, 1, 2] and taken[1] == [1, 9]
    assert inbox.take(lambda: True) == ([], []) and not inbox.has_withdrawals


def test_who_waits_wakes_for_a_job_and_not_for_a_withdrawal() -> None:
    inbox = Inbox()
    heard: list[object] = []
    waiting = threading.Thread(target=lambda: heard.append(inbox.take(lambda: False)))
    waiting.start()
    inbox.withdraw(1)
    inbox.submit(job(2))
    waiting.join(DEADLINE)
    ((jobs, _),) = heard
    assert [each.id for each in jobs] == [2]


def test_a_closed_inbox_gives_back_what_nobody_took() -> None:
    inbox = Inbox()
    inbox.submit(job(1))
    inbox.close()
    assert inbox.take(lambda: True) is None
    with pytest.raises(WorkerDied):
        inbox.submit(job(2))
    assert [each.id for each in inbox.end()] == [1] and inbox.end() == []


def test_closing_wakes_who_waits() -> None:
    inbox = Inbox()
    heard: list[object] = []
    waiting = threading.Thread(target=lambda: heard.append(inbox.take(lambda: False)))
    waiting.start()
    inbox.close()
    waiting.join(DEADLINE)
    assert heard == [None]
