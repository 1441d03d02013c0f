"""Questions that arrive together are answered together, and nobody gets another one's answer."""

import asyncio
import threading
import time

import pytest

from align3gr.serving import Batcher, Overloaded


class Doubling:
    """Doubles numbers, refuses negative ones, and remembers its batches; it can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, questions):
        self.batches.append(list(questions))
        assert self.go_on.wait(20)
        return [ValueError(str(one)) if one < 0 else 2 * one for one in questions]


def run(main, work, max_batch=4, max_wait=0.05, max_waiting=100):
    async def inside():
        batcher = Batcher(work, max_batch, max_wait, max_waiting)
        try:
            return await asyncio.wait_for(main(batcher), 20)
        finally:
            work.go_on.set()
            await batcher.close()

    return asyncio.run(inside())


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_questions_that_arrive_together_share_batches_and_get_their_own_answers():
    async def main(batcher):
        return await asyncio.gather(*(batcher.ask(number) for number in range(10)))

    work = Doubling()
    assert run(main, work) == [2 * number for number in range(10)]
    assert work.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_question_alone_waits_no_longer_than_it_was_told():
    async def main(batcher):
        start = time.monotonic()
        assert await batcher.ask(1) == 2
        return time.monotonic() - start

    assert 0.15 <= run(main, Doubling(), max_wait=0.15) < 2


def test_while_a_batch_is_answered_the_next_one_collects():
    work = Doubling()

    async def main(batcher):
        work.go_on.clear()
        first = asyncio.ensure_future(batcher.ask(1))
        await until(lambda: work.batches)
        others = [asyncio.ensure_future(batcher.ask(number)) for number in (2, 3, 4)]
        await asyncio.sleep(0.05)
        work.go_on.set()
        return await asyncio.gather(first, *others)

    assert run(main, work, max_wait=0) == [2, 4, 6, 8]
    assert work.batches == [[1], [2, 3, 4]]


def test_an_error_is_that_of_its_own_question():
    async def main(batcher):
        return await asyncio.gather(*(batcher.ask(number) for number in (1, -7, 3)), return_exceptions=True)

    one, two, three = run(main, Doubling())
    assert (one, three) == (2, 6) and isinstance(two, ValueError) and str(two) == "-7"


def test_work_that_fails_as_a_whole_fails_its_batch_and_not_the_next():
    work = Doubling()
    calls = []

    def failing(questions):
        calls.append(len(questions))
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return work(questions)

    failing.go_on = work.go_on

    async def main(batcher):
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.ask(1)
        return await batcher.ask(2)

    assert run(main, failing) == 4


def test_whoever_gives_up_is_not_worked_on():
    work = Doubling()

    async def main(batcher):
        work.go_on.clear()
        first = asyncio.ensure_future(batcher.ask(1))
        await until(lambda: work.batches)
        gone, stays = (asyncio.ensure_future(batcher.ask(number)) for number in (2, 3))
        await asyncio.sleep(0)
        gone.cancel()
        work.go_on.set()
        assert await asyncio.gather(first, stays) == [2, 6]

    run(main, work)
    assert work.batches == [[1], [3]]


def test_more_than_may_wait_are_refused_at_once():
    work = Doubling()

    async def main(batcher):
        work.go_on.clear()
        first = asyncio.ensure_future(batcher.ask(1))
        await until(lambda: work.batches)
        waiting = [asyncio.ensure_future(batcher.ask(number)) for number in (2, 3)]
        await asyncio.sleep(0)
        assert batcher.waiting == 2
        with pytest.raises(Overloaded, match="2 questions wait"):
            await batcher.ask(4)
        work.go_on.set()
        return await asyncio.gather(first, *waiting)

    assert run(main, work, max_waiting=2) == [2, 4, 6]


def test_closing_cancels_who_waits():
    work = Doubling()

    async def inside():
        batcher = Batcher(work, 1, 0, 10)
        work.go_on.clear()
        first, second = (asyncio.ensure_future(batcher.ask(number)) for number in (1, 2))
        await until(lambda: work.batches)
        work.go_on.set()
        await batcher.close()
        return await asyncio.gather(first, second, return_exceptions=True)

    answers = asyncio.run(inside())
    assert all(isinstance(one, asyncio.CancelledError) for one in answers) and work.batches == [[1]]
