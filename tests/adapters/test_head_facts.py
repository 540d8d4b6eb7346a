"""What a downloaded file is, what it lacks, and whether given facts fit its head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bids_app.adapters.convert import meaning_of
from bids_app.adapters.file import Adapter, AdapterCard, save_adapter
from bids_app.adapters.head_facts import check_head_facts, describe_file
from bids_app.adapters.own_head import own_head
from bids_app.catalog.models import find_model
from bids_app.catalog.references import FileFacts, write_facts
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.model.checkpoint import read_checkpoint
from bids_app.model.encoder import Encoder, EncoderConfig
from tests.helpers.models import lightning_content, linear_head

CONFIG = EncoderConfig(
    img_size=(96, 96, 96, 40), patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4)
)
SEX = {"downstream_task_type": "classification", "task_name": "sex", "num_classes": 2}
STATE = {"downstream_task_type": "classification", "task_name": "state", "num_classes": 3}
AGE = {"downstream_task_type": "regression", "task_name": "age", "label_scaling_method": "standardization"}


def write(folder: Path, outputs: int = 1, head: bool = True, **hyper: object) -> Path:
    torch.manual_seed(0)
    path = folder / "tuned.ckpt"
    torch.save(lightning_content(Encoder(CONFIG), linear_head(8, outputs) if head else None, **hyper), path)
    return path


def describe(path: Path):
    return describe_file(find_model(str(path)))


@pytest.mark.parametrize(
    ("outputs", "hyper", "missing"),
    [
        (1, SEX, ["--labels"]),
        (3, STATE, ["--labels"]),
        (1, AGE, ["--value-mean", "--value-std"]),
        (1, {"task_name": "iq"}, ["--task"]),
        (1, {}, ["--task", "--target"]),
        (1, SEX | {"labels": ["female", "male"]}, []),
        (1, SEX | {"class_names": ("female", "male")}, []),
        (1, AGE | {"target_mean": 28.5, "target_std": 3}, []),
        (5, {"downstream_task_type": "classification", "task_name": "fmri_reid"}, []),
    ],
)
def test_what_a_head_lacks_is_asked_for_by_its_option(tmp_path, outputs, hyper, missing):
    found = describe(write(tmp_path, outputs, **hyper))
    assert found.kind == "fine-tuned model"
    assert list(found.missing) == missing
    assert found.facts["clips"] == "40 volumes"


def test_the_number_of_labels_and_the_kind_of_scaling_are_named(tmp_path):
    assert "the 3 class labels in the order" in describe(write(tmp_path, 3, **STATE)).missing["--labels"]
    minmax = describe(write(tmp_path, 1, **AGE | {"label_scaling_method": "minmax"})).missing
    assert "minimum" in minmax["--value-mean"]
    assert "maximum minus minimum" in minmax["--value-std"]


def test_a_target_scaled_by_its_range_is_described_by_minimum_and_range(tmp_path):
    path = write(tmp_path, 1, **AGE | {"label_scaling_method": "minmax"})
    write_facts(path, FileFacts(head={"value_mean": 18.0, "value_std": 60.0, "unit": "years"}))
    assert describe(path).facts["scale"] == "minimum 18, maximum minus minimum 60"
    assert (
        describe(write(tmp_path, 1, **AGE | {"target_mean": 28.5, "target_std": 3})).facts["scale"].startswith("mean")
    )


def test_facts_beside_the_file_are_those_of_its_head(tmp_path):
    path = write(tmp_path, 1, **AGE)
    write_facts(path, FileFacts(head={"value_mean": 28.5, "value_std": 3.0, "unit": "years"}))
    assert describe(path).missing == {}
    card = own_head(find_model(str(path))).card
    assert (card.value_mean, card.value_std, card.unit, card.limits) == (28.5, 3.0, "years", "")


def test_a_scaling_without_a_unit_is_used(tmp_path):
    path = write(tmp_path, 1, **AGE | {"value_mean": 28.5, "value_std": 3.0})
    card = own_head(find_model(str(path))).card
    assert (card.value_mean, card.value_std, card.unit) == (28.5, 3.0, "")


def test_given_facts_take_precedence_over_those_of_the_file(tmp_path):
    checkpoint = read_checkpoint(write(tmp_path, 1, **SEX | {"labels": ["a", "b"]}))
    assert meaning_of(checkpoint, {}).labels == ("a", "b")
    assert meaning_of(checkpoint, {"labels": ["c", "d"]}).labels == ("c", "d")


@pytest.mark.parametrize("odd", [{"labels": "ab"}, {"labels": [0, 1]}, {"labels": True}, {"labels": ["a"]}])
def test_hyperparameters_of_another_kind_are_no_labels(tmp_path, odd):
    assert describe(write(tmp_path, 1, **SEX | odd)).missing.keys() == {"--labels"}


@pytest.mark.parametrize(
    "odd", [{"value_mean": 3}, {"value_mean": "3", "value_std": 1}, {"value_mean": 3, "value_std": 0}]
)
def test_an_incomplete_scaling_is_none(tmp_path, odd):
    assert "--value-mean" in describe(write(tmp_path, 1, **AGE | odd)).missing


def test_an_encoder_and_an_adapter_are_described(tmp_path):
    assert describe(write(tmp_path, head=False)).kind == "encoder"
    card = AdapterCard("sex", "classification", "sex", "0" * 64, "global", labels=("female", "male"))
    found = describe(save_adapter(tmp_path / "sex.safetensors", Adapter(card, linear_head(8))))
    assert (found.kind, found.facts["labels"], dict(found.missing)) == ("adapter", "female, male", {})


def test_a_file_that_contains_code_is_refused(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"f": Path("x")}}, tmp_path / "evil.ckpt")
    with pytest.raises(BadDataError, match="could run code"):
        describe(tmp_path / "evil.ckpt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NoInputError, match=r"none\.ckpt"):
        describe(tmp_path / "none.ckpt")


@pytest.mark.parametrize(
    ("outputs", "hyper", "head", "reason"),
    [
        (3, STATE, {"labels": ["a", "b"]}, "2 labels are known"),
        (3, STATE, {"labels": ["a", "a", "b"]}, "labels is"),
        (1, SEX, {"value_mean": 1.0, "value_std": 2.0}, "classification, which has no --value-mean, --value-std"),
        (1, AGE, {"labels": ["a", "b"]}, "regression, which has no --labels"),
        (1, AGE, {"value_mean": 3.0}, "given together"),
        (1, AGE, {"value_mean": 3.0, "value_std": -1.0}, "--value-std: -1"),
        (1, {}, {"task": "regression", "labels": ["a", "b"]}, "regression, which has no --labels"),
        (1, SEX, {"task": "regression", "value_mean": 1.0, "value_std": 2.0}, "the file's head is for classification"),
        (1, AGE, {"task": "classification", "labels": ["a", "b"]}, "the file's head is for regression"),
    ],
)
def test_facts_that_do_not_fit_the_head_are_refused(tmp_path, outputs, hyper, head, reason):
    with pytest.raises(UsageError, match=reason):
        check_head_facts(find_model(str(write(tmp_path, outputs, **hyper))), head)


def test_facts_that_fit_are_accepted(tmp_path):
    entry = find_model(str(write(tmp_path, 3, **STATE)))
    check_head_facts(entry, {"labels": ["rest", "left", "right"]})
    entry = find_model(str(write(tmp_path, 1, task_name="iq")))
    check_head_facts(entry, {"task": "regression", "value_mean": 100.0, "value_std": 15.0})


def test_an_encoder_has_no_head_to_describe(tmp_path):
    with pytest.raises(UsageError, match="has none of its own"):
        check_head_facts(find_model(str(write(tmp_path, head=False))), {"labels": ["a", "b"]})
