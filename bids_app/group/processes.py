"""A second process of the group level, which compares runs and draws figures while the first one writes tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from bids_app.bids.processes import end_with_main_process

MAX_SERIAL = 64
"""Maximum participants for which no other process is started."""


class AtOnce(Executor):
    """Calls a function when it is submitted; an error is raised there."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function, and return its result as a `Future`."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


AT_ONCE = AtOnce()


@contextmanager
def second_process(n_participants: int, n_procs: int) -> Iterator[Executor]:
    """Yield an executor of one process, or `AT_ONCE` for few participants and for one process."""
    if n_participants <= MAX_SERIAL or n_procs < 2:
        yield AT_ONCE
        return
    with ProcessPoolExecutor(1, initializer=end_with_main_process) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
