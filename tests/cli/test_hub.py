"""Commands for the hub: list --hub, fetch hf:..., push, with a stand-in for the hub."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

from bids_app.adapters.own_head import own_head, read_any_adapter
from bids_app.catalog.models import catalog, find_adapter, find_model, weights_path
from bids_app.cli.models import main
from bids_app.errors import NoInputError
from bids_app.model.api import load_model
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.settings import ModelSettings
from bids_app.settings.definitions import Settings
from bids_app.workflow.adapters import chosen_adapters
from bids_app.workflow.context import choose_model
from bids_app.workflow.preflight import check_fit
from tests.helpers.hub import COMMIT, serve_hub
from tests.helpers.models import lightning_content, linear_head

CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))
SEX = {"downstream_task_type": "classification", "task_name": "sex", "num_classes": 2}
AGE = {"downstream_task_type": "regression", "task_name": "age", "label_scaling_method": "standardization"}
BRANCH = "hf:lab/model@main:task1/tuned sex.ckpt"
PINNED = f"hf:lab/model@{COMMIT}:task1/tuned sex.ckpt"


def checkpoint(**hyper: object) -> bytes:
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save(lightning_content(Encoder(CONFIG), linear_head(8), **hyper), file)
    return file.getvalue()


def settings(**model: object) -> Settings:
    here = Path("here")
    return Settings(here, here, "participant", here, model=ModelSettings(**model))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serve_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def published(hub):
    """The repository of the catalog: known files and one that the catalog does not have, and another repository."""
    sex, age, tuned = checkpoint(**SEX), checkpoint(**AGE), "task5/TPT LoRA rank64.ckpt"
    for revision in {entry.revision for entry in catalog().values() if entry.repo}:
        known = [entry.file for entry in catalog().values() if entry.revision == revision]
        files = dict.fromkeys(known, sex) | {"README.md": b"# Card", tuned: age}
        files.pop("task1/neurostorm_hcpya_sex.ckpt", None)
        hub.add("zxcvb20001/NeuroSTORM", files, revision)
    hub.add("lab/model", {"task1/tuned sex.ckpt": sex, "age.ckpt": age})
    return hub


def test_the_hub_is_listed_with_what_is_known_and_how_to_fetch_the_rest(published, capsys):
    assert main(["list", "--hub"]) == 0
    told = capsys.readouterr().out
    entry = find_model("hcpya-age")
    assert f"zxcvb20001/NeuroSTORM, revision {entry.revision} (mit, public):" in told
    assert "in the catalog as hcpya-age, to fetch" in told
    assert "    neurostorm-models fetch hcpya-age\n" in told
    other = f"'hf:zxcvb20001/NeuroSTORM@{entry.revision}:task5/TPT LoRA rank64.ckpt'"
    assert f"not in the catalog, to fetch\n    neurostorm-models fetch {other}\n" in told
    assert f"sha256 {hashlib.sha256(checkpoint(**AGE)).hexdigest()}" in told
    assert "hcpya-sex of the catalog is NOT in the repository" in told
    assert "README.md" not in told
    assert told.count("NeuroSTORM, revision") == 2


def test_a_file_that_differs_from_the_known_one_is_marked(published, capsys):
    main(["list", "--hub"])  # the catalog has the size of the pre-training file
    lines = capsys.readouterr().out.split("pt_neurostorm_mae_5ds.ckpt")[1].splitlines()
    assert "DIFFERS" in lines[3]


def test_any_repository_can_be_listed_and_files_here_are_named(published, capsys):
    main(["fetch", PINNED, "--labels", "female,male"])
    capsys.readouterr()
    assert main(["list", "--hub", "lab/model"]) == 0
    told = capsys.readouterr().out
    assert "not in the catalog, here" in told
    assert f"lab/model, revision {COMMIT}" in told


def test_without_the_hub_its_list_is_an_error_and_that_of_the_catalog_works(published, monkeypatch, capsys):
    main(["fetch", PINNED, "--labels", "female,male"])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["list", "--hub"]) == 75
    assert "cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["list", "--hub"]) == 75
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    assert "hcpya-age" in told
    assert f"files of the hub:\n  {PINNED}" in told


def test_what_a_head_lacks_is_asked_for_and_stored_when_given(published, capsys):
    assert main(["fetch", BRANCH]) == 64
    told = capsys.readouterr()
    assert f"sha256 {hashlib.sha256(checkpoint(**SEX)).hexdigest()}" in told.out
    assert "--labels (the 2 class labels in the order of the outputs" in told.err
    assert "Repeat the command with --labels" in told.err
    published.requests.clear()
    assert main(["fetch", BRANCH, "--labels", "female,male"]) == 0
    assert "--model 'hf:lab/model@main:task1/tuned sex.ckpt'" in capsys.readouterr().out
    assert main(["fetch", BRANCH]) == 0
    assert published.requests == []
    for name in (BRANCH, PINNED, str(find_model(PINNED).path)):
        card = own_head(find_model(name)).card
        assert (card.name, card.labels, card.licence) == ("tunedsex", ("female", "male"), "mit")


def test_the_scaling_of_a_regression_is_stored(published):
    age = "hf:lab/model@main:age.ckpt"
    assert main(["fetch", age]) == 64
    assert main(["fetch", age, "--value-mean", "28.5", "--value-std", "3", "--unit", "years"]) == 0
    card = own_head(find_model(age)).card
    assert (card.value_mean, card.value_std, card.unit) == (28.5, 3.0, "years")


def test_facts_that_do_not_fit_are_refused_and_not_stored(published, capsys):
    assert main(["fetch", PINNED, "--labels", "a,b,c"]) == 64
    assert "3 labels are known" in capsys.readouterr().err
    assert find_model(PINNED).head == {}
    assert main(["fetch", PINNED, "hf:lab/model@main:age.ckpt", "--labels", "a,b"]) == 64
    assert "describe one file" in capsys.readouterr().err


def test_facts_of_a_catalog_model_can_be_given(published, capsys):
    name = "abide-diagnosis"
    assert main(["fetch", name, "--labels", "control,autism"]) == 0
    assert f"--model {name} --acknowledge-research-use" in capsys.readouterr().out
    assert own_head(find_model(name)).card.labels == ("control", "autism")


def test_all_files_are_fetched_before_the_error_of_one(published, capsys):
    assert main(["fetch", BRANCH, "hf:lab/model@main:age.ckpt"]) == 64
    assert find_model("hf:lab/model@main:age.ckpt").path.is_file()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("hf:lab/model@main:../x.ckpt", 64),
        ("hf:lab/model@main:none.ckpt", 66),
        ("hf:lab/model@v9:age.ckpt", 66),
        ("hf:lab/none@main:age.ckpt", 66),
    ],
)
def test_errors_have_their_exit_code(published, capsys, text, code):
    assert main(["fetch", text]) == code
    assert "neurostorm-models: error: " in capsys.readouterr().err


def test_the_head_of_a_reference_is_applied_and_the_encoder_has_the_name_of_the_file(published):
    main(["fetch", BRANCH, "--labels", "female,male"])
    wanted = settings(model=BRANCH)
    check_fit(wanted)
    (chosen,) = chosen_adapters(wanted)
    assert choose_model(wanted).adapters == (chosen.path,)
    assert read_any_adapter(chosen.path, find_model(BRANCH)).card == chosen.card
    assert (chosen.card.labels, chosen.path) == (("female", "male"), find_model(PINNED).path)
    assert load_model(BRANCH).name == "tuned sex"


def test_a_run_never_downloads_and_hints_at_the_command(published):
    for wanted in (settings(model=BRANCH), settings(model="demo", adapters=("hf:lab/sex",))):
        with pytest.raises(NoInputError) as caught:
            chosen_adapters(wanted)
        assert "neurostorm-models fetch hf:lab/" in caught.value.hint
        assert published.requests == []


def test_a_stored_file_is_verified_described_and_converted(published, capsys, tmp_path):
    main(["fetch", BRANCH, "--labels", "female,male"])
    assert main(["verify"]) == 0
    assert main(["verify", BRANCH]) == 0
    assert f"{PINNED}: {find_model(PINNED).path} is intact" in capsys.readouterr().out
    assert main(["card", BRANCH]) == 0
    assert "- Labels: female, male" in capsys.readouterr().out
    assert main(["convert", BRANCH, str(tmp_path / "sex.safetensors"), "--adapter", "sex"]) == 0
    find_model(PINNED).path.write_bytes(b"other")
    assert main(["verify"]) == 65


def test_an_adapter_is_published_and_used_from_the_hub(hub, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert main(["push", "demo-state", "lab/demo"]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.url}/lab/demo/commit/")
    monkeypatch.delenv("HF_TOKEN")
    for text in ("hf:lab/demo", "hf:lab/demo@main", "hf:lab/demo@main:demostate.safetensors"):
        assert main(["fetch", text]) == 0
        assert f"--adapter {text}" in capsys.readouterr().out
        (chosen,) = chosen_adapters(settings(model="demo", adapters=(text,)))
        assert chosen.card.name == "demostate"
        assert main(["card", text]) == 0
        assert "# Adapter " in capsys.readouterr().out


def test_a_dry_run_writes_the_files_and_uploads_nothing(hub, capsys, tmp_path):
    assert main(["push", "demo-state", "lab/demo", "--dry-run"]) == 0
    assert "Nothing was uploaded" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "demo_hub").iterdir()) == ["README.md", "demostate.safetensors"]
    assert ModelCard.load(tmp_path / "demo_hub" / "README.md").data.license == "apache-2.0"
    assert main(["push", "demo-state", "lab/demo", "--dry-run", "--output", "there"]) == 0
    assert (tmp_path / "there" / "README.md").is_file()
    assert hub.requests == []


def test_what_may_not_be_published_is_refused_before_any_request(hub, monkeypatch, capsys, tmp_path):
    from bids_app.adapters.file import load_adapter, save_adapter

    monkeypatch.setenv("HF_TOKEN", hub.token)
    adapter = load_adapter(weights_path(find_adapter("demo-state")))
    cohort = adapter.card.cohort | {"excluded": "sub-07"}
    path = str(save_adapter(tmp_path / "own.safetensors", replace(adapter, card=replace(adapter.card, cohort=cohort))))
    assert main(["push", path, "lab/demo"]) == 64
    assert "--omit cohort.excluded" in capsys.readouterr().err
    assert hub.requests == []
    assert main(["push", path, "lab/demo", "--omit", "cohort.excluded"]) == 0
    repo = hub.repositories["lab/demo"]
    assert all(b"sub-07" not in data for data in repo.files[repo.revisions["main"]].values())


def test_push_without_a_token_is_refused(hub, capsys):
    assert main(["push", "demo-state", "lab/demo"]) == 66
    assert "HF_TOKEN" in capsys.readouterr().err


def test_push_to_a_public_repository_with_private_is_refused(hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.add("lab/demo", {})
    assert main(["push", "demo-state", "lab/demo", "--private"]) == 64
    assert main(["push", "demo-state", "lab/other", "--private"]) == 0
    assert hub.repositories["lab/other"].private


def test_a_repository_without_its_prefix_is_suggested_with_it(capsys):
    assert main(["fetch", "lab/many"]) == 64
    assert "give hf:lab/many." in capsys.readouterr().err
    assert main(["fetch", "many"]) == 64
    assert "hf:many" not in capsys.readouterr().err
