"""The same work on many shards, by several processes, with results in the order of the shards."""

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
    """machine.workers, or as many as the cores that this process may use."""
    if machine.workers is not None:
        return machine.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """A worker whose parent is killed would wait for its next shard for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def ctrl_c_later() -> Iterator[None]:
    """Processes that start in here never hear of Ctrl-C, so that the parent alone says that it stopped."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ordered_map(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """work(item) of each item, in the items' order, so that the number of workers never shows in what is made of it.

    At most two items a worker are under way or wait to be taken, so that memory does not grow with their number. With
    one item or one worker all of it happens in this process. `work` and the items are pickled.
    """
    items = iter(items)
    first = list(islice(items, 2))
    if workers == 1 or len(first) < 2:
        yield from map(work, first)
        yield from map(work, items)
        return
    # Not forked: a fork of a process with threads (pyarrow's, for one) may wait for ever for a lock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        try:
            with ctrl_c_later():
                pending = deque(pool.submit(work, item) for item in [*first, *islice(items, 2 * workers - 2)])
            while pending:
                yield pending.popleft().result()
                with ctrl_c_later():
                    pending += [pool.submit(work, item) for item in islice(items, 1)]
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most often for want of memory. Set machine.workers to a smaller number"
            ) from None
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()  # or the end would wait until their shards are done
            raise
