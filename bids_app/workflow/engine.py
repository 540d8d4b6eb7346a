"""Workflow engine: runs the steps of a `Graph` as nipype nodes, cached, in parallel or on a cluster.

A node runs again only when the stamp of its step changed. Results and errors in the scratch folder count only if they
bear this stamp. The folders of all steps that will run, and of all steps that depend on them, are deleted before the
first one starts, so results of an earlier run are never reused by mistake. This module knows nothing about imaging.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bids_app import PLEASE_REPORT
from bids_app.bids.full_disk import CRASH_PROBE_BYTES, NO_SPACE, is_full, no_space, says_full
from bids_app.errors import (
    EXIT_SOFTWARE,
    BadDataError,
    InputOutputError,
    NeurostormError,
    TemporaryError,
    Terminated,
    UsageError,
)
from bids_app.files import MAX_OPTIONS_BYTES, check_plain, read_text
from bids_app.settings import CACHES, ResourceSettings
from bids_app.terminal import terminal_level
from bids_app.workflow.crashes import error_of_crash
from bids_app.workflow.graph import Graph, Step
from bids_app.workflow.log import Message, messages_of_step, read_messages
from bids_app.workflow.progress import Groups, Progress
from bids_app.workflow.scratch import RESULTS, check_owner

LOGGER = logging.getLogger(__name__)
ERROR_FILE = "error.json"
DONE_FILE = "done.json"
"""Written last: the stamp of the finished step, its run time and its memory."""
RESERVED_BYTES = 2**15
"""Size of the file that each step reserves for its error message, in case the disk is full."""

INTERRUPTIONS = (KeyboardInterrupt, Terminated)
pending_interruptions: list[BaseException] = []
"""Interruptions of steps in this process; nipype converts them to failures."""


@dataclass(frozen=True)
class Stamped:
    """A value with its hash; nipype hashes the text of this object instead of the value."""

    value: Any
    stamp: str

    def __repr__(self) -> str:
        return f"Stamped({self.stamp})"


@dataclass(frozen=True)
class StepError:
    """Error of a failed step, read from its node folder."""

    step: str
    message: str
    hint: str
    exit_code: int
    trace: str


def remove_caches(work_dir: Path) -> None:
    """Delete library caches and crash folders from a scratch folder, and the folder itself if it is then empty."""
    for folder in (work_dir / CACHES, *crash_folders(work_dir)):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        work_dir.rmdir()


def crash_folders(work_dir: Path) -> list[Path]:
    """List the folders for crash files of nipype in a scratch folder, one for each invocation."""
    return sorted(work_dir.glob("crash-*"))


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove crash folders in which there are no files."""
    for folder in folders:
        for place in (*folder.glob("*"), folder):
            with suppress(OSError):
                place.rmdir()  # fails if there is a file


def folder_size(folder: Path, patience_s: float = 2.0) -> tuple[int, bool]:
    """Return the size of the files in a folder (bytes), and False if not all of them were counted in time."""
    total, end = 0, time.monotonic() + patience_s
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
        if time.monotonic() > end:
            return total, False
    return total, True


def execute(function: str, given: Stamped, upstream: dict[str, Stamped]) -> Stamped:
    """Run one step in its node folder; write its error there, or its stamp and cost.

    Parameters
    ----------
    function : str
        ``module:name`` of the step.
    given : Stamped
        Plain arguments, with the stamp of the step.
    upstream : dict
        Arguments that are results of other steps.
    """
    out_dir = Path.cwd()
    module, name = function.split(":")
    started = time.monotonic()
    (out_dir / DONE_FILE).unlink(missing_ok=True)
    try:
        (out_dir / ERROR_FILE).write_bytes(b" " * RESERVED_BYTES)
        call = getattr(importlib.import_module(module), name)
        with messages_of_step(out_dir):
            value = call(**given.value, **{k: v.value for k, v in upstream.items()}, out_dir=out_dir)
        cost = {
            "seconds": round(time.monotonic() - started, 2),
            "peak_rss_mb": peak_rss_mb(),
        }
        _write_atomically(out_dir / DONE_FILE, {"stamp": given.stamp, "cost": cost})
        (out_dir / ERROR_FILE).unlink()
    except INTERRUPTIONS as interruption:
        pending_interruptions.append(interruption)
        raise
    except BaseException as error:
        _write_error(out_dir, given.stamp, error)
        raise
    return Stamped(value, given.stamp)


def peak_rss_mb() -> int:
    """Return the peak memory of this process or of a program that it has run, such as ANTs, MB: that of the larger."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024


def as_neurostorm_error(error: BaseException) -> NeurostormError | None:
    """Convert a system exception to an error with a hint; None if it is a bug."""
    if isinstance(error, NeurostormError):
        return error
    if isinstance(error, MemoryError):
        return TemporaryError("Out of memory.", "Raise --mem, lower --nprocs, or use --low-mem.")
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return no_space(Path(error.filename or Path.cwd()), "writing")
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return InputOutputError(f"{error.filename}: {error.strerror}.", "Check the disk, its quota and permissions.")
    if isinstance(error, OSError) and error.errno is not None:
        return InputOutputError(f"{error.strerror}.", "Check the disk, its quota and permissions.")
    return no_space(Path.cwd(), type(error).__name__) if says_full(error) else None


def _write_error(out_dir: Path, stamp: str, error: BaseException) -> None:
    known = as_neurostorm_error(error)
    if not isinstance(known, InputOutputError) and is_full(out_dir):
        known = no_space(out_dir, f"step {out_dir.name}")
    content = {
        "stamp": stamp,
        "message": known.message if known else f"{type(error).__name__}: {error}",
        "hint": known.hint if known else f"This is an internal error. {PLEASE_REPORT} Attach the crash file.",
        "exit_code": known.exit_code if known else EXIT_SOFTWARE,
        "trace": "".join(traceback.format_exception(error))[-RESERVED_BYTES // 8 :],
    }
    with suppress(OSError):
        with (out_dir / ERROR_FILE).open("r+b") as file:
            file.write(json.dumps(content).encode())
        for path in out_dir.iterdir():  # delete incomplete results to free space
            if path.name != ERROR_FILE and not path.name.startswith("_"):  # keep files of nipype
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is complete or absent."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def call_step(function, given, use_gpu=False, **upstream):  # nipype executes the source text of this function
    """Run a step inside a node; nipype counts nodes with ``use_gpu`` against its ``n_gpu_procs``."""
    from bids_app.workflow.engine import execute

    return execute(function, given, upstream)


class Engine:
    """Runner of a graph with nipype.

    Parameters
    ----------
    graph : Graph
    work_dir : pathlib.Path
        Scratch folder with the cached results of the steps.
    resources : ResourceSettings
        Available processes, threads and memory.
    name : str
        Name of the workflow, and of its folder in ``work_dir``.
    """

    def __init__(self, graph: Graph, work_dir: Path, resources: ResourceSettings, name: str = RESULTS) -> None:
        self._graph = graph
        self._resources = resources
        self._name = name
        self._root = work_dir / name
        self._killed: dict[str, signal.Signals] = {}
        """Signals that ended the workers of steps, by step."""

    def _processors(self, wanted: int | None) -> int:
        """Return the processors of a step; with ``--low-mem`` all, so that steps run one at a time."""
        if self._resources.low_mem:
            return self._resources.n_procs
        return min(wanted or self._resources.omp_threads, self._resources.n_procs)

    def run(self, *, crash_dir: Path, stop_on_first_crash: bool = False, groups: Groups | None = None) -> None:
        """Run all steps; only the steps that depend on a failed step are skipped. `error_of` returns the errors.

        Parameters
        ----------
        crash_dir : pathlib.Path
            Folder for the crash files of nipype.
        stop_on_first_crash : bool
            Start no more steps after the first failure.
        groups : Groups, optional
            Called with each step that ends; not with plugins that submit the whole graph, such as SLURMGraph.
        """
        from bids_app.workflow.pool import silence_nipype  # nipype takes a second to import

        silence_nipype(terminal_level())
        self.remove_outdated()
        reused = {name for name, step in self._graph.steps.items() if not step.always and self._is_done(step)}
        if reused:
            LOGGER.info("%d of %d steps are reused from the scratch folder.", len(reused), len(self._graph.steps))
        left = {name: step for name, step in self._graph.steps.items() if name not in reused}
        if not left:
            return
        workflow = self._workflow(left)
        workflow.config["execution"] = {
            "crashdump_dir": str(crash_dir),
            "crashfile_format": "txt",
            "stop_on_first_crash": str(stop_on_first_crash).lower(),
            "poll_sleep_duration": "0" if self._resources.plugin is None else "2",  # our plugins wait for results
            "job_finished_timeout": "120",  # s, for slow shared file systems of clusters
            "remove_unnecessary_outputs": "false",
            "check_version": "false",
            "create_report": "false",
        }
        cwd = os.getcwd()
        try:
            with Progress(left, groups, reused) as progress:
                plugin, plugin_args = self._plugin(left, progress)
                with stopped_when_interrupted(plugin):
                    workflow.run(plugin=plugin, plugin_args=plugin_args)
        except Exception as error:
            if not any(crash_dir.glob("crash-*")):
                known = as_neurostorm_error(error)  # an error of nipype, not of a step
                if known:
                    raise known from error
                raise
            LOGGER.debug("Some steps failed.", exc_info=True)
        finally:
            os.chdir(cwd)

    def error_of(self, step: Step) -> StepError | None:
        """Return the first error among a step and its ancestors; None if all of them finished."""
        if self._is_done(step):
            return None
        unfinished = [needed for needed in self._graph.ancestors(step) if not self._is_done(needed)]
        left = (self._read_error(needed) for needed in unfinished)
        return next(filter(None, left), None) or self._error_of_killed(unfinished[0])

    def costs(self, *steps: Step) -> dict[str, dict[str, float]]:
        """Return run time (s) and peak memory (MB) of steps and their ancestors, from their last run."""
        needed = {parent.name: parent for step in steps for parent in self._graph.ancestors(step)}
        done = {name: self._read(step, DONE_FILE) for name, step in needed.items()}
        return {name: content["cost"] for name, content in done.items() if content}

    def messages_of(self, *steps: Step) -> list[Message]:
        """Return the messages of steps and their ancestors, from their last run."""
        names = {parent.name for step in steps for parent in self._graph.ancestors(step)}
        return [message for name in names for message in read_messages(self._root / name)]

    def result_of(self, step: Step) -> Any:
        """Return the result of a finished step."""
        return self._stamped_result_of(step).value

    def _stamped_result_of(self, step: Step) -> Stamped:
        from nipype.utils.filemanip import loadpkl

        return loadpkl(self._result_file(step)).outputs.out

    def remove_outdated(self) -> None:
        """Delete the scratch folders of steps without a valid result, and of all steps that depend on them.

        Raises
        ------
        CannotCreateError
            A result belongs to another user, who could have it execute code here.
        """
        outdated: set[str] = set()
        for step in self._graph.steps.values():  # each comes after those that it needs
            needs_outdated = any(parent.name in outdated for parent in step.upstream.values())
            if needs_outdated or not self._is_done(step):
                outdated.add(step.name)
                with suppress(FileNotFoundError):
                    self._remove_folder(step.name)
            else:
                for path in (self._root / step.name, self._result_file(step)):
                    check_owner(path)

    def remove(self, last: Iterable[Step], keep: Iterable[Step] = ()) -> None:
        """Delete the scratch folders of steps and of their ancestors, except those of ``keep`` and their ancestors."""
        kept = {needed.name for step in keep for needed in self._graph.ancestors(step)}
        for name in {needed.name for step in last for needed in self._graph.ancestors(step)} - kept:
            with suppress(OSError):
                self._remove_folder(name)
        for folder in (self._root, self._root.parent):
            with suppress(OSError):
                folder.rmdir()  # fails if other files are left

    def _remove_folder(self, name: str) -> None:
        folder = self._root / name
        (folder / DONE_FILE).unlink(missing_ok=True)  # first, so that no part of a folder counts as a result
        shutil.rmtree(folder)

    def _workflow(self, steps: Mapping[str, Step]) -> Any:
        """Make a workflow of steps; those that they need, but that are not among them, have a result."""
        from nipype.interfaces.utility import Function
        from nipype.pipeline import engine as pe

        workflow = pe.Workflow(name=self._name, base_dir=str(self._root.parent))
        nodes: dict[str, Any] = {}
        known = cache(self._stamped_result_of)
        for step in steps.values():
            names = ["function", "given", *(["use_gpu"] if step.gpu else []), *step.upstream]
            node = pe.Node(
                Function(input_names=names, output_names=["out"], function=call_step),
                name=step.name,
                mem_gb=min(step.memory_gb, self._resources.memory_gb),
                n_procs=self._processors(step.n_procs),
            )
            node.inputs.function = f"{step.function.__module__}:{step.function.__qualname__}"
            node.inputs.given = Stamped(dict(step.given), step.stamp)
            if step.gpu:
                node.inputs.use_gpu = True
            if step.always:
                node.overwrite = True
            workflow.add_nodes([node])
            for argument, parent in step.upstream.items():
                if parent.name in nodes:
                    workflow.connect(nodes[parent.name], "out", node, argument)
                else:
                    setattr(node.inputs, argument, known(parent))
            nodes[step.name] = node
        return workflow

    def _result_file(self, step: Step) -> Path:
        return self._root / step.name / f"result_{step.name}.pklz"

    def _read(self, step: Step, file: str) -> dict[str, Any] | None:
        """Read a JSON file of a step; None if it is missing or has another stamp."""
        try:
            content = json.loads((self._root / step.name / file).read_text())
        except (OSError, ValueError):
            return None
        return content if content.pop("stamp", None) == step.stamp else None

    def _is_done(self, step: Step) -> bool:
        """Check if a step has a result with its stamp, which nipype considers complete, too."""
        if self._read(step, DONE_FILE) is None or not self._result_file(step).exists():
            return False
        hashes = (self._root / step.name).glob("_0x*.json")
        return any(not path.name.endswith("_unfinished.json") for path in hashes)

    def _error_of_killed(self, step: Step) -> StepError:
        if is_full(self._root.parent, CRASH_PROBE_BYTES):
            full = no_space(self._root.parent, f"step {step.name}")
            return StepError(step.name, full.message, full.hint, full.exit_code, "")
        number = self._killed.get(step.name, signal.SIGKILL)
        lost = error_of_crash(f"step {step.name}", number, "Raise --mem or lower --nprocs")
        return StepError(step.name, lost.message, lost.hint, lost.exit_code, "")

    def _read_error(self, step: Step) -> StepError | None:
        content = self._read(step, ERROR_FILE)
        return StepError(step=step.name, **content) if content else None

    def _plugin(self, steps: Mapping[str, Step], progress: Progress) -> tuple[Any, dict[str, Any]]:
        from bids_app.workflow.pool import InOrderPlugin, RobustMultiProcPlugin, plugin_of_nipype

        resources = self._resources
        if resources.plugin is not None:
            os.environ.setdefault("LOGNAME", str(os.getuid()))  # part of nipype job names; missing in containers
            name, arguments = read_plugin_file(resources.plugin)
            arguments["order"] = {name: place for place, name in enumerate(steps)}
            if not name.endswith("Graph"):  # plugins that submit all steps at once report none of them
                arguments["status_callback"] = progress
            return plugin_of_nipype(name, arguments), {}
        arguments = {
            "pending_interruptions": pending_interruptions,
            "order": {name: place for place, name in enumerate(steps)},
            "status_callback": progress,
        }
        if resources.n_procs == 1 or len(steps) == 1 or all(step.short for step in steps.values()):
            return InOrderPlugin(plugin_args=arguments), {}
        arguments |= {
            "killed": self._killed,
            "short": {name for name, step in steps.items() if step.short and not step.always},
            "n_procs": resources.n_procs,
            "memory_gb": resources.memory_gb,
            "n_gpu_procs": 1,
            "raise_insufficient": False,  # GPU steps may need more processors than the one GPU slot
            "mp_context": "forkserver",
            "log_level": terminal_level(),
        }
        return RobustMultiProcPlugin(plugin_args=arguments), {}


@contextmanager
def stopped_when_interrupted(plugin: Any) -> Iterator[None]:
    """Stop the worker processes of a plugin if the run is interrupted or terminated."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        if hasattr(plugin, "stop"):  # plugins of nipype (--use-plugin) have none
            plugin.stop()
        raise


def read_plugin_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a nipype plugin file.

    Parameters
    ----------
    path : pathlib.Path
        YAML with ``plugin`` and ``plugin_args``.

    Returns
    -------
    tuple
        Name and arguments of the plugin.

    Raises
    ------
    UsageError
        The file is missing or invalid.
    """
    import yaml

    try:
        content = yaml.safe_load(read_text(path, MAX_OPTIONS_BYTES))
        check_plain(content, str(path))
        return str(content["plugin"]), dict(content.get("plugin_args") or {})
    except (BadDataError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: not a nipype plugin file ({error}).", "Write YAML with 'plugin: NAME' and 'plugin_args: {...}'."
        ) from error
