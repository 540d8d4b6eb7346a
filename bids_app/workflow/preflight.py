"""What is examined before anything is started: places, disk, memory, weights, templates.

`preflight` raises at the first thing that stops a run; ``--check`` prints all of them instead. Nothing here writes into
the places that it examines.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bids_app.errors import CannotCreateError, NeurostormError, NoInputError, TemporaryError, UsageError
from bids_app.settings import Settings, own_scratch

MIN_FREE_GB = 2.0
"""Free space below which neither scratch nor output is started, GB."""
MIN_MEMORY_GB = 3.0
"""Memory below which a participant cannot be preprocessed, GB."""


@dataclass(frozen=True)
class Finding:
    """What one check found: a line of text, and the error if it stops the run."""

    name: str
    text: str
    error: NeurostormError | None = None


def preflight(settings: Settings) -> None:
    """Raise the first error that stops this invocation."""
    for finding in examine(settings):
        if finding.error:
            raise finding.error


def examine(settings: Settings) -> Iterator[Finding]:
    """Run every check; one that fails becomes a finding with its error."""
    for name, check in CHECKS.items():
        try:
            yield Finding(name, check(settings))
        except NeurostormError as error:
            yield Finding(name, error.message, error)


def check_input(settings: Settings) -> str:
    """The dataset's folder can be read."""
    folder = settings.bids_dir
    if not folder.is_dir():
        raise NoInputError(f"{folder}: no such folder.", "Give the folder that holds dataset_description.json.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise NoInputError(f"{folder}: this user may not read it.", "Check its permissions, or how it is mounted.")
    for name, path in settings.query.derivatives.items():
        if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
            raise NoInputError(
                f"{path}: no such folder, or this user may not read it.",
                f"Correct --derivatives {name}=... (in a container: is it mounted?).",
            )
    return " and ".join(f"{path}" for path in (folder, *settings.query.derivatives.values())) + " can be read"


def check_places(settings: Settings) -> str:
    """Output and scratch lie where they harm nothing.

    Output may stand in the dataset's own ``derivatives`` folder, as is common, but nowhere else in the raw data.
    """
    raw, out, work = (p.resolve() for p in (settings.bids_dir, settings.out_dir, settings.work_dir))
    if out == raw:
        raise UsageError(
            f"{settings.out_dir}: the output folder is the dataset itself.",
            f"Give a folder of its own, such as {raw / 'derivatives' / 'neurostorm'}.",
        )
    if out.is_relative_to(raw) and not out.is_relative_to(raw / "derivatives"):
        raise UsageError(
            f"{settings.out_dir}: the output folder is inside the raw dataset.",
            f"Give a folder outside of it, or {raw / 'derivatives' / 'neurostorm'}.",
        )
    if raw.is_relative_to(out):
        raise UsageError(
            f"{settings.out_dir}: the raw dataset is inside the output folder.", "Give an output folder of its own."
        )
    if work == raw or work.is_relative_to(raw):
        raise UsageError(
            f"{settings.work_dir}: the work folder is inside the raw dataset.", "Give --work-dir outside of it."
        )
    for name, path in settings.query.derivatives.items():
        for folder, what in ((out, "output"), (work, "work")):
            if folder.is_relative_to(path.resolve()):
                raise UsageError(
                    f"{folder}: the {what} folder is inside the derivatives '{name}'.", "Give a folder outside of them."
                )
    return "output and scratch are apart from the data"


def check_output(settings: Settings) -> str:
    """The output folder can be written, or made."""
    return _writable(settings.out_dir, "output", "Give another output folder, or check how it is mounted.")


def check_scratch(settings: Settings) -> str:
    """The scratch folder can be written, or made, and has room."""
    text = _writable(settings.work_dir, "work", "Give --work-dir, or set NEUROSTORM_SCRATCH.")
    check_private(settings.work_dir)
    for folder in (settings.work_dir, settings.out_dir):
        place = _existing(folder)
        free_gb = shutil.disk_usage(place).free / 1e9
        if free_gb < MIN_FREE_GB:
            raise CannotCreateError(
                f"{place}: {free_gb:.1f} GB free, and a run needs {MIN_FREE_GB:.0f} GB.",
                "Free some space, or give --work-dir on another disk.",
            )
    return f"{text}, {shutil.disk_usage(_existing(settings.work_dir)).free / 1e9:.0f} GB free"


def check_private(work_dir: Path) -> None:
    """Refuse a folder in the place for all users' temporary files that others can write: results are read from it."""
    base = own_scratch()
    if not work_dir.is_relative_to(base) or not os.path.lexists(base):
        return
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise CannotCreateError(
            f"{base}: is not a folder that only this user can write.",
            "Remove it, or give --work-dir, or set NEUROSTORM_SCRATCH.",
        )


def check_memory(settings: Settings) -> str:
    """There is memory enough for one participant."""
    memory_gb = settings.resources.memory_gb
    if memory_gb < MIN_MEMORY_GB:
        raise TemporaryError(
            f"{memory_gb:.1f} GB of memory may be used, and a run needs {MIN_MEMORY_GB:.0f} GB.",
            "Use a larger machine or job, or raise --mem.",
        )
    return f"{memory_gb:.1f} GB, {settings.resources.n_procs} processors"


def check_weights(settings: Settings) -> str:
    """The encoder's weights are at hand."""
    from bids_app.catalog.models import adapter_paths, find_model, weights_path

    if settings.reports_only:
        return "not needed"
    model = find_model(settings.model.model)
    adapters = adapter_paths(model, settings.model.adapters)
    return ", ".join(str(path) for path in (weights_path(model), *adapters))


def check_adapters(settings: Settings) -> str:
    """The adapters that would be applied are ones that the user may have answers from."""
    wanted = settings.model
    if settings.reports_only or settings.boilerplate_only or wanted.embeddings_only:
        return "not needed"
    from bids_app.workflow.adapters import chosen_adapters

    cards = [adapter.card for adapter in chosen_adapters(settings)]
    for card in cards:
        if card.research_only and not wanted.acknowledge_research_use:
            raise UsageError(
                f"The adapter {card.name} predicts a diagnosis ({card.target}), which no scan tells of a person.",
                "For research on groups, give --acknowledge-research-use; the reports will say what these answers are.",
            )
    return ", ".join(card.name for card in cards) or "none"


def check_atlas(settings: Settings) -> str:
    """The atlas is at hand, where regions are asked for, and so is what they are asked of."""
    if not settings.model.attribution or settings.reports_only:
        return "not needed"
    from bids_app.catalog.atlases import find_atlas

    if settings.model.attribution == "reconstruction":
        from bids_app.catalog.models import find_model, weights_path
        from bids_app.model.checkpoint import read_checkpoint

        read_checkpoint(weights_path(find_model(settings.model.model))).require_decoder()
    elif settings.model.embeddings_only:
        raise UsageError(
            "--level minimal gives no answers that could be attributed.", "Leave out --level, or --attribution."
        )
    return str(find_atlas(settings.model.atlas).path)


def check_template(settings: Settings) -> str:
    """The output spaces are known, and a template is at hand; how near it is to the model's space is said."""
    from bids_app.catalog import templates

    for space in settings.preprocess.output_spaces:
        templates.space(space)
    name = templates.available()[0]
    return f"{name} ({templates.space(name).accuracy})"


CHECKS: dict[str, Callable[[Settings], str]] = {
    "input": check_input,
    "places": check_places,
    "output": check_output,
    "scratch": check_scratch,
    "memory": check_memory,
    "weights": check_weights,
    "adapters": check_adapters,
    "atlas": check_atlas,
    "template": check_template,
}


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _writable(folder: Path, what: str, hint: str) -> str:
    place = _existing(folder)
    if not place.is_dir():
        raise CannotCreateError(f"{place}: the {what} folder cannot be made here: this is a file.", hint)
    if not os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        raise CannotCreateError(f"{place}: this user may not write the {what} folder.", hint)
    return f"{folder} can be {'written' if place == folder else 'made'}"
