"""Adapters are checked without their encoder, for their cards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bids_app.adapters.checks import check_alone
from bids_app.adapters.file import load_adapter
from bids_app.catalog.models import find_adapter
from bids_app.cli.models import main
from bids_app.errors import BadDataError
from bids_app.model.api import load_model
from tests.helpers.hostile_weights import adapter_bytes, head, reference, write

WRONG = {
    "not finite": {"tensors": head(torch.full((1, 8), torch.nan))},
    "above 1e+18": {"tensors": head(torch.full((1, 8), 1e38))},
    "the head has 4 outputs, but the card requires 5": {
        "tensors": head(torch.zeros(4, 8), torch.zeros(4)),
        "labels": list("abcde"),
    },
    "the weights do not fit the encoder (not finite": {
        "tensors": {"encoder.patch_embed.fc.weight": torch.full((2,), torch.nan)},
        "strategy": "full",
    },
    "the reference statistics (embedding) have 8 features, but the head reads 9": {
        "tensors": head(torch.zeros(1, 9)) | reference()
    },
    "the head reads 9 features, but the encoder has 8": {
        "tensors": {"twin.head.weight": torch.zeros(1, 9), "twin.head.bias": torch.zeros(1)},
        "twin": {"normalisation": "global"},
    },
}


class OtherModel:
    """Encoder that is not on this machine."""

    weights_sha256 = "0" * 64


def test_an_intact_adapter_passes() -> None:
    check_alone(load_adapter(find_adapter("demo-state").path))


@pytest.mark.parametrize("reason", WRONG)
def test_the_card_of_an_adapter_that_the_app_refuses_is_not_shown(tmp_path: Path, reason: str, capsys) -> None:
    path = write(tmp_path / "a.safetensors", adapter_bytes(OtherModel(), **WRONG[reason]))
    with pytest.raises(BadDataError):
        check_alone(load_adapter(path))
    for options in ([], ["--json"]):
        assert main(["card", str(path), *options]) == 65
        said = capsys.readouterr()
        assert said.out == ""
        assert reason in said.err.replace("The ", "the ", 1)
        assert str(path) in said.err


def test_the_width_is_that_of_the_encoder_if_it_is_on_this_machine(tmp_path: Path, capsys) -> None:
    model = load_model("demo")
    wrong = head(torch.zeros(1, model.config.n_features + 1))
    path = write(tmp_path / "a.safetensors", adapter_bytes(model, wrong))
    assert main(["card", str(path)]) == 65
    assert f"the encoder has {model.config.n_features}" in capsys.readouterr().err
    write(path, adapter_bytes(model, head(torch.zeros(1, model.config.n_features))))
    assert main(["card", str(path)]) == 0
