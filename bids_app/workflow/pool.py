"""MultiProc plugin of nipype that survives killed worker processes.

The original plugin waits forever for a worker that was killed (usually out of memory), and the pool loses all other
nodes that were running. Here each lost node is retried once in a pool of its own, so that only the faulty node fails.
"""

from __future__ import annotations

import gc
import logging
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nipype.pipeline import plugins
from nipype.pipeline.plugins.base import DistributedPluginBase, PluginBase
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node
from nipype.pipeline.plugins.tools import report_crash

from bids_app.bids.full_disk import hide_errors_of_freed_files
from bids_app.bids.processes import end_with_main_process
from bids_app.errors import UsageError
from bids_app.terminal import EscapedStream, start_terminal_log
from bids_app.workflow.fork_server import start_fork_server

GPU_SLOTS = re.compile(r", Free GPU slot:\d+/\d+")
NOT_STARTED = (BrokenProcessPool, OSError, EOFError)
"""Errors of starting a job: a worker, or the fork server that starts workers, was killed."""
START_ATTEMPTS, START_SECONDS = 5, 0.2
WAIT_SECONDS = 2.0
"""Longest time between two looks at the steps."""
WORKER_DIED = "The worker process was ended by {}; if by SIGKILL, probably out of memory.\n"


def silence_nipype(level: int) -> None:
    """Show messages of nipype once, in our log, only at debug level, and without those on the slots of GPUs."""
    for name in ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.addFilter(without_gpu_slots)
        logger.setLevel(logging.INFO if level <= logging.DEBUG else logging.CRITICAL)


def without_gpu_slots(record: logging.LogRecord) -> bool:
    """Remove the slots of GPUs, which are one by definition here, from a message; False drops the message."""
    record.msg, record.args = GPU_SLOTS.sub("", record.getMessage()), ()
    return "GPU" not in record.msg


def start_worker(cwd: str, log_level: int) -> None:
    """Set up a worker process as nipype does, without its logs; it ends when the main process is killed."""
    end_with_main_process()
    hide_errors_of_freed_files()
    sys.stdout, sys.stderr = EscapedStream(sys.stdout), EscapedStream(sys.stderr)  # type: ignore[assignment]
    start_terminal_log(log_level if log_level < logging.INFO else logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: the main process stops its workers
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # kill workers first: the main process reports it
    process_initializer(cwd)
    silence_nipype(log_level)


def kill_workers(pool: ProcessPoolExecutor) -> None:
    """Kill the worker processes of a pool; its jobs fail."""
    for process in tuple((pool._processes or {}).values()):
        process.kill()


def signal_that_ended(workers: Mapping[int, Any]) -> signal.Signals:
    """Return the signal that ended a worker of a pool; the pool itself ends the others with SIGTERM."""
    codes = [worker.exitcode for worker in workers.values()]
    numbers = [-code for code in codes if code is not None and code < 0 and -code != signal.SIGTERM]
    return signal.Signals(numbers[0]) if numbers else signal.SIGKILL


class InMethodOrder:
    """Mixin of nipype's plugins that submit nodes one by one."""

    plugin_args: dict[str, Any]
    procs: list[Any]
    depidx: Any
    refidx: Any

    def _generate_dependency_list(self, graph: Any) -> None:
        """Sort nodes in the order of the method: the nodes of the first run come first, so that runs end one by one."""
        super()._generate_dependency_list(graph)  # type: ignore[misc]
        order = sorted(range(len(self.procs)), key=lambda i: self.plugin_args["order"][self.procs[i].name])
        self.procs = [self.procs[i] for i in order]
        self.depidx = self.depidx.tocsr()[order][:, order].tolil()
        self.refidx = self.depidx.astype(int)


class RobustMultiProcPlugin(InMethodOrder, MultiProcPlugin):
    """`MultiProcPlugin` whose nodes fail instead of hanging when their worker is killed."""

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        start_fork_server()
        super().__init__(plugin_args=plugin_args)
        self.pool = self._new_pool(self.processors)
        self._gpu_pool = self._new_pool(1)
        """One worker for all steps that use the GPU, where it keeps the encoder, while the others preprocess."""
        self._retries: dict[int, tuple[Any, bool]] = {}
        self._names: dict[int, str] = {}
        self._retry_pools: list[ProcessPoolExecutor] = []
        self._stopped = False
        self._arrived = threading.Event()
        """A step has ended."""

    def _prerun_check(self, graph: Any) -> None:
        super()._prerun_check(graph)
        gc.collect()
        gc.freeze()  # nipype collects garbage on every poll, which is slow with many imported modules

    def _postrun_check(self) -> None:
        gc.unfreeze()
        self._gpu_pool.shutdown()
        super()._postrun_check()

    def _new_pool(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=workers,
            initializer=start_worker,
            initargs=(self._cwd, self.plugin_args.get("log_level", logging.INFO)),
            mp_context=get_context(self.plugin_args.get("mp_context")),
        )

    def stop(self) -> None:
        """Kill all worker processes, when the run is interrupted."""
        self._stopped = True
        for pool in (self.pool, self._gpu_pool, *self._retry_pools):
            kill_workers(pool)
            pool.shutdown(wait=False, cancel_futures=True)

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        """Start the steps that are ready, and wait until one has ended."""
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        if self.pending_tasks:
            self._arrived.wait(WAIT_SECONDS)
            self._arrived.clear()

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        taskid = self._taskid
        if node.name in self.plugin_args.get("short", ()):
            self._run_here(node, updatehash, taskid)
            return taskid
        self._retries[taskid] = (node, updatehash)
        if node.is_gpu_node():
            self._gpu_pool, future = self._submitted_to(self._gpu_pool, 1, node, updatehash, taskid)
            workers = self._gpu_pool._processes or {}
        else:
            self.pool, future = self._submitted_to(self.pool, self.processors, node, updatehash, taskid)
            workers = self.pool._processes or {}
        self._task_obj[taskid] = future
        future.add_done_callback(lambda done: self._collect(taskid, done, workers))
        return taskid

    def _submitted_to(
        self, pool: ProcessPoolExecutor, workers: int, *job: Any
    ) -> tuple[ProcessPoolExecutor, Future[dict[str, Any]]]:
        """Submit a job to a pool, or to a new one if a worker of it was killed; return the pool."""
        try:
            return pool, pool.submit(run_node, *job)
        except NOT_STARTED:
            kill_workers(pool)  # or one of them could still take this job
            return self._submitted(workers, *job)

    def _run_here(self, node: Any, updatehash: bool, taskid: int) -> None:
        """Run a short step in this process."""
        result = run_node(node, updatehash, taskid)
        if self.plugin_args["pending_interruptions"]:
            raise self.plugin_args["pending_interruptions"].pop()
        self._task_obj[taskid] = None
        self._end(taskid, result)

    def _end(self, taskid: int, result: dict[str, Any]) -> None:
        """Record the result of a job."""
        self._taskresult[taskid] = result
        self._arrived.set()

    def _submitted(self, workers: int, *job: Any) -> tuple[ProcessPoolExecutor, Future[dict[str, Any]]]:
        """Submit a job to a new pool; also where the fork server was killed, which is noticed after a moment only."""
        for attempt in range(START_ATTEMPTS):
            pool = self._new_pool(workers)
            try:
                return pool, pool.submit(run_node, *job)
            except NOT_STARTED:
                if attempt == START_ATTEMPTS - 1:
                    raise
                time.sleep(START_SECONDS)
        raise AssertionError

    def _collect(self, taskid: int, done: Future[dict[str, Any]], workers: Mapping[int, Any]) -> None:
        """Keep the result of a job; repeat a job whose worker was killed, once, in a pool of its own."""
        if done.cancelled() or self._stopped:
            return
        if done.exception() is None:
            self._end(taskid, done.result())
        elif taskid in self._retries:
            node, updatehash = self._retries.pop(taskid)
            try:
                alone, retry = self._submitted(1, node, updatehash, taskid)
            except NOT_STARTED:
                self._lose(taskid, signal.SIGKILL)
                return
            self._names[taskid] = node.name
            self._retry_pools.append(alone)
            own = alone._processes or {}  # the pool forgets them at its shutdown
            retry.add_done_callback(lambda second: self._collect(taskid, second, own))
            alone.shutdown(wait=False)
        else:
            self._lose(taskid, signal_that_ended(workers))

    def _lose(self, taskid: int, number: signal.Signals) -> None:
        """Have a job fail whose worker was ended by a signal."""
        if taskid in self._names:
            self.plugin_args.setdefault("killed", {})[self._names[taskid]] = number
        died = WORKER_DIED.format(number.name)
        self._end(taskid, {"result": None, "traceback": [died], "taskid": taskid})


def plugin_of_nipype(name: str, arguments: dict[str, Any]) -> Any:
    """Return a plugin of nipype by name that submits nodes in the order of the method, if it submits them one by one.

    Raises
    ------
    UsageError
        nipype has no such plugin.
    """
    kind = getattr(plugins, f"{name}Plugin", None)
    if kind is None:
        raise UsageError(
            f"--use-plugin: nipype has no plugin {name}.", "Choose SLURM, SGE, PBS or another one of nipype."
        )
    if issubclass(kind, DistributedPluginBase):
        kind = type(kind.__name__, (InMethodOrder, kind), {})
    return kind(plugin_args=arguments)


class InOrderPlugin(PluginBase):
    """Run nodes one at a time in this process, in the order of the method; skip nodes that depend on a failed node."""

    def stop(self) -> None:
        """Do nothing: there are no worker processes."""

    def run(self, graph: Any, config: dict[str, Any], updatehash: bool = False) -> None:
        """Run a nipype graph.

        Raises
        ------
        RuntimeError
            Some nodes failed; their crash files say why.
        KeyboardInterrupt, Terminated
            A node was interrupted.
        """
        stop = config["execution"]["stop_on_first_crash"] == "true"
        failed: set[Any] = set()
        for node in sorted(graph.nodes(), key=lambda node: self.plugin_args["order"][node.name]):
            if failed.intersection(graph.predecessors(node)) or (stop and failed):
                failed.add(node)
                continue
            self._status_callback(node, "start")
            try:
                node.run(updatehash=updatehash)
            except Exception:
                if self.plugin_args["pending_interruptions"]:
                    raise self.plugin_args["pending_interruptions"].pop() from None
                report_crash(node)
                failed.add(node)
                self._status_callback(node, "exception")
            else:
                self._status_callback(node, "end")
        if failed:
            raise RuntimeError(f"{len(failed)} steps failed or were not run.")
