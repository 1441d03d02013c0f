"""Questions that arrive within a few milliseconds are answered together, one batch after the other.

While a batch is being answered the next one collects, so under load batches grow by themselves and waiting costs
nothing; a question alone waits `max_wait` at the most.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


class Overloaded(Exception):
    """As many questions wait as may."""


@dataclass(frozen=True)
class _Waiting(Generic[Question, Answer]):
    question: Question
    answer: "asyncio.Future[Answer]"
    arrived: float


class Batcher(Generic[Question, Answer]):
    """Answers questions in batches, in one thread of its own; made and used inside a running event loop.

    Args:
        work: answers a batch, one answer or exception a question, in order.
        max_batch: questions in a batch.
        max_wait: seconds that the first question of a batch waits for others.
        max_waiting: questions that may wait; more are refused.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
        max_batch: int,
        max_wait: float,
        max_waiting: int,
    ):
        self._work = work
        self._max_batch, self._max_wait, self._max_waiting = max_batch, max_wait, max_waiting
        self._queue: asyncio.Queue[_Waiting[Question, Answer]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    @property
    def waiting(self) -> int:
        """Questions that no batch has taken yet."""
        return self._queue.qsize()

    async def ask(self, question: Question) -> Answer:
        """The answer to one question. Whoever cancels the wait leaves the queue: the question is not worked on.

        Raises:
            Overloaded: `max_waiting` questions wait already.
            Exception: what `work` gave for this question.
        """
        if self.waiting >= self._max_waiting:
            raise Overloaded(f"{self.waiting} questions wait already")
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._queue.put_nowait(_Waiting(question, answer, self._loop.time()))
        return await answer

    async def close(self) -> None:
        """Waits for the batch that is under way, and cancels every question that has no answer yet."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        while not self._queue.empty():
            self._queue.get_nowait().answer.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        while True:
            batch = [one for one in await self._collect() if not one.answer.done()]
            if not batch:  # nobody waits for them any more
                continue
            answers: Sequence[Answer | Exception]
            try:
                answers = await self._loop.run_in_executor(self._thread, self._work, [one.question for one in batch])
            except asyncio.CancelledError:
                for one in batch:
                    one.answer.cancel()
                raise
            except Exception as error:
                logger.exception("a batch of %d failed", len(batch))
                answers = [error] * len(batch)
            for one, answer in zip(batch, answers, strict=True):
                if one.answer.done():
                    continue
                if isinstance(answer, Exception):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)

    async def _collect(self) -> list[_Waiting[Question, Answer]]:
        batch = [await self._queue.get()]
        until = batch[0].arrived + self._max_wait
        while len(batch) < self._max_batch:
            if self._queue.empty() and (left := until - self._loop.time()) > 0:
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), left))
                except TimeoutError:
                    break
            elif self._queue.empty():
                break
            else:
                batch.append(self._queue.get_nowait())
        return batch
