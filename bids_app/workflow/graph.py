"""Steps and what each needs, as plain data; `engine.py` runs them with nipype, `in_process.py` without it.

A step is any importable function of plain values, results of other steps, and ``out_dir``, the folder that it may
write into. Its stamp is a hash of all that its result depends on: its code, what it was given, and the stamps of the
steps before it. It is known before anything runs, so a result on disk is valid exactly when it bears that stamp.
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
"""Arguments that change how fast a step is, and not what it returns."""


@dataclass(frozen=True, eq=False)
class Step:
    """A step of a graph; hand it to later steps as an argument.

    Attributes
    ----------
    name : str
        Unique in the graph.
    function : callable
        Importable by its name.
    given : mapping
        Plain arguments.
    upstream : mapping
        Arguments that are results of other steps.
    does : str
        One line for the plan of ``--check``; empty for bookkeeping.
    sentences : tuple of Sentence
        What the methods text says of it.
    stamp : str
        Hash of all that its result depends on.
    memory_gb : float
        Maximum memory, GB.
    n_procs : int, optional
        Processors that it uses; None: the threads of one step.
    always : bool
        Run it even when nothing changed, since it writes outside its folder.
    gpu : bool
        Whether it computes on a GPU, of which there is one for all such steps.
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


@dataclass
class Graph:
    """Steps in the order of the method: each comes after those that it needs.

    Attributes
    ----------
    invocation : str
        Part of the stamps of steps that always run.
    steps : dict
        By name, in order.
    """

    invocation: str = ""
    steps: dict[str, Step] = field(default_factory=dict)

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
        **arguments: Any,
    ) -> Step:
        """Add a step; see `Step`. ``arguments`` are plain values, or steps whose results are handed over."""
        if name in self.steps:
            raise ValueError(f"The graph has a step {name} already.")
        upstream = {key: value for key, value in arguments.items() if isinstance(value, Step)}
        given = {key: value for key, value in arguments.items() if key not in upstream}
        stamp = hash_of(
            code_hash(function),
            sorted((key, value) for key, value in given.items() if key not in NOT_HASHED),
            sorted((key, value.stamp) for key, value in upstream.items()),
            self.invocation if always else "",
        )
        self.steps[name] = Step(
            name, function, given, upstream, does, sentences, stamp, memory_gb, n_procs, always, gpu
        )
        return self.steps[name]

    def ancestors(self, step: Step) -> Iterator[Step]:
        """A step and all that it needs, in the order of the method."""
        wanted = {step.name}
        for candidate in reversed(self.steps.values()):
            if candidate.name in wanted:
                wanted.update(parent.name for parent in candidate.upstream.values())
        return (candidate for candidate in self.steps.values() if candidate.name in wanted)


def hash_of(*parts: Any) -> str:
    """Hash of values by their text."""
    return hashlib.sha256(repr(parts).encode("utf-8", errors="surrogateescape")).hexdigest()


def file_stamp(path: Path | None) -> str:
    """Size and time of a file's last change, which stand for its content."""
    if path is None:
        return "none"
    stat = path.stat()
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
