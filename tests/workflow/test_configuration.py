"""The hash of the configuration changes with the options that decide numbers, and with no others."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bids_app.bids.query import BoldRun
from bids_app.model.brainmarks import WrapperFacts
from bids_app.settings import PARTICIPANT, ModelSettings, PreprocessSettings, ResourceSettings, Settings
from bids_app.workflow import configuration
from bids_app.workflow.configuration import WITHOUT_EFFECT, configuration_hash, number_options
from bids_app.workflow.context import ChosenModel, RunContext

OTHER_VALUES: dict[str, Any] = {
    "dummy_scans": 6,
    "fd_spike_threshold": 0.2,
    "output_clips": ("voxel",),
    "output_spaces": ("MNI152NLin6Asym",),
    "denoise": "simple",
    "timeseries": ("aal3",),
    "ignore": ("slicetiming",),
    "use_syn_sdc": True,
    "random_seed": 1,
    "device": "cuda",
    "embeddings_only": True,
    "attribution": "occlusion",
    "attribution_clips": 3,
    "attribution_control": "random",
    "on_out_of_domain": "refuse",
    "acknowledge_research_use": True,
    "allow_untrained": True,
    "fail_without_t1w": True,
}
"""Values other than the defaults; model, adapters and atlas are files, and tested by their content.

Options of models are those of encoders of Brainmarks, and tested with one."""


@pytest.fixture
def run() -> BoldRun:
    return BoldRun(Path("sub-01_task-rest_bold.nii.gz"), {"sub": "01", "task": "rest"}, {})


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    model = ChosenModel("demo", (tmp_path / "a",), "", {"weights": "0" * 64, str(tmp_path / "a"): "1" * 64}, (), False)
    settings = Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work")
    return RunContext(settings, model, "MNI152NLin2009aSym", {}, {}, None, False, False, {})


def hash_of(run: BoldRun, context: RunContext) -> str:
    return configuration_hash(number_options(run, context))


def test_every_option_counts_unless_it_changes_no_number(run: BoldRun, context: RunContext) -> None:
    before, settings = hash_of(run, context), context.settings
    tested = set()
    for name, section in (("preprocess", settings.preprocess), ("model", settings.model)):
        for part in fields(section):
            if part.name in OTHER_VALUES:
                changed = replace(section, **{part.name: OTHER_VALUES[part.name]})
                after = hash_of(run, replace(context, settings=replace(settings, **{name: changed})))
                assert (after == before) is (part.name in WITHOUT_EFFECT), part.name
                tested.add(part.name)
    everything = {part.name for section in (PreprocessSettings, ModelSettings) for part in fields(section)}
    assert tested == everything - {"model", "adapters", "atlas", "model_options"} == set(OTHER_VALUES)


def test_threads_memory_and_scratch_do_not_count(run: BoldRun, context: RunContext, tmp_path: Path) -> None:
    resources = ResourceSettings(n_procs=7, omp_threads=3, memory_gb=9, low_mem=True)
    other = replace(context.settings, resources=resources, work_dir=tmp_path / "elsewhere", verbosity=2)
    assert hash_of(run, replace(context, settings=other)) == hash_of(run, context)


def test_files_count_by_content_and_not_by_name(run: BoldRun, context: RunContext, tmp_path: Path) -> None:
    before, model = hash_of(run, context), context.model
    moved = replace(model, adapters=(tmp_path / "b",), hashes={"moved": "0" * 64, str(tmp_path / "b"): "1" * 64})
    assert hash_of(run, replace(context, model=moved)) == before
    for hashes in (
        {"weights": "2" * 64, str(tmp_path / "a"): "1" * 64},
        {"weights": "0" * 64, str(tmp_path / "a"): ""},
    ):
        assert hash_of(run, replace(context, model=replace(model, hashes=hashes))) != before


def test_an_encoder_of_brainmarks_counts_by_weights_code_and_options_but_not_by_the_folder_of_its_file(
    run: BoldRun, context: RunContext
) -> None:
    wrapper = WrapperFacts("tiny", ("ckpt_path=/a/tiny.pt", "width=32"), "mni", "0.1.1", "c" * 64, "w" * 64, 3, 0)

    def hash_with(**changes) -> str:
        own = replace(wrapper, **changes)
        hashes = {"/atlas.nii.gz": "0" * 64}
        return hash_of(run, replace(context, model=ChosenModel("x", (), "", hashes, (), False, wrapper=own)))

    before = hash_with()
    assert hash_with(options=("ckpt_path=/b/moved.pt", "width=32")) == before
    for changes in (
        {"name": "other"},
        {"version": "0.1.2"},
        {"source_sha256": "d" * 64},
        {"weights_sha256": "v" * 64},
        {"options": ("ckpt_path=/a/tiny.pt", "width=64")},
    ):
        assert hash_with(**changes) != before, changes
    assert "model_options" not in number_options(run, context)  # hashes of outputs of our encoders stay as they were


def test_the_version_counts(run: BoldRun, context: RunContext, monkeypatch) -> None:
    before = hash_of(run, context)
    monkeypatch.setattr(configuration, "__version__", "99")
    assert hash_of(run, context) != before
    assert number_options(run, context)["version"] == "99"


def test_the_hash_is_that_of_its_text(run: BoldRun, context: RunContext) -> None:
    """The order of options and of their values does not count."""
    options = number_options(run, context)
    assert configuration_hash(dict(reversed(options.items()))) == configuration_hash(options)
    both = [("fieldmaps", "slicetiming"), ("slicetiming", "fieldmaps")]
    ignoring = [replace(context.settings, preprocess=PreprocessSettings(ignore=value)) for value in both]
    assert len({hash_of(run, replace(context, settings=each)) for each in ignoring}) == 1
    assert json.loads(json.dumps(options)) == options


def test_the_strategy_counts_for_series_of_regions_whose_files_have_the_same_names(
    run: BoldRun, context: RunContext
) -> None:
    def hash_with(**wanted: Any) -> str:
        settings = replace(context.settings, preprocess=PreprocessSettings(**wanted))
        return hash_of(run, replace(context, settings=settings))

    spaces = ("MNI152NLin6Asym",)
    plain = hash_with()
    assert plain == hash_with(timeseries=("aal3",)) == hash_with(output_spaces=spaces, denoise="simple")
    assert len({plain, *(hash_with(timeseries=("aal3",), denoise=name) for name in ("simple", "compcor"))}) == 3
