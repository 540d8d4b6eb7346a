"""Checks before the start: folders, disk, memory, weights, templates.

`preflight` raises the first error; ``--check`` prints the results of all checks. Nothing is written here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bids_app.errors import BadDataError, CannotCreateError, NeurostormError, NoInputError, TemporaryError, UsageError
from bids_app.settings import BRAINMARKS_PREFIX, FUNC_SPACE, T1W_SPACE, Settings
from bids_app.workflow.disk import existing_parent, readable_size
from bids_app.workflow.scratch import check_private

MIN_MEMORY_GB = 3.0
"""Minimum memory for preprocessing, GB."""


@dataclass(frozen=True)
class Finding:
    """Result of a check: a line of text, and the error if it failed."""

    name: str
    text: str
    error: NeurostormError | None = None


def preflight(settings: Settings) -> None:
    """Run all checks; raise the first error."""
    for finding in examine(settings):
        if finding.error:
            raise finding.error


def examine(settings: Settings) -> Iterator[Finding]:
    """Run all checks; iterate over their findings."""
    for name, check in CHECKS.items():
        yield check_finding(name, partial(check, settings))


def check_finding(name: str, check: Callable[[], str]) -> Finding:
    """Run a check and return its finding."""
    try:
        return Finding(name, check())
    except NeurostormError as error:
        return Finding(name, error.message, error)


def check_input(settings: Settings) -> str:
    """Check that the input folders are readable."""
    folder = settings.bids_dir
    if not folder.is_dir():
        raise NoInputError(f"{folder}: no such folder.", "Give the folder that contains dataset_description.json.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise NoInputError(f"{folder}: no read permission.", "Check its permissions and, in a container, its mount.")
    for name, path in settings.query.derivatives.items():
        if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
            raise NoInputError(
                f"{path}: no such folder, or no read permission.",
                f"Correct --derivatives {name}=... and, in a container, check its mount.",
            )
    return " and ".join(f"{path}" for path in (folder, *settings.query.derivatives.values())) + " readable"


def check_folders(settings: Settings) -> str:
    """Check that the output and scratch folders are separate from the input data.

    The output folder may be in the ``derivatives`` folder of the dataset, but nowhere else in the raw data.
    """
    raw, out, work = (p.resolve() for p in (settings.bids_dir, settings.out_dir, settings.work_dir))
    if out == raw:
        raise UsageError(
            f"{settings.out_dir}: the output folder is the raw dataset.",
            f"Give a separate folder, such as {raw / 'derivatives' / 'neurostorm'}.",
        )
    if out.is_relative_to(raw) and not out.is_relative_to(raw / "derivatives"):
        raise UsageError(
            f"{settings.out_dir}: the output folder is inside the raw dataset.",
            f"Give a folder outside the dataset, or {raw / 'derivatives' / 'neurostorm'}.",
        )
    if raw.is_relative_to(out):
        raise UsageError(
            f"{settings.out_dir}: the raw dataset is inside the output folder.", "Give a separate output folder."
        )
    if work == raw or work.is_relative_to(raw):
        raise UsageError(
            f"{settings.work_dir}: the work folder is inside the raw dataset.", "Give a --work-dir outside the dataset."
        )
    for name, path in settings.query.derivatives.items():
        for folder, what in ((out, "output"), (work, "work")):
            if folder.is_relative_to(path.resolve()):
                raise UsageError(
                    f"{folder}: the {what} folder is inside the derivatives '{name}'.",
                    "Give a folder outside these derivatives.",
                )
    return "output and scratch are separate from the input data"


def check_output(settings: Settings) -> str:
    """Check that the output folder can be written."""
    return _writable(settings.out_dir, "output", "Give another output folder, or check how it is mounted.")


def check_scratch(settings: Settings) -> str:
    """Check that the scratch folder can be written; `disk.check_disk` compares its free space with the runs' needs."""
    text = _writable(settings.work_dir, "work", "Give --work-dir, or set NEUROSTORM_SCRATCH.")
    check_private(settings.work_dir)
    return f"{text}, {readable_size(shutil.disk_usage(existing_parent(settings.work_dir)).free)} free"


def check_memory(settings: Settings) -> str:
    """Check that the memory limit is sufficient for one participant."""
    memory_gb = settings.resources.memory_gb
    if memory_gb < MIN_MEMORY_GB:
        raise TemporaryError(
            f"The memory limit is {memory_gb:.1f} GB; a run needs {MIN_MEMORY_GB:.0f} GB.",
            "Use a larger machine or job, or raise --mem.",
        )
    return f"{memory_gb:.1f} GB, {settings.resources.n_procs} processors"


def check_device(settings: Settings) -> str:
    """Check that the device of ``--device`` exists."""
    from bids_app.model.device import check_device

    return check_device(settings.model.device, "--device")


def check_plugin(settings: Settings) -> str:
    """Check that the file of ``--use-plugin`` names a plugin of nipype."""
    path = settings.resources.plugin
    if path is None:
        return "processes of this machine"
    from nipype.pipeline import plugins

    from bids_app.workflow.engine import read_plugin_file

    name, _ = read_plugin_file(path)
    known = [name.removesuffix("Plugin") for name in dir(plugins) if name.endswith("Plugin")]
    if name not in known:
        raise UsageError(f"{path}: nipype has no plugin {name!r}.", f"Plugins: {', '.join(known)}.")
    return name


def check_weights(settings: Settings) -> str:
    """Check that the weights of encoder and adapters are available; with ``--check``, also that they fit."""
    from bids_app.catalog.models import adapter_paths, find_model, weights_path
    from bids_app.workflow.brainmarks import check_wrapper

    if settings.reports_only:
        return "not needed"
    if wrapper := check_wrapper(settings.model):
        return wrapper
    entry = find_model(settings.model.model)
    path, adapters = weights_path(entry), adapter_paths(entry, settings.model.adapters)
    if settings.check:
        check_fit(settings)
    return ", ".join(map(str, (path, *adapters)))


def check_fit(settings: Settings) -> None:
    """Load encoder and adapters, so that weights that do not fit are reported before the first step.

    A run calls this after its query: libraries that the model imports may create their caches in the work folder.
    """
    from bids_app.adapters.checks import check_grid
    from bids_app.adapters.file import AdaptedModel
    from bids_app.adapters.own_head import read_any_adapter
    from bids_app.catalog.models import find_model, weights_path
    from bids_app.model.api import load_model
    from bids_app.workflow.adapters import chosen_adapters

    if settings.reports_only or settings.boilerplate_only or settings.model.model.startswith(BRAINMARKS_PREFIX):
        return
    entry = find_model(settings.model.model)
    model = load_model(weights_path(entry), with_head=False)
    check_grid(model.config, model.path)
    for adapter in chosen_adapters(settings):
        AdaptedModel(model, read_any_adapter(adapter.path, entry))


def check_adapters(settings: Settings) -> str:
    """Check that adapters of a diagnosis are applied only with ``--acknowledge-research-use``."""
    wanted = settings.model
    if settings.reports_only or settings.boilerplate_only or wanted.embeddings_only:
        return "not needed"
    from bids_app.workflow.adapters import chosen_adapters

    cards = [adapter.card for adapter in chosen_adapters(settings)]
    for card in cards:
        if card.research_only and not wanted.acknowledge_research_use:
            raise UsageError(
                f"The adapter {card.name} predicts a diagnosis ({card.target}), which is not valid for individuals.",
                "For group research, give --acknowledge-research-use; the reports will carry a warning.",
            )
    return ", ".join(card.name for card in cards) or "none"


def check_atlas(settings: Settings) -> str:
    """Check that the atlas of the attribution is available, and what method and control need of the model."""
    if settings.model.attribution_control and not settings.model.attribution:
        raise UsageError("--attribution-control needs a map to compare with.", "Give --attribution as well.")
    is_brainmarks = settings.model.model.startswith(BRAINMARKS_PREFIX)  # `check_weights` refuses attributions
    if not settings.model.attribution or settings.reports_only or is_brainmarks:
        return "not needed"
    from bids_app.adapters.attribution_control import PERMUTED, check_permuted
    from bids_app.adapters.file import EMBEDDING, load_adapter
    from bids_app.catalog.atlases import find_atlas
    from bids_app.workflow.adapters import chosen_adapters

    if settings.model.attribution == "reconstruction":
        if settings.model.attribution_control == PERMUTED:
            raise UsageError(
                "Reconstructions have no labels: --attribution-control permuted is not possible.",
                "Use --attribution-control random.",
            )
        from bids_app.catalog.models import find_model, weights_path
        from bids_app.model.checkpoint import read_checkpoint
        from bids_app.model.mae import trained_mask

        trained_mask(read_checkpoint(weights_path(find_model(settings.model.model))))
    elif settings.model.embeddings_only:
        raise UsageError(
            "--attribution needs predictions, but --level minimal makes none.", "Leave out --level or --attribution."
        )
    if settings.model.attribution_control == PERMUTED:
        for adapter in chosen_adapters(settings):
            if adapter.card.task != EMBEDDING:
                check_permuted(load_adapter(adapter.path))
    return str(find_atlas(settings.model.atlas).path)


def check_timeseries(settings: Settings) -> str:
    """Check that the atlases of ``--timeseries`` are available, are label images, and have different labels."""
    wanted = settings.preprocess.timeseries
    if not wanted or settings.reports_only:
        return "not needed"
    from bids_app.bids.entities import as_label
    from bids_app.catalog.atlases import find_atlas
    from bids_app.clips import labels_to_model_grid
    from bids_app.preprocess.io.headers import load_nifti

    found: dict[str, str] = {}
    for name in wanted:
        atlas = find_atlas(name)
        try:
            label = as_label(atlas.name)
        except ValueError as error:
            raise UsageError(f"--timeseries {name}: {error}", "Rename the image and its table.") from error
        if found.get(label) == name:
            raise UsageError(f"--timeseries: {name} is given twice.", "Give each atlas once.")
        if label in found:
            raise UsageError(
                f"--timeseries: {found[label]} and {name} would have the same files (seg-{label}).",
                "Rename one of the images and its table.",
            )
        found[label] = name
        if not labels_to_model_grid(load_nifti(atlas.path)).any():
            raise BadDataError(
                f"{atlas.path}: no region on the model grid.",
                "Give a label image in MNI152NLin6Asym; check its affine.",
            )
    return ", ".join(str(find_atlas(name).path) for name in wanted)


def check_output_space(space: str, template: str) -> None:
    """Check that an output space is known, and that there are transforms between it and the template.

    Raises
    ------
    UsageError
        Unknown space.
    NoInputError
        The transforms are not in TemplateFlow's cache.
    """
    from bids_app.catalog import templates

    if space not in templates.catalog():
        raise UsageError(
            f"Invalid value for --output-spaces: {space} is not known.",
            f"Choose from {', '.join((*templates.catalog(), T1W_SPACE, FUNC_SPACE))}.",
        )
    pairs = ((template, space), (space, template)) if space != template else ()
    missing = [pair for pair in pairs if templates.warp_between(*pair) is None]
    if missing:
        names = [templates.warp_name(*pair) for pair in missing]
        gets = "; ".join(
            f"tf.get('{end}', suffix='xfm', extension='.h5', **{{'from': '{start}'}})" for start, end in missing
        )
        raise NoInputError(
            f"--output-spaces {space}: {' and '.join(names)} not in TemplateFlow's cache "
            f"({templates.templateflow_home()}).",
            f'Fetch with network access: python -c "import templateflow.api as tf; {gets}", and set TEMPLATEFLOW_HOME.',
        )


def check_template(settings: Settings) -> str:
    """Check the output spaces and the template; report the accuracy of the template in the model space."""
    from bids_app.catalog import templates

    name = templates.available()[0]
    wanted = settings.preprocess
    if wanted.denoise and not (wanted.output_spaces or wanted.timeseries):
        raise UsageError(
            f"--denoise {wanted.denoise}: no space to write the series in.",
            "Add --output-spaces MNI152NLin6Asym, for example, or --timeseries with an atlas.",
        )
    for space in wanted.output_spaces:
        if space not in (FUNC_SPACE, T1W_SPACE):
            check_output_space(space, name)
    return f"{name} ({templates.space(name).accuracy})"


CHECKS: dict[str, Callable[[Settings], str]] = {
    "input": check_input,
    "folders": check_folders,
    "output": check_output,
    "scratch": check_scratch,
    "memory": check_memory,
    "device": check_device,
    "plugin": check_plugin,
    "weights": check_weights,
    "adapters": check_adapters,
    "atlas": check_atlas,
    "timeseries": check_timeseries,
    "template": check_template,
}


def _writable(folder: Path, what: str, hint: str) -> str:
    place = existing_parent(folder)
    if not place.is_dir():
        raise CannotCreateError(f"{place}: the {what} folder cannot be created: this is a file.", hint)
    if not os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        raise CannotCreateError(f"{place}: no write permission for the {what} folder.", hint)
    return f"{folder} {'is writable' if place == folder else 'can be created'}"
