"""The engine room: how a step of the method becomes a node of nipype.

A step is any importable function that takes plain values, or what other steps returned, and ``out_dir``, the folder
that it may write into. `Graph.step` wraps it as a node, so that caching, resuming, parallel runs and clusters come
from nipype.

What a node hands on is stamped with a hash of everything that went into it, upstream steps and the source of this
package included: a node runs again exactly when one of those changed. Nothing about brains may enter here.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import resource
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.errors import EXIT_SOFTWARE, InputOutputError, NeurostormError, TemporaryError, UsageError
from bids_app.settings import CACHES, ResourceSettings
from bids_app.workflow.progress import Progress

LOGGER = logging.getLogger(__name__)
ERROR_FILE = "error.json"
COST_FILE = "cost.json"
LITTLE_ROOM = 2**20
"""Free bytes in scratch below which a step that left no word is taken to have found no room."""


@dataclass(frozen=True)
class Stamped:
    """What a step returned, with a hash of all that it was made from; nipype hashes its text."""

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


@cache
def source_hash() -> str:
    """Hash of this package's own files: a change of the code makes every step run again."""
    digest = hashlib.sha256(__version__.encode())
    root = Path(__file__).parents[1]
    for path in sorted(p for p in root.rglob("*") if p.suffix in {".py", ".yml", ".c", ".cpp", ".safetensors"}):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def remove_caches(work_dir: Path) -> None:
    """Delete what libraries cached in a scratch folder and what killed runs left, and the folder if that was all."""
    for folder in (work_dir / CACHES, *work_dir.glob("crash-*")):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        work_dir.rmdir()


def file_stamp(path: Path | None) -> str:
    """Size and time of a file's last change, as cheap stand-ins for its content."""
    if path is None:
        return "none"
    stat = path.stat()
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}"


def execute(function: str, key: str, given: dict[str, Any], upstream: dict[str, Stamped]) -> Stamped:
    """Run one step in the node's folder; leave its error there when it fails, and its cost when it does not.

    Parameters
    ----------
    function : str
        ``module:name`` of the step.
    key : str
        Hash of what was given, and of the package's source.
    given, upstream : dict
        Plain arguments, and arguments that other steps returned.
    """
    out_dir = Path.cwd()
    module, name = function.split(":")
    started = time.monotonic()
    try:
        call = getattr(importlib.import_module(module), name)
        value = call(**given, **{k: v.value for k, v in upstream.items()}, out_dir=out_dir)
        cost = {
            "seconds": round(time.monotonic() - started, 2),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        _write_whole(out_dir / COST_FILE, cost)
    except BaseException as error:
        _leave_error(out_dir, error)
        raise
    stamps = "".join(f"{k}={v.stamp};" for k, v in sorted(upstream.items()))
    return Stamped(value, hashlib.sha256((key + stamps).encode()).hexdigest())


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


def _leave_error(out_dir: Path, error: BaseException) -> None:
    known = as_neurostorm_error(error)
    content = {
        "message": known.message if known else f"{type(error).__name__}: {error}",
        "hint": known.hint if known else "This is a defect of the program: please report it with the crash file.",
        "exit_code": known.exit_code if known else EXIT_SOFTWARE,
        "trace": "".join(traceback.format_exception(error)),
    }
    try:
        _write_whole(out_dir / ERROR_FILE, content)
    except OSError:
        with suppress(OSError):
            for path in out_dir.iterdir():  # what a step that failed has written is of no use, and makes room
                if not path.name.startswith("_"):  # nipype's own
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            _write_whole(out_dir / ERROR_FILE, content)


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that what is there is whole, on a disk that is full too."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def call_step(function, key, given, use_gpu=False, **upstream):  # nipype runs this function's source text on its own
    """What each node runs; by ``use_gpu`` nipype tells which nodes count against its ``n_gpu_procs``."""
    from bids_app.workflow.engine import execute

    return execute(function, key, given, upstream)


@dataclass(frozen=True)
class Step:
    """A step that was put into a graph; hand it to later steps as an argument."""

    name: str
    node: Any


class Graph:
    """A nipype workflow that is built step by step.

    Parameters
    ----------
    name : str
        Name of the workflow, and of its folder in ``work_dir``.
    work_dir : pathlib.Path
        Scratch folder; nipype's cache lives here.
    resources : ResourceSettings
        Processes, threads and memory that may be used.
    """

    def __init__(self, name: str, work_dir: Path, resources: ResourceSettings) -> None:
        from nipype.pipeline import engine as pe

        self._engine = pe
        self._resources = resources
        self._root = work_dir / name
        self._workflow = pe.Workflow(name=name, base_dir=str(work_dir))
        self._steps: dict[str, Step] = {}
        self._parents: dict[str, list[str]] = {}
        self._started = 0.0

    def __len__(self) -> int:
        return len(self._steps)

    def step(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *,
        memory_gb: float = 1.0,
        n_procs: int | None = None,
        always: bool = False,
        gpu: bool = False,
        **arguments: Any,
    ) -> Step:
        """Add a step.

        Parameters
        ----------
        name : str
            Unique in the graph.
        function : callable
            Importable by its name; called with ``arguments`` and ``out_dir``.
        memory_gb : float
            What it takes at most, GB.
        n_procs : int, optional
            Processors that it uses; the settings' threads by default.
        always : bool
            Run it even when nothing changed (for what writes outside its folder).
        gpu : bool
            Whether it computes on a GPU, of which there is one for all such steps.
        **arguments
            Plain values, or steps whose results are to be handed over.
        """
        from nipype.interfaces.utility import Function

        upstream = {k: v for k, v in arguments.items() if isinstance(v, Step)}
        given = {k: v for k, v in arguments.items() if k not in upstream}
        target = f"{function.__module__}:{function.__qualname__}"
        key = hashlib.sha256(f"{source_hash()}|{target}|{sorted(given.items())!r}".encode()).hexdigest()
        names = ["function", "key", "given", *(["use_gpu"] if gpu else []), *upstream]
        interface = Function(input_names=names, output_names=["out"], function=call_step)
        node = self._engine.Node(
            interface,
            name=name,
            mem_gb=min(memory_gb, self._resources.memory_gb),
            n_procs=self._processors(n_procs),
        )
        node.inputs.function, node.inputs.key, node.inputs.given = target, key, given
        if gpu:
            node.inputs.use_gpu = True
        if always:
            node.overwrite = True
        self._workflow.add_nodes([node])
        for argument, parent in upstream.items():
            self._workflow.connect(parent.node, "out", node, argument)
        self._steps[name] = Step(name, node)
        self._parents[name] = [parent.name for parent in upstream.values()]
        return self._steps[name]

    def _processors(self, wanted: int | None) -> int:
        """Processors that a step is counted with; with ``--low-mem`` all, so that no other step runs beside it."""
        if self._resources.low_mem:
            return self._resources.n_procs
        return min(wanted or self._resources.omp_threads, self._resources.n_procs)

    def run(self, *, crash_dir: Path, stop_on_first_crash: bool = False) -> None:
        """Run all steps; a step that fails takes only those with it that need it. Ask `error_of` afterwards.

        Parameters
        ----------
        crash_dir : pathlib.Path
            Where nipype leaves its crash files.
        stop_on_first_crash : bool
            Start nothing more after the first failure.
        """
        self._workflow.config["execution"] = {
            "crashdump_dir": str(crash_dir),
            "crashfile_format": "txt",
            "stop_on_first_crash": str(stop_on_first_crash).lower(),
            "poll_sleep_duration": "0.2" if self._resources.plugin is None else "2",
            "job_finished_timeout": "120",  # s that a shared file system may take to show a cluster's result
            "remove_unnecessary_outputs": "false",
            "check_version": "false",
            "create_report": "false",
        }
        from bids_app.workflow.pool import quieten_nipype  # nipype takes a second to import

        quieten_nipype(LOGGER.getEffectiveLevel())
        self._started = time.time() - 1  # file systems keep coarser times than clocks
        cwd = os.getcwd()
        try:
            with Progress(len(self)) as progress:
                plugin, plugin_args = self._plugin(progress)
                self._workflow.run(plugin=plugin, plugin_args=plugin_args)
        except Exception as error:
            if not any(path.stat().st_mtime >= self._started for path in crash_dir.glob("crash-*")):
                known = as_neurostorm_error(error)  # no step failed, but the engine itself
                if known:
                    raise known from error
                raise
            LOGGER.debug("Some steps failed.", exc_info=True)
        finally:
            os.chdir(cwd)

    def error_of(self, step: Step) -> StepError | None:
        """The first error among a step and all that it needs, in the order of the method; None when all is well."""
        for name in self._ancestors(step.name):
            error = self._read_error(name)
            if error:
                return error
        return None if self._finished(step.name) else self._worker_died(step)

    def _folder(self, name: str) -> Path:
        return self._root / name

    def _finished(self, name: str) -> bool:
        return all((self._folder(name) / file).exists() for file in (COST_FILE, f"result_{name}.pklz"))

    def _worker_died(self, step: Step) -> StepError:
        unfinished = next(name for name in self._ancestors(step.name) if not self._finished(name))
        if shutil.disk_usage(self._root.parent).free < LITTLE_ROOM:
            full = InputOutputError(
                f"{self._root.parent}: no space left for the step {unfinished}.",
                "Free some space, or give --work-dir on another disk; what is done is kept.",
            )
            return StepError(unfinished, full.message, full.hint, full.exit_code, "")
        lost = TemporaryError(
            f"The step {unfinished} ended without a word, most often because memory ran out.",
            "Give the run more memory (--mem) or fewer processes (--nprocs), and start it again: what is done is kept.",
        )
        return StepError(unfinished, lost.message, lost.hint, lost.exit_code, "")

    def costs(self, step: Step) -> dict[str, dict[str, float]]:
        """Seconds and peak memory (MB) of a step and of all that it needs, as last run."""
        files = {name: self._folder(name) / COST_FILE for name in self._ancestors(step.name)}
        return {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}

    def result_of(self, step: Step) -> Any:
        """What a step returned, once the graph has run."""
        from nipype.utils.filemanip import loadpkl

        return loadpkl(self._folder(step.name) / f"result_{step.name}.pklz").outputs.out.value

    def remove(self) -> None:
        """Delete the scratch of this graph's steps, and nothing else that may lie beside it."""
        for name in self._steps:
            shutil.rmtree(self._folder(name), ignore_errors=True)
        for folder in (self._root, self._root.parent):
            with suppress(OSError):
                folder.rmdir()  # stays when something else is in it

    def _ancestors(self, name: str) -> Iterator[str]:
        wanted = {name}
        for step in reversed(self._steps):  # steps are added after their parents
            if step in wanted:
                wanted.update(self._parents[step])
        return (step for step in self._steps if step in wanted)

    def _read_error(self, name: str) -> StepError | None:
        path = self._folder(name) / ERROR_FILE
        if not path.exists() or path.stat().st_mtime < self._started:
            return None
        return StepError(step=name, **json.loads(path.read_text()))

    def _plugin(self, progress: Progress) -> tuple[Any, dict[str, Any]]:
        resources = self._resources
        if resources.plugin is not None:
            os.environ.setdefault("LOGNAME", str(os.getuid()))  # nipype names jobs after it, and containers lack it
            return read_plugin_file(resources.plugin)
        if resources.n_procs == 1 or len(self._steps) == 1:
            return "Linear", {"status_callback": progress}
        from bids_app.workflow.pool import SturdyMultiProcPlugin

        arguments = {
            "n_procs": resources.n_procs,
            "memory_gb": resources.memory_gb,
            "n_gpu_procs": 1,
            "raise_insufficient": False,  # a step on a GPU may want more processors than the one GPU slot
            "mp_context": "forkserver",
            "log_level": LOGGER.getEffectiveLevel(),
            "status_callback": progress,
        }
        return SturdyMultiProcPlugin(plugin_args=arguments), {}


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
