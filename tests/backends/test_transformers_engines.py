"""Whose turn it is to compute with a model: nobody starves, and steps have one account."""

import itertools
import threading

from llmgallery.backends.transformers.generation.engines import Steps, Turns

SECONDS = 10


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns, served = Turns(), []
    threads = []

    def serve(number: int) -> None:
        with turns:
            served.append(number)

    with turns:
        for number in range(6):
            threads.append(threading.Thread(target=serve, args=(number,)))
            threads[-1].start()
            deadline = threading.Event()
            while len(turns._queue) <= number:
                assert not deadline.wait(0.001)
        assert served == []
    for thread in threads:
        thread.join(SECONDS)
    assert served == list(range(6))


def test_who_asks_again_and_again_lets_others_in() -> None:
    """Two loops of steps: neither computes twice while the other waits."""
    turns, order = Turns(), []
    ready = threading.Barrier(2)

    def loop(name: str) -> None:
        ready.wait(SECONDS)
        for _ in range(200):
            with turns:
                waits = bool(turns._queue)
                order.append((name, waits))

    threads = [threading.Thread(target=loop, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(order) == 400
    for (name, other_waits), (follower, _) in itertools.pairwise(order):
        assert not other_waits or follower != name


def test_only_one_computes_and_a_failure_gives_the_turn_back() -> None:
    turns, inside, most = Turns(), 0, 0

    def compute() -> None:
        nonlocal inside, most
        for _ in range(50):
            try:
                with turns:
                    inside += 1
                    most = max(most, inside)
                    inside -= 1
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert (most, inside) == (1, 0) and not any(thread.is_alive() for thread in threads)


def test_steps_are_counted_once() -> None:
    steps = Steps()
    assert [steps.next() for _ in range(3)] == [1, 2, 3] and steps.last == 3
