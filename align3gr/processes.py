"""Work shared out over the processes of a launch; in a process of its own the same code does all of it.

What is shared out are jobs that are the same whatever number of processes there is (a batch of prompts, a part of a
file), never rows: a batch that is put together otherwise is padded otherwise and rounds otherwise, and the lists would
depend on the number of processes.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from align3gr.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState

Job = TypeVar("Job")
Result = TypeVar("Result")
LONGEST_COMPILATION = 600  # seconds; DeepSpeed's parts take one or two minutes at the most


def launched() -> "PartialState":
    """The processes of this launch, or one alone.

    Raises:
        InputError: several processes were started that do not know of each other, so that each would do all the work
            and write the same files; or FSDP is asked for without a GPU, where nothing would be divided. Some settings
            of accelerate do so without a word. Or DeepSpeed would wait without end for a process that was killed.
    """
    import torch
    from accelerate import PartialState

    if _asked_for("FSDP") and not torch.cuda.is_available():
        raise InputError(
            "accelerate: FSDP needs GPUs, on a CPU it would train as plain DDP; launch with cpu_ddp, zero2 or zero3"
        )
    if _asked_for("DEEPSPEED"):
        _refuse_old_locks()
    # Without a GPU accelerate joins processes only where the CPU is asked for here, whatever its configuration says.
    process = PartialState(cpu=not torch.cuda.is_available())
    started = os.environ.get("WORLD_SIZE", "1")
    if started != str(process.num_processes):
        raise InputError(
            f"accelerate: {started} processes were started, but this one knows of {process.num_processes}; launch "
            "with a configuration that joins them, such as accelerate_configs/cpu_ddp.yaml"
        )
    return process


def description() -> str:
    """How many processes this launch has, and what divides a model between them: `2 processes (zero2)`."""
    process, divided = launched(), ""
    if _asked_for("DEEPSPEED"):
        divided = f" (zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')})"
    elif _asked_for("FSDP"):
        divided = " (fsdp)"
    return f"{process.num_processes} process{'es' if process.num_processes > 1 else ''}{divided}"


def refuse_fsdp(option: str, arguments: Any = None, instead: str = "") -> None:
    """Ends a run that would search with a model that FSDP divides: its processes would wait for each other.

    A search is shared out, so that processes have other numbers of forward passes, and FSDP wants each of these from
    all. Asked before anything is loaded.

    Args:
        option: what asks for the search.
        arguments: the `TrainingArguments`, which can ask for FSDP without accelerate's configuration.
        instead: what to set in place of it, if anything.

    Raises:
        InputError: FSDP is asked for.
    """
    if _asked_for("FSDP") or getattr(arguments, "fsdp", None):
        raise InputError(
            f"{option}: recommends while it trains, which takes the whole model in each process; FSDP divides it: "
            f"{f'{instead}, or ' if instead else ''}launch with ddp, zero2 or zero3"
        )


def _asked_for(plugin: str) -> bool:
    """Whether accelerate was launched with a plugin, `FSDP` or `DEEPSPEED`."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() == "true"


def leave() -> None:
    """Takes this process out of its launch; the last thing that it does when all its work is done.

    Where a process group is still there as Python ends, its threads may abort the process, and the launcher reports
    a failure of a run whose files are all written (pytorch#190489). Does nothing in a process of its own.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@cache
def _refuse_old_locks() -> None:
    """DeepSpeed compiles parts of itself at its first start; whoever finds a lock there waits until it is gone.

    Looked at once, as a process starts: a launch that is under way is no longer concerned.
    """
    from torch.utils.cpp_extension import get_default_build_root

    for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()).glob("**/lock"):
        with suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime > LONGEST_COMPILATION:
                raise InputError(
                    f"{lock}: left by a process that was killed while it compiled; delete it, or DeepSpeed waits for "
                    "it without end"
                )


def share(jobs: Sequence[Job]) -> Sequence[Job]:
    """The jobs of this process: every n-th of n processes, so that jobs ordered by size come out even."""
    process = launched()
    return jobs[process.process_index :: process.num_processes]


def in_shares(jobs: Sequence[Job], work: Callable[[Job], Result]) -> list[Result]:
    """`work(job)` for every job, each done by one process; every process gets all results, in the order of the jobs.

    All processes of the launch must make the call, with the same jobs. Results travel pickled.

    >>> in_shares([1, 2, 3], lambda job: 10 * job)
    [10, 20, 30]
    """
    from accelerate.utils import gather_object

    done = [(number, work(jobs[number])) for number in share(range(len(jobs)))]
    if launched().num_processes > 1:
        done = gather_object(done)
    return [result for _, result in sorted(done, key=lambda pair: pair[0])]
