"""``neurostorm-models card``: of a model or an adapter, by name or file, whether its weights are here or not."""

from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.models import find_adapter, find_model
from bids_app.cli.models import main


def test_the_card_of_a_model_that_is_here_has_its_hashes(capsys):
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


def test_without_the_weights_the_card_tells_what_is_known(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path))
    assert main(["card", "neurostorm-5ds"]) == 0
    told = capsys.readouterr()
    assert "- Participants: more than 50,000" in told.out
    assert "## Hashes\n\nNot known." in told.out
    assert "not on this machine" in told.err


def test_what_is_neither_a_name_nor_a_file_is_a_mistake_of_use(capsys, tmp_path):
    assert main(["card", "nonsense"]) == 64
    assert main(["card", str(tmp_path / "none.safetensors")]) == 66
