"""Inputs shared by all runs of an invocation: model, adapters, template, datasets, ages."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bids_app.bids.datasets import input_datasets
from bids_app.bids.entities import as_label
from bids_app.bids.participants import read_ages, read_sites
from bids_app.catalog import templates
from bids_app.catalog.atlases import Atlas, find_atlas
from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.models import find_model, weights_path
from bids_app.model.brainmarks import WrapperFacts
from bids_app.model.checkpoint import read_checkpoint, weights_sha256
from bids_app.model.device import choose_device
from bids_app.model.scan import uses_reference
from bids_app.outputs.boilerplate import Sentence
from bids_app.settings import Settings
from bids_app.workflow import sentences
from bids_app.workflow.adapters import chosen_adapters
from bids_app.workflow.brainmarks import files_of, find_wrapper
from bids_app.workflow.graph import file_stamp

SLOW_SCAN = (
    "SLOW: the encoder runs in plain PyTorch, about 10 times slower and with 4 times the memory of the native kernel, "
    "which was not compiled when this package was installed (or NEUROSTORM_SCAN=reference is set). The results are the "
    "same. Install a C++ compiler (Debian, Ubuntu: apt-get install g++), then reinstall the package: "
    "pip install --force-reinstall --no-deps followed by its folder; or use a wheel or the container image."
)


@dataclass(frozen=True)
class ChosenModel:
    """Model and adapters to apply."""

    name: str
    adapters: tuple[Path, ...]
    stamp: str
    hashes: dict[str, str]
    """SHA-256 of each file, by path."""
    sentences: tuple[Sentence, ...]
    """Their sentences of the methods text."""
    is_demonstration: bool
    labels: dict[str, str] = field(default_factory=dict)
    """What the ``desc-`` labels of their outputs mean."""
    wrapper: WrapperFacts | None = None
    """The encoder of Brainmarks; None for an encoder of ours."""


def choose_model(settings: Settings) -> ChosenModel:
    """Find and read the selected weights and adapters.

    Raises
    ------
    NeurostormError
        A file is missing or damaged.
    """
    wanted = settings.model
    wrapper = find_wrapper(wanted)
    if wrapper is not None:
        return _choose_wrapper(wrapper)
    entry = find_model(wanted.model)
    weights, adapters = weights_path(entry), chosen_adapters(settings)
    checkpoint = read_checkpoint(weights)
    hashes = {str(weights): file_sha256(weights)} | {str(adapter.path): adapter.sha256 for adapter in adapters}
    return ChosenModel(
        name=wanted.model,
        adapters=tuple(adapter.path for adapter in adapters),
        stamp=";".join((hashes[str(weights)], *(adapter.stamp for adapter in adapters))),
        hashes=hashes,
        sentences=(
            *sentences.encoder(entry.name, weights_sha256(checkpoint.encoder), checkpoint.config.img_size[3]),
            *(
                sentence
                for adapter in adapters
                for sentence in sentences.adapter(adapter.card, adapter.false_alarms, wanted.on_out_of_domain)
            ),
        ),
        is_demonstration=checkpoint.demonstration,
        labels={as_label(entry.name): f"Outputs of the model {entry.name}"}
        | {
            adapter.card.name: f"Outputs of the adapter {adapter.card.name} ({adapter.card.target})"
            for adapter in adapters
        },
    )


def _choose_wrapper(wrapper: WrapperFacts) -> ChosenModel:
    hashes = files_of(wrapper)
    return ChosenModel(
        name=wrapper.title,
        adapters=(),
        stamp=";".join(hashes.values()),
        hashes=hashes,
        sentences=sentences.brainmarks(wrapper),
        is_demonstration=False,
        labels={as_label(wrapper.title): f"Outputs of the model {wrapper.title}"},
        wrapper=wrapper,
    )


@dataclass(frozen=True)
class RunContext:
    """Inputs shared by all runs."""

    settings: Settings
    model: ChosenModel
    template: str
    datasets: dict[str, Path]
    """Input datasets by their names in ``DatasetLinks``."""
    atlas: Atlas | None
    """Atlas of the attribution; None without attribution."""
    on_gpu: bool
    scan_is_slow: bool
    """True if the encoder runs in plain PyTorch."""
    ages: dict[str, float]
    """Ages by participant from ``participants.tsv``, years."""
    sites: dict[str, str]
    """Sites by participant from ``participants.tsv``."""
    region_atlases: tuple[Atlas, ...] = ()
    """Atlases of ``--timeseries``."""
    n_runs: int = 1
    """Number of runs that share the processors."""

    @property
    def atlas_stamp(self) -> str:
        """Size and modification time of the atlas file; empty without an atlas."""
        return file_stamp(self.atlas.path) if self.atlas else ""

    @property
    def device(self) -> dict[str, Any]:
        """Device of the steps that can use a GPU.

        ``auto`` is replaced by the device that it means, so that naming this device repeats no step. On a cluster, each
        step chooses on its own machine.
        """
        wanted = self.settings.model.device
        return {
            "device": wanted if self.settings.resources.plugin else choose_device(wanted),
            "gpu": self.on_gpu,
        }

    @property
    def computing(self) -> dict[str, Any]:
        """Device and resources of the steps that run the model.

        A step that needs all processors would wait until all other steps have ended.
        """
        resources = self.settings.resources
        threads = max(resources.omp_threads, resources.n_procs // max(self.n_runs, 1))
        return {**self.device, "threads": threads, "n_procs": 1 if self.on_gpu else threads}

    @property
    def template_values(self) -> dict[str, str]:
        """Values of the sentences about the template."""
        return sentences.template_values(self.template)

    @cached_property
    def template_sentences(self) -> tuple[Sentence, ...]:
        """Sentences about a template that substitutes the template of the model."""
        return sentences.substitute_template(self.template)

    @property
    def attribution_sentences(self) -> tuple[Sentence, ...]:
        """Sentences about the attribution."""
        if self.atlas is None:
            return ()
        wanted = self.settings.model
        control = (Sentence(f"control_{wanted.attribution_control}"),) if wanted.attribution_control else ()
        return Sentence(wanted.attribution, {"atlas": self.atlas.title or self.atlas.name}), *control


def read_context(settings: Settings, n_runs: int = 1) -> RunContext:
    """Read the inputs shared by all runs, of which there are ``n_runs``.

    Raises
    ------
    NeurostormError
        Weights, adapters, template or atlas are missing or damaged.
    """
    wanted = settings.model
    device = choose_device(wanted.device)
    datasets = input_datasets(settings.bids_dir, settings.query.derivatives)
    return RunContext(
        settings=settings,
        model=choose_model(settings),
        template=templates.available()[0],
        datasets=datasets,
        ages=read_ages(datasets.values()),
        sites=read_sites(datasets.values()),
        atlas=find_atlas(wanted.atlas) if wanted.attribution else None,
        region_atlases=tuple(map(find_atlas, settings.preprocess.timeseries)),
        on_gpu=device.startswith("cuda"),
        scan_is_slow=uses_reference(device),
        n_runs=n_runs,
    )
