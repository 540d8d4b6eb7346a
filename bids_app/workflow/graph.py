"""Graph of processing steps and their dependencies; `engine.py` runs it with nipype, `in_process.py` without.

A step is an importable function of plain values, results of other steps, and ``out_dir``, the folder for its files. Its
stamp is a hash of its code, its arguments and the stamps of the steps that it depends on. Stamps are known before
anything runs: a result on disk is valid if it has the stamp of its step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_app.outputs.boilerplate import Sentence
from bids_app.workflow.code import code_hash

NOT_HASHED = ("threads",)
"""Arguments that affect the speed of a step, but not its result."""


@dataclass(frozen=True, eq=False)
class Step:
    """A step of a graph; pass it to later steps as an argument.

    Attributes
    ----------
    name : str
        Unique name.
    function : callable
        Importable function.
    given : mapping
        Plain arguments.
    upstream : mapping
        Arguments that are results of other steps.
    does : str
        Line of the plan of ``--check``; empty: not shown.
    sentences : tuple of Sentence
        Its sentences of the methods text.
    stamp : str
        Hash of everything that the result depends on.
    memory_gb : float
        Maximum memory, GB.
    n_procs : int, optional
        Number of processors; None: the threads of one step.
    always : bool
        Run in every invocation, since it writes outside its folder.
    gpu : bool
        True if it uses the GPU; such steps run one at a time.
    short : bool
        True if it mostly takes less time than to send it to a worker process; it then runs in the main process.
    """

    name: str
    function: Callable[..., Any]
    given: Mapping[str, Any]
    upstream: Mapping[str, Step]
    does: str
    sentences: tuple[Sentence, ...]
    stamp: str
    memory_gb: float = 1.0
    n_procs: int | None = None
    always: bool = False
    gpu: bool = False
    short: bool = False


@dataclass
class Graph:
    """Steps in processing order: each step comes after its dependencies.

    Attributes
    ----------
    invocation : str
        Part of the stamps of steps that always run.
    stamped : bool
        False: steps have no stamps, for which the code is read, since only their names and texts are wanted.
    steps : dict
        Steps by name, in order.
    """

    invocation: str = ""
    stamped: bool = True
    steps: dict[str, Step] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)

    def step(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *,
        does: str = "",
        sentences: tuple[Sentence, ...] = (),
        memory_gb: float = 1.0,
        n_procs: int | None = None,
        always: bool = False,
        gpu: bool = False,
        short: bool = False,
        **arguments: Any,
    ) -> Step:
        """Add a step; see `Step`. ``arguments`` are plain values, or steps whose results are passed."""
        if name in self.steps:
            raise ValueError(f"The graph already has a step {name}.")
        upstream = {key: value for key, value in arguments.items() if isinstance(value, Step)}
        given = {key: value for key, value in arguments.items() if key not in upstream}
        stamp = ""
        if self.stamped:
            stamp = hash_of(
                code_hash(function),
                sorted((key, value) for key, value in given.items() if key not in NOT_HASHED),
                sorted((key, value.stamp) for key, value in upstream.items()),
                self.invocation if always else "",
            )
        self._places[name] = len(self.steps)
        self.steps[name] = Step(
            name, function, given, upstream, does, sentences, stamp, memory_gb, n_procs, always, gpu, short
        )
        return self.steps[name]

    def ancestors(self, step: Step) -> Iterator[Step]:
        """Iterate over the steps that a step depends on, and the step itself, in order."""
        found = {step.name}
        waiting = [step]
        while waiting:
            for parent in waiting.pop().upstream.values():
                if parent.name not in found:
                    found.add(parent.name)
                    waiting.append(parent)
        return (self.steps[name] for name in sorted(found, key=self._places.__getitem__))


def hash_of(*parts: Any) -> str:
    """Hash the text of values."""
    return hashlib.sha256(repr(parts).encode("utf-8", errors="surrogateescape")).hexdigest()


def file_stamp(path: Path | None) -> str:
    """Return path, size and modification time of a file, as a proxy for its content.

    A file that was removed since it was found has a stamp too: the step that reads it raises the error.
    """
    if path is None:
        return "none"
    try:
        stat = path.stat()
    except OSError:
        return f"{path}:missing"
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
