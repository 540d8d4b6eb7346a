"""The README.md of a published adapter, with the front matter of the hub."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from bids_app.adapters.file import Adapter, AdapterCard, load_adapter, save_adapter
from bids_app.catalog.models import find_adapter, find_model
from bids_app.errors import BadDataError, UsageError
from bids_app.model.checkpoint import write_safetensors
from bids_app.outputs.hub_card import hub_metadata, write_publication
from tests.helpers.models import linear_head

CARD = AdapterCard(
    name="sex",
    task="classification",
    target="sex",
    encoder_sha256="0" * 64,
    normalisation="voxel",
    labels=("female", "male"),
    cohort={"participants": 70, "scans": 90, "description": "ds000030"},
    metrics={"validation": {"accuracy": 0.81, "balanced_accuracy": 0.8, "auroc": 0.9, "scans": 12}},
    intended_use="Research on groups.",
    limits="One scanner.",
    licence="CC-BY-4.0",
)


def publish(folder, card=CARD, changes=(), **options):
    path = save_adapter(folder / "own" / "mine.safetensors", Adapter(card, linear_head(8)))
    return write_publication(str(path), "lab/sex", folder / "out", dict(changes), **options)


def test_the_front_matter_is_valid_for_the_hub(tmp_path):
    readme, adapter = publish(tmp_path, base_model="lab/encoder", datasets=["lab/bold"])
    card = ModelCard.load(readme)
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "neurostorm"
    assert card.data.base_model == "lab/encoder"
    assert card.data.datasets == ["lab/bold"]
    assert {"neurostorm", "fmri", "classification", "sex"} <= set(card.data.tags)
    assert card.data.metrics == ["accuracy", "balanced_accuracy", "roc_auc"]
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.pipeline_tag is None
    assert adapter.name == "sex.safetensors"


def test_the_model_index_has_the_metrics_of_the_adapters_own_evaluation(tmp_path):
    readme, _ = publish(tmp_path)
    name, results = model_index_to_eval_results(metadata_load(readme)["model-index"])
    assert name == "sex"
    assert [(r.metric_type, r.metric_value) for r in results] == [
        ("accuracy", 0.81), ("balanced_accuracy", 0.8), ("roc_auc", 0.9),
    ]  # fmt: skip
    assert all(isinstance(result, EvalResult) and "12 scans" in result.dataset_name for result in results)
    assert ModelCard.load(readme).data.eval_results == results


def test_without_an_evaluation_there_is_no_model_index(tmp_path):
    readme, _ = publish(tmp_path, replace(CARD, metrics={}))
    assert not {"model-index", "metrics"} & set(metadata_load(readme))


def test_the_card_and_the_commands_to_use_it_follow_the_front_matter(tmp_path):
    readme, _ = publish(tmp_path)
    text = ModelCard.load(readme).text
    assert "Not a medical device" in text
    assert "Research on groups." in text
    assert "neurostorm-models fetch hf:lab/sex@main:sex.safetensors" in text
    assert f"`MODEL` is the encoder with the SHA-256 `{'0' * 64}`" in text


def test_the_encoder_on_this_machine_is_named(tmp_path):
    readme, adapter = write_publication("demo-state", "lab/demo", tmp_path, {})
    assert "--model demo --adapter hf:lab/demo@main:demostate.safetensors" in readme.read_text()
    assert load_adapter(adapter).card == load_adapter(find_adapter("demo-state").path).card


def test_an_embedding_has_the_task_of_the_hub_and_a_diagnosis_a_warning(tmp_path):
    embedding = replace(CARD, task="embedding", target="participant", labels=(), dimensions=8)
    assert hub_metadata(embedding, "").pipeline_tag == "feature-extraction"
    diagnosis = replace(CARD, target="diagnosis", research_only=True)
    assert "research-only" in hub_metadata(diagnosis, "").tags
    assert "For research on groups only" in publish(tmp_path, diagnosis)[0].read_text()


def test_a_licence_that_the_hub_does_not_know_is_named():
    data = hub_metadata(replace(CARD, licence="My Lab Licence 2"), "")
    assert (data.license, data.license_name) == ("other", "my-lab-licence-2")


def test_a_description_is_a_dataset_only_if_it_is_an_identifier():
    assert hub_metadata(CARD, "").datasets == ["ds000030"]
    assert hub_metadata(replace(CARD, cohort={"description": "HCP Young Adult"}), "").datasets is None


def test_text_of_the_card_cannot_add_fields_to_the_front_matter(tmp_path):
    card = replace(CARD, target="sex: x, license: mit", limits="\n---\nlicense: mit\n---\n")
    readme, _ = publish(tmp_path, card)
    assert metadata_load(readme)["license"] == "cc-by-4.0"
    front = readme.read_text().split("---\n")[1]
    assert "sex: x, license: mit" in yaml.safe_load(front)["tags"]


def test_given_texts_become_part_of_the_uploaded_file(tmp_path):
    changes = {"intended_use": "To test.", "licence": "MIT", "limits": None}
    _, adapter = publish(tmp_path, replace(CARD, intended_use="", licence=""), changes)
    card = load_adapter(adapter).card
    assert (card.intended_use, card.licence, card.limits) == ("To test.", "MIT", "One scanner.")


def test_what_may_not_be_published_is_refused_and_nothing_written(tmp_path):
    for card in (replace(CARD, intended_use=""), replace(CARD, limits="Not sub-01.")):
        with pytest.raises(UsageError, match="not published"):
            publish(tmp_path, card)
    assert not (tmp_path / "out").exists()


def test_labels_of_the_split_file_beside_the_adapter_are_refused(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.split.tsv").write_text("participant_id\tsplit\nsub-NDAR1\ttraining\n")
    with pytest.raises(UsageError, match="NDAR1"):
        publish(tmp_path, replace(CARD, cohort={"best": "NDAR1"}))


def test_parts_that_are_left_out_are_neither_in_the_file_nor_in_the_readme(tmp_path):
    card = replace(CARD, cohort={"participants": 3, "scans_of_each": {"sub-01": 1, "sub-02": 2}})
    readme, adapter = publish(tmp_path, card, omitted=["cohort.scans_of_each"])
    assert b"sub-01" not in adapter.read_bytes()
    assert "sub-01" not in readme.read_text()


def test_metadata_besides_the_card_are_not_published(tmp_path):
    path = save_adapter(tmp_path / "mine.safetensors", Adapter(CARD, linear_head(8)))
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    write_safetensors(path, tensors, {**metadata, "origin": "/home/me/sub-01"})
    _, adapter = write_publication(str(path), "lab/sex", tmp_path / "out", {})
    assert b"/home/me" not in adapter.read_bytes()


def test_a_file_that_is_no_adapter_and_names_that_are_none_are_refused(tmp_path):
    with pytest.raises(BadDataError):
        write_publication(str(find_model("demo").path), "lab/demo", tmp_path, {})
    with pytest.raises(UsageError, match="Invalid name on the hub"):
        publish(tmp_path, base_model="lab/a/b")
