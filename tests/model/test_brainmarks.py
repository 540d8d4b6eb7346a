"""Encoders of Brainmarks: their construction, which weights are random, and the embedding of a sample."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.model.brainmarks import BrainmarksModel, build, describe_wrapper, embed
from tests.helpers.brainmarks import forget_brainmarks, stand_in

__all__ = ["stand_in"]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("stand_in")


def sample(n_vols: int = 12, n_columns: int = 40) -> dict:
    draws = np.random.default_rng(0)
    values = {"bold": (n_vols, n_columns), "mean": (1, n_columns), "std": (1, n_columns)}
    return {name: draws.normal(size=shape).astype(np.float32) for name, shape in values.items()} | {"tr": 2.0}


def returning(*result: object) -> BrainmarksModel:
    class Wrapper(nn.Module):
        def forward(self, batch):
            return result

    return BrainmarksModel("brainmarks:own", None, Wrapper(), {})


def test_an_encoder_without_weights_is_not_untrained() -> None:
    found = describe_wrapper("connectome", ())
    assert (found.title, found.space, found.version) == ("brainmarks:connectome", "schaefer400", "0.1.1")
    assert (found.weights_sha256, found.n_tensors, found.is_untrained) == ("", 0, False)


def test_random_weights_are_found_and_those_of_a_file_are_not(tmp_path: Path) -> None:
    untrained = describe_wrapper("transformer", ())
    assert untrained.is_untrained
    assert 0 < untrained.n_random < untrained.n_tensors  # the scales and shifts of layer norms start as 1 and 0
    torch.save(build("transformer", (), seed=7).wrapper.state_dict(), tmp_path / "tiny.pt")
    trained = describe_wrapper("transformer", (f"ckpt_path={tmp_path / 'tiny.pt'}",))
    assert (trained.is_untrained, trained.n_random) == (False, 0)
    assert trained.weights_sha256 == build("transformer", (), seed=7).weights_sha256 != untrained.weights_sha256


def test_random_weights_are_the_same_in_every_process() -> None:
    torch.manual_seed(3)
    one = build("transformer", ()).weights_sha256
    torch.manual_seed(4)
    assert build("transformer", ()).weights_sha256 == one == describe_wrapper("transformer", ()).weights_sha256


def test_the_random_numbers_of_the_program_are_not_affected() -> None:
    def draw() -> tuple:
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)

    seed()
    expected = draw()
    seed()
    build("transformer", ())
    assert draw() == expected


def test_the_facts_change_with_the_code_of_the_encoder(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_wrapper("connectome", ())
    path = stand_in / "brainmarks/models/models_of_the_tests.py"
    path.write_text(path.read_text() + "\n# another version\n")
    describe_wrapper.cache_clear()
    after = describe_wrapper("connectome", ())
    assert before.source_sha256 != after.source_sha256


def test_options_are_arguments_read_as_yaml() -> None:
    assert build("transformer", ("width=4",)).wrapper.start.shape == (1, 1, 4)
    assert describe_wrapper("identity", ("space=mni_cortex",)).space == "mni_cortex"
    with pytest.raises(UsageError, match="--model-options width="):
        build("transformer", ("width=[4",))
    with pytest.raises(BadDataError, match=r"brainmarks:transformer cannot be constructed \(TypeError.*depth"):
        build("transformer", ("depth=3",))


def test_an_unknown_name_lists_the_names_and_the_modules_that_failed() -> None:
    with pytest.raises(UsageError, match="no model 'nope'") as caught:
        describe_wrapper("nope", ())
    assert "connectome, faulty, fitted, identity, leaving, transformer." in caught.value.hint
    assert "broken failed: No module named 'no_such_package'" in caught.value.hint


def test_without_brainmarks_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_brainmarks(monkeypatch)
    monkeypatch.setitem(sys.modules, "brainmarks.models.registry", None)
    with pytest.raises(UsageError, match="needs the package brainmarks") as caught:
        describe_wrapper("connectome", ())
    assert 'pip install "neurostorm[brainmarks]"' in caught.value.hint


def test_an_encoder_that_cannot_be_constructed_is_named_and_errors_of_this_program_are_kept() -> None:
    with pytest.raises(BadDataError, match=r"brainmarks:faulty cannot be constructed \(RuntimeError: no weights\)"):
        describe_wrapper("faulty", ())
    with pytest.raises(NoInputError, match=r"weights\.pt"):
        describe_wrapper("faulty", ("own=true",))


def test_an_encoder_that_exits_is_named() -> None:
    with pytest.raises(BadDataError, match=r"brainmarks:leaving cannot be constructed \(SystemExit: no GPU\)"):
        describe_wrapper("leaving", ())


def test_a_transform_that_has_to_be_fitted_is_refused() -> None:
    with pytest.raises(UsageError, match="brainmarks:fitted: its transform takes statistics from a training dataset"):
        describe_wrapper("fitted", ())


def test_the_class_token_comes_before_patches_and_these_before_registers() -> None:
    cls, reg, patch = (torch.full((1, n, 3), float(n)) for n in (1, 2, 5))
    for result, tokens, value in (
        ((cls, reg, patch), "cls", 1),
        ((None, reg, patch), "patch", 5),
        ((None, reg, None), "reg", 2),
    ):
        found = embed(returning(*result), sample(), CPU)
        assert (found.tokens, found.values.tolist()) == (tokens, [value] * 3)
        assert found.values.dtype == np.float32


def test_tokens_are_averaged_and_dropout_is_off() -> None:
    model = build("transformer", ())
    model.wrapper.train()
    one, again = (embed(model, sample(), CPU).values for _ in range(2))
    assert (one == again).all()
    patches = model.transform({name: torch.as_tensor(value) for name, value in sample().items()})["bold"][None]
    with torch.inference_mode():
        expected = model.wrapper({"bold": patches}).cls_embeds[0, 0].numpy()
    assert np.allclose(one, expected, atol=1e-6)


def test_tokens_that_cancel_are_rounding_error() -> None:
    bold = sample()["bold"]
    bold -= bold.mean(axis=0)
    assert embed(build("identity", ()), sample() | {"bold": bold}, CPU).is_rounding_error
    assert not embed(build("identity", ()), sample() | {"bold": bold + 0.1}, CPU).is_rounding_error
    assert embed(returning(None, None, torch.zeros(1, 3, 2)), sample(), CPU).is_rounding_error


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((None, None, None), "returned no tokens"),
        ((torch.zeros(1, 3), None, None), r"cls tokens of shape \(1, 3\)"),
        ((None, None, torch.zeros(1, 0, 3)), r"patch tokens of shape \(1, 0, 3\)"),
        ((None, None, torch.zeros(1, 2, 3, dtype=torch.complex64)), "type torch.complex64"),
        ((None, None, torch.full((1, 2, 3), torch.nan)), "NaN"),
        ((None, None), r"brainmarks:own failed \(ValueError"),
    ],
)
def test_results_that_are_not_as_in_the_contract_are_errors(result: tuple, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        embed(returning(*result), sample(), CPU)


def test_a_run_that_the_encoder_cannot_read_is_an_error() -> None:
    with pytest.raises(BadDataError, match=r"brainmarks:transformer failed \(ValueError: fewer than 4 volumes\)"):
        embed(build("transformer", ()), sample(n_vols=3), CPU)
