"""Each adapter file is opened once in an invocation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bids_app.adapters.file import Adapter, AdapterCard, save_adapter
from bids_app.catalog.fetch import file_sha256
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import load_model
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.settings import PARTICIPANT, ModelSettings, Settings
from bids_app.workflow import adapters
from bids_app.workflow.adapters import chosen_adapters, read_adapter
from bids_app.workflow.context import choose_model
from bids_app.workflow.preflight import CHECKS, check_fit
from tests.helpers.models import lightning_content

OPENED: list[str] = []
"""Files opened by Python since `opened` started to record."""


def _listen(event: str, arguments: tuple) -> None:
    if event == "open":
        OPENED.append(str(arguments[0]))


@pytest.fixture(scope="module")
def listening() -> None:
    sys.addaudithook(_listen)  # stays until the process ends


@pytest.fixture
def opened(listening, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the files that are opened, by Python or by safetensors (which bypasses Python)."""
    from bids_app.model import checkpoint

    original = checkpoint.safe_open
    monkeypatch.setattr(checkpoint, "safe_open", lambda path, **kw: OPENED.append(str(path)) or original(path, **kw))
    adapters._read.cache_clear()
    OPENED.clear()
    yield OPENED
    adapters._read.cache_clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    card = AdapterCard("mood", "classification", "mood", load_model("demo").weights_sha256, "voxel", ("low", "high"))
    return save_adapter(tmp_path / "mood.safetensors", Adapter(card, {"head.weight": torch.zeros(1, 8)}))


def settings(tmp_path: Path, file: Path) -> Settings:
    model = ModelSettings(model="demo", adapters=(str(file),))
    return Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work", model=model)


def test_checks_methods_text_and_steps_open_an_adapter_once(tmp_path: Path, file: Path, opened: list[str]) -> None:
    wanted = settings(tmp_path, file)
    CHECKS["weights"](wanted)
    assert CHECKS["adapters"](wanted) == "mood"
    chosen = choose_model(wanted)
    assert "mood" in [sentence.values.get("adapter") for sentence in chosen.sentences]
    assert opened.count(str(file)) == 1
    assert chosen.adapters == (file,)
    assert chosen.hashes[str(file)] == file_sha256(file)


def test_a_changed_file_is_read_again(tmp_path: Path, file: Path, opened: list[str]) -> None:
    (before,) = chosen_adapters(settings(tmp_path, file))
    file.write_bytes(file.read_bytes() + b"\0")
    opened.clear()
    with pytest.raises(BadDataError, match=r"mood\.safetensors: not a readable safetensors file"):
        read_adapter(file)
    assert before.card.name == "mood"


def test_no_adapter_is_read_for_embeddings_only(tmp_path: Path, file: Path, opened: list[str]) -> None:
    model = ModelSettings(model="demo", adapters=(str(file),), embeddings_only=True)
    wanted = Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work", model=model)
    assert chosen_adapters(wanted) == ()
    assert str(file) not in opened


def test_adapters_of_the_same_name_are_refused(tmp_path: Path, file: Path) -> None:
    again = tmp_path / "site2.safetensors"
    again.write_bytes(file.read_bytes())
    both = ModelSettings(model="demo", adapters=(str(file), str(again)))
    wanted = Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work", model=both)
    with pytest.raises(UsageError, match=r"mood\.safetensors and .*site2\.safetensors: both adapters are named mood"):
        chosen_adapters(wanted)
    with pytest.raises(UsageError):
        CHECKS["adapters"](wanted)


def test_an_adapter_that_is_given_twice_is_applied_once(tmp_path: Path, file: Path) -> None:
    twice = ModelSettings(model="demo", adapters=(str(file), str(file)))
    assert len(chosen_adapters(Settings(tmp_path, tmp_path / "o", PARTICIPANT, tmp_path / "w", model=twice))) == 1


@pytest.fixture
def fine_tuned(tmp_path: Path) -> Path:
    """A fine-tuned file of the published code, with a head for sex."""
    torch.manual_seed(0)
    config = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))
    head = {"head.weight": torch.randn(1, 8), "head.bias": torch.zeros(1)}
    content = lightning_content(Encoder(config), head, downstream_task_type="classification", task_name="sex")
    torch.save(content, tmp_path / "tuned.ckpt")
    return tmp_path / "tuned.ckpt"


def of_model(tmp_path: Path, path: Path, **changes) -> Settings:
    model = ModelSettings(model=str(path), **changes)
    return Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work", model=model)


def test_the_head_of_a_fine_tuned_model_is_applied_by_default(tmp_path: Path, fine_tuned: Path) -> None:
    wanted = of_model(tmp_path, fine_tuned)
    assert CHECKS["adapters"](wanted) == "tuned"
    check_fit(wanted)
    chosen = choose_model(wanted)
    assert chosen.adapters == (fine_tuned,)
    assert chosen.hashes == {str(fine_tuned): file_sha256(fine_tuned)}
    (sentence,) = (s for s in chosen.sentences if s.name == "adapter")
    assert sentence.values["average"] == "mean logit over clips, as published"


def test_an_adapter_that_is_given_replaces_the_head_of_the_model(tmp_path: Path, fine_tuned: Path, file: Path) -> None:
    (chosen,) = chosen_adapters(of_model(tmp_path, fine_tuned, adapters=(str(file),)))
    assert chosen.path == file
    assert chosen_adapters(of_model(tmp_path, fine_tuned, embeddings_only=True)) == ()


def test_a_head_of_an_unknown_kind_is_refused_except_for_embeddings(tmp_path: Path, fine_tuned: Path) -> None:
    content = torch.load(fine_tuned, weights_only=True)
    content["state_dict"]["output_head.projector.weight"] = torch.zeros(2, 8)
    torch.save(content, fine_tuned)
    with pytest.raises(BadDataError, match=r"tuned\.ckpt.*projector\.weight"):
        CHECKS["adapters"](of_model(tmp_path, fine_tuned))
    minimal = of_model(tmp_path, fine_tuned, embeddings_only=True)
    check_fit(minimal)
    assert choose_model(minimal).adapters == ()


def test_the_facts_of_the_card_of_a_head_are_part_of_the_stamp(tmp_path: Path, fine_tuned: Path) -> None:
    (found,) = chosen_adapters(of_model(tmp_path, fine_tuned))
    assert replace(found, card=replace(found.card, labels=("a", "b"))).stamp != found.stamp
