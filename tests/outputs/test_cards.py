"""``neurostorm-models card`` of a model or adapter, by name or file, with and without its weights."""

import pytest
import torch

from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.models import find_adapter, find_model
from bids_app.cli.models import main
from bids_app.model.encoder import Encoder, EncoderConfig
from tests.helpers.models import lightning_content, linear_head


def test_the_card_of_an_installed_model_has_its_hashes(capsys):
    assert main(["card", "demo"]) == 0
    card = capsys.readouterr().out
    assert card.startswith("# Model demo\n")
    assert file_sha256(find_model("demo").path) in card
    assert "70 simulated participants" in card


def test_the_card_of_an_adapter_is_the_same_by_name_and_by_file(capsys, tmp_path):
    assert main(["card", "demo-state"]) == 0
    by_name = capsys.readouterr().out
    assert main(["card", str(find_adapter("demo-state").path), "--output", str(tmp_path / "card.md")]) == 0
    by_file = (tmp_path / "card.md").read_text()
    assert "- Labels: lefthand, rest, righthand, visual" in by_name

    def told(card):
        return [line for line in card.splitlines() if not line.startswith("- Description: ")]

    assert told(by_file) == told(by_name)


def test_without_weights_the_card_has_catalog_facts_only(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path))
    assert main(["card", "neurostorm-5ds"]) == 0
    told = capsys.readouterr()
    assert "- Participants: more than 50,000" in told.out
    assert "## Hashes\n\nNot known." in told.out
    assert "not on this machine" in told.err


def test_neither_name_nor_file_is_a_usage_error(capsys, tmp_path):
    assert main(["card", "nonsense"]) == 64
    assert main(["card", str(tmp_path / "none.safetensors")]) == 66


@pytest.mark.parametrize(
    ("hyper", "told"),
    [
        (
            {"downstream_task_type": "classification", "task_name": "abide_diagnosis", "num_classes": 2},
            (
                "- Target: abide_diagnosis",
                "class0, class1",
                "mean logit",
                "Not calibrated",
                "For research on groups only",
            ),
        ),
        ({}, ("The head in the file cannot be applied: ", "hyper_parameters")),
    ],
)
def test_the_card_of_a_fine_tuned_file_describes_its_head(capsys, tmp_path, hyper, told):
    encoder = Encoder(EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1)))
    torch.save(lightning_content(encoder, linear_head(8), **hyper), tmp_path / "tuned.ckpt")
    assert main(["card", str(tmp_path / "tuned.ckpt")]) == 0
    card = capsys.readouterr().out
    assert card.startswith("# Model tuned\n")
    assert [text for text in told if text not in card] == []
