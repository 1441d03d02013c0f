"""Work shared out over the processes of a launch; in a process of its own the same code does all of it.

What is shared out are jobs that are the same whatever number of processes there is (a batch of prompts, a part of a
file), never rows: a batch that is put together otherwise is padded otherwise and rounds otherwise, and the lists would
depend on the number of processes.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def share(jobs: Sequence[Job]) -> Sequence[Job]:
    """The jobs of this process: every n-th of n processes, so that jobs ordered by size come out even."""
    from accelerate import PartialState

    process = PartialState()
    return jobs[process.process_index :: process.num_processes]


def in_shares(jobs: Sequence[Job], work: Callable[[Job], Result]) -> list[Result]:
    """`work(job)` for every job, each done by one process; every process gets all results, in the order of the jobs.

    All processes of the launch must make the call, with the same jobs. Results travel pickled.

    >>> in_shares([1, 2, 3], lambda job: 10 * job)
    [10, 20, 30]
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    done = [(number, work(jobs[number])) for number in share(range(len(jobs)))]
    if PartialState().num_processes > 1:
        done = gather_object(done)
    return [result for _, result in sorted(done, key=lambda pair: pair[0])]
