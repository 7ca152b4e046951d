"""Does the same work on many shards in several processes, with the results in the order of the shards."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from stages.core.params import Machine
from stages.runtime.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_workers(machine: Machine) -> int:
    """Returns machine.workers, or if it is null the number of cores that this process may use."""
    if machine.workers is not None:
        return machine.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Ends this worker when its parent ends. If the parent is killed, it would wait for its next shard for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Processes that start inside ignore Ctrl-C, so that only the parent says that it stopped."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ordered_map(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields work(item) for each item, in the order of the items, so that the number of workers changes no result.

    At most two items a worker are in work or waiting, so that memory does not grow with the number of items. With one
    item or one worker, everything happens in this process.

    Args:
        work: a function that can be pickled, like the items and results.

    Raises:
        UserError: a worker was killed.
    """
    items = iter(items)
    first = list(islice(items, 2))
    if workers == 1 or len(first) < 2:
        yield from map(work, first)
        yield from map(work, items)
        return
    # Not "fork": a fork of a process with threads, such as pyarrow's, may wait for a lock for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        try:
            with ctrl_c_blocked():
                pending = deque(pool.submit(work, item) for item in [*first, *islice(items, 2 * workers - 2)])
            while pending:
                yield pending.popleft().result()
                with ctrl_c_blocked():
                    pending += [pool.submit(work, item) for item in islice(items, 1)]
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most often because memory ran out. Set machine.workers to a lower number"
            ) from None
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()  # leaving the pool would wait until their shards are done
            raise
