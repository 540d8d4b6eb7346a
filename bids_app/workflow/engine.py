"""Nipype as the workflow engine: each step of a `Graph` becomes a node that is cached, run in parallel or on a cluster.

A node runs again exactly when its step's stamp changed. How a step ended is judged by that stamp alone, so what an
earlier run left in the same scratch folder never passes for a result of this one. Nothing about brains may enter here.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.errors import EXIT_SOFTWARE, InputOutputError, NeurostormError, TemporaryError, UsageError
from bids_app.settings import CACHES, ResourceSettings
from bids_app.workflow.graph import Graph, Step
from bids_app.workflow.progress import Groups, Progress

LOGGER = logging.getLogger(__name__)
ERROR_FILE = "error.json"
DONE_FILE = "done.json"
"""Written last: the stamp of the step that was finished, and what it cost."""
RESERVED_BYTES = 2**15
"""What a step sets aside for its error, so that it can be written on a full disk."""
LITTLE_ROOM = 2**20
"""Free bytes in scratch below which a step that was killed is taken to have found no space."""


@dataclass(frozen=True)
class Stamped:
    """A value with a hash that stands for it; nipype hashes its text."""

    value: Any
    stamp: str

    def __repr__(self) -> str:
        return f"Stamped({self.stamp})"


@dataclass(frozen=True)
class StepError:
    """Why a step failed, as its node left it on disk."""

    step: str
    message: str
    hint: str
    exit_code: int
    trace: str


def remove_caches(work_dir: Path) -> None:
    """Delete what libraries cached in a scratch folder and what killed runs left, and the folder if that was all."""
    for folder in (work_dir / CACHES, *work_dir.glob("crash-*")):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        work_dir.rmdir()


def execute(function: str, given: Stamped, upstream: dict[str, Stamped]) -> Stamped:
    """Run one step in the node's folder; leave its error there when it fails, and its stamp and cost when it does not.

    Parameters
    ----------
    function : str
        ``module:name`` of the step.
    given : Stamped
        Plain arguments, with the step's stamp.
    upstream : dict
        Arguments that other steps returned.
    """
    out_dir = Path.cwd()
    module, name = function.split(":")
    started = time.monotonic()
    (out_dir / DONE_FILE).unlink(missing_ok=True)
    try:
        (out_dir / ERROR_FILE).write_bytes(b" " * RESERVED_BYTES)
        call = getattr(importlib.import_module(module), name)
        value = call(**given.value, **{k: v.value for k, v in upstream.items()}, out_dir=out_dir)
        cost = {
            "seconds": round(time.monotonic() - started, 2),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        _write_whole(out_dir / DONE_FILE, {"stamp": given.stamp, "cost": cost})
        (out_dir / ERROR_FILE).unlink()
    except BaseException as error:
        _leave_error(out_dir, given.stamp, error)
        raise
    return Stamped(value, given.stamp)


def as_neurostorm_error(error: BaseException) -> NeurostormError | None:
    """The user's error behind an exception of the system, if there is one."""
    if isinstance(error, NeurostormError):
        return error
    if isinstance(error, MemoryError):
        return TemporaryError(
            "Memory ran out.", "Give the run more (--mem), or fewer processes (--nprocs), or use --low-mem."
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return InputOutputError(f"{error.filename}: {error.strerror}.", "Check the disk, its quota and permissions.")
    if isinstance(error, OSError) and error.errno is not None:
        return InputOutputError(f"{error.strerror}.", "Check the disk, its quota and permissions.")
    return None


def _leave_error(out_dir: Path, stamp: str, error: BaseException) -> None:
    known = as_neurostorm_error(error)
    content = {
        "stamp": stamp,
        "message": known.message if known else f"{type(error).__name__}: {error}",
        "hint": known.hint if known else "This is a defect of the program: please report it with the crash file.",
        "exit_code": known.exit_code if known else EXIT_SOFTWARE,
        "trace": "".join(traceback.format_exception(error))[-RESERVED_BYTES // 8 :],
    }
    with suppress(OSError):
        with (out_dir / ERROR_FILE).open("r+b") as file:
            file.write(json.dumps(content).encode())
        for path in out_dir.iterdir():  # what a step that failed has written is of no use, and takes space
            if path.name != ERROR_FILE and not path.name.startswith("_"):  # nipype's own
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that it is whole or not there."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def call_step(function, given, use_gpu=False, **upstream):  # nipype runs this function's source text on its own
    """What each node runs; by ``use_gpu`` nipype tells which nodes count against its ``n_gpu_procs``."""
    from bids_app.workflow.engine import execute

    return execute(function, given, upstream)


class Engine:
    """Runs a graph with nipype.

    Parameters
    ----------
    graph : Graph
    work_dir : pathlib.Path
        Scratch folder; the results of steps are cached here.
    resources : ResourceSettings
        Processes, threads and memory that may be used.
    name : str
        Name of the workflow, and of its folder in ``work_dir``.
    """

    def __init__(self, graph: Graph, work_dir: Path, resources: ResourceSettings, name: str = "neurostorm") -> None:
        self._graph = graph
        self._resources = resources
        self._name = name
        self._root = work_dir / name

    def _processors(self, wanted: int | None) -> int:
        """Processors that a step is counted with; with ``--low-mem`` all, so that no other step runs beside it."""
        if self._resources.low_mem:
            return self._resources.n_procs
        return min(wanted or self._resources.omp_threads, self._resources.n_procs)

    def run(self, *, crash_dir: Path, stop_on_first_crash: bool = False, groups: Groups | None = None) -> None:
        """Run all steps; a step that fails takes only those with it that need it. Ask `error_of` afterwards.

        Parameters
        ----------
        crash_dir : pathlib.Path
            Where nipype leaves its crash files.
        stop_on_first_crash : bool
            Start nothing more after the first failure.
        groups : Groups, optional
            Told of each step that ends; not with ``--use-plugin``.
        """
        from bids_app.workflow.pool import quieten_nipype  # nipype takes a second to import

        quieten_nipype(LOGGER.getEffectiveLevel())
        workflow = self._workflow()
        workflow.config["execution"] = {
            "crashdump_dir": str(crash_dir),
            "crashfile_format": "txt",
            "stop_on_first_crash": str(stop_on_first_crash).lower(),
            "poll_sleep_duration": "0.2" if self._resources.plugin is None else "2",
            "job_finished_timeout": "120",  # s that a shared file system may take to show a cluster's result
            "remove_unnecessary_outputs": "false",
            "check_version": "false",
            "create_report": "false",
        }
        cwd = os.getcwd()
        try:
            with Progress(len(self._graph.steps), groups) as progress:
                plugin, plugin_args = self._plugin(progress)
                with stopped_when_interrupted(plugin):
                    workflow.run(plugin=plugin, plugin_args=plugin_args)
        except Exception as error:
            if not any(crash_dir.glob("crash-*")):
                known = as_neurostorm_error(error)  # no step failed, but the engine itself
                if known:
                    raise known from error
                raise
            LOGGER.debug("Some steps failed.", exc_info=True)
        finally:
            os.chdir(cwd)

    def error_of(self, step: Step) -> StepError | None:
        """The first error among a step and all that it needs, in the order of the method; None when all is well."""
        if self._is_done(step):
            return None
        unfinished = [needed for needed in self._graph.ancestors(step) if not self._is_done(needed)]
        left = (self._read_error(needed) for needed in unfinished)
        return next(filter(None, left), None) or self._was_killed(unfinished[0])

    def costs(self, *steps: Step) -> dict[str, dict[str, float]]:
        """Seconds and peak memory (MB) of steps and of all that they need, as last run."""
        needed = {parent.name: parent for step in steps for parent in self._graph.ancestors(step)}
        done = {name: self._read(step, DONE_FILE) for name, step in needed.items()}
        return {name: content["cost"] for name, content in done.items() if content}

    def result_of(self, step: Step) -> Any:
        """What a step returned, once the graph has run."""
        from nipype.utils.filemanip import loadpkl

        return loadpkl(self._result_file(step)).outputs.out.value

    def remove(self, last: Iterable[Step]) -> None:
        """Delete the scratch of steps and of all that they need, and nothing else that may lie beside it."""
        for name in {needed.name for step in last for needed in self._graph.ancestors(step)}:
            shutil.rmtree(self._root / name, ignore_errors=True)
        for folder in (self._root, self._root.parent):
            with suppress(OSError):
                folder.rmdir()  # stays when something else is in it

    def _workflow(self) -> Any:
        from nipype.interfaces.utility import Function
        from nipype.pipeline import engine as pe

        workflow = pe.Workflow(name=self._name, base_dir=str(self._root.parent))
        nodes: dict[str, Any] = {}
        for step in self._graph.steps.values():
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
                workflow.connect(nodes[parent.name], "out", node, argument)
            nodes[step.name] = node
        return workflow

    def _result_file(self, step: Step) -> Path:
        return self._root / step.name / f"result_{step.name}.pklz"

    def _read(self, step: Step, file: str) -> dict[str, Any] | None:
        """What this very step left in a file; None for what a step with another stamp left."""
        try:
            content = json.loads((self._root / step.name / file).read_text())
        except (OSError, ValueError):
            return None
        return content if content.pop("stamp", None) == step.stamp else None

    def _is_done(self, step: Step) -> bool:
        return self._read(step, DONE_FILE) is not None and self._result_file(step).exists()

    def _was_killed(self, step: Step) -> StepError:
        if shutil.disk_usage(self._root.parent).free < LITTLE_ROOM:
            full = InputOutputError(
                f"{self._root.parent}: no space left for the step {step.name}.",
                "Free some space, or give --work-dir on another disk; what is done is kept.",
            )
            return StepError(step.name, full.message, full.hint, full.exit_code, "")
        lost = TemporaryError(
            f"The step {step.name} was killed, probably out of memory.",
            "Give the run more memory (--mem) or fewer processes (--nprocs), and start it again: what is done is kept.",
        )
        return StepError(step.name, lost.message, lost.hint, lost.exit_code, "")

    def _read_error(self, step: Step) -> StepError | None:
        content = self._read(step, ERROR_FILE)
        return StepError(step=step.name, **content) if content else None

    def _plugin(self, progress: Progress) -> tuple[Any, dict[str, Any]]:
        resources = self._resources
        if resources.plugin is not None:
            os.environ.setdefault("LOGNAME", str(os.getuid()))  # nipype names jobs after it, and containers lack it
            return read_plugin_file(resources.plugin)
        from bids_app.workflow.pool import InOrderPlugin, SturdyMultiProcPlugin

        arguments: dict[str, Any] = {
            "order": {name: place for place, name in enumerate(self._graph.steps)},
            "status_callback": progress,
        }
        if resources.n_procs == 1 or len(self._graph.steps) == 1:
            return InOrderPlugin(plugin_args=arguments), {}
        arguments |= {
            "n_procs": resources.n_procs,
            "memory_gb": resources.memory_gb,
            "n_gpu_procs": 1,
            "raise_insufficient": False,  # a step on a GPU may want more processors than the one GPU slot
            "mp_context": "forkserver",
            "log_level": LOGGER.getEffectiveLevel(),
        }
        return SturdyMultiProcPlugin(plugin_args=arguments), {}


@contextmanager
def stopped_when_interrupted(plugin: Any) -> Iterator[None]:
    """Have a plugin of ours stop its workers when the run is interrupted or terminated."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        if not isinstance(plugin, str):
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
        Name of the plugin, and its arguments.

    Raises
    ------
    UsageError
        The file is missing or says something else.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
        return str(content["plugin"]), dict(content.get("plugin_args") or {})
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: not a nipype plugin file ({error}).", "Write YAML with 'plugin: NAME' and 'plugin_args: {...}'."
        ) from error
