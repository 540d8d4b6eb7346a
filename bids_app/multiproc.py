"""Nipype's MultiProc plugin, made to survive a worker that the system killed.

The stock plugin waits forever for a worker that died (most often out of memory): its callback raises where nobody
listens. Here the death becomes that node's failure, and a new pool takes the nodes that are left.
"""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer

WORKER_DIED = (
    "MemoryError: a worker process was killed, most often because memory ran out. "
    "Give the run more memory (--mem), or fewer processes (--nprocs).\n"
)


class SturdyMultiProcPlugin(MultiProcPlugin):
    """`MultiProcPlugin` whose nodes fail, instead of hanging, when their worker dies."""

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        try:
            return super()._submit_job(node, updatehash)
        except BrokenProcessPool:
            self.pool = ProcessPoolExecutor(
                max_workers=self.processors,
                initializer=process_initializer,
                initargs=(self._cwd,),
                mp_context=get_context(self.plugin_args.get("mp_context")),
            )
            self._taskid -= 1
            return super()._submit_job(node, updatehash)

    def _async_callback(self, args: Future[Any]) -> None:
        if args.exception() is None:
            super()._async_callback(args)
            return
        # a future can be done before it was filed: then it is the newest one
        taskid = next((key for key, future in list(self._task_obj.items()) if future is args), self._taskid)
        self._taskresult[taskid] = {"result": None, "traceback": [WORKER_DIED], "taskid": taskid}
