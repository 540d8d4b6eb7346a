"""The published recipe has the published numbers; ours differs from it only where the documentation says so."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from bids_app.adapters.file import STRATEGIES
from bids_app.cli.train import parser
from bids_app.errors import UsageError
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.heads import LinearHead
from bids_app.training.adapt import AdaptSettings, Learner
from bids_app.training.arguments import complete_from_recipe, describe_recipe
from bids_app.training.commands import _adapt_settings
from bids_app.training.optimiser import make_optimiser
from bids_app.training.pretrain_command import _pretrain_settings
from bids_app.training.recipes import OURS, PRETRAINING, PUBLISHED, RECIPES, Recipe, find_recipe

DOCS = Path(__file__).parents[2] / "docs" / "published.md"


def arguments(command: str, *options: str):
    more = () if command == "pretrain" else ("--target", "participants.tsv:sex")
    found = parser().parse_args([command, "data", "--output", "x.safetensors", *more, *options])
    complete_from_recipe(found, PRETRAINING if command == "pretrain" else found.strategy)
    return found


def test_pre_training_has_each_published_number():
    found = arguments("pretrain", "--recipe", "published")
    settings = _pretrain_settings(found)
    loop = settings.loop
    assert {loop.learning_rate_at(step, 1000) for step in (0, 1, 500, 999)} == {5e-5}
    assert (loop.epochs, loop.clip_norm, loop.beta2, loop.weight_decay) == (30, None, 0.999, 0.01)
    groups = make_optimiser(torch.nn.Linear(2, 2), loop).param_groups
    assert {(g["betas"], g["weight_decay"], g["eps"]) for g in groups} == {((0.9, 0.999), 0.01, 1e-8)}
    assert (found.batch_size, found.normalisation) == (8, "global")
    assert (settings.mask.spatial, settings.mask.temporal, settings.mask.ratio) == ("window", "random", 0.5)
    assert (settings.strd, settings.matmul) == (None, "high")
    augment = settings.augment
    assert (augment.p_affine, augment.degrees, augment.scale, augment.shift, augment.padding) == (
        1,
        10,
        0.1,
        0,
        "border",
    )
    assert (augment.p_noise, augment.noise, augment.same_noise) == (0.3, 0.1, True)
    assert (augment.p_smooth, augment.sigma) == (0.1, 0.5)
    assert find_recipe(PUBLISHED).aligned_starts


def test_redundancy_dropout_is_on_if_asked_for():
    assert _pretrain_settings(arguments("pretrain", "--recipe", "published", "--strd")).strd == (5, 5)
    assert _pretrain_settings(arguments("pretrain")).strd == (5, 5)
    assert _pretrain_settings(arguments("pretrain", "--no-strd")).strd is None


@pytest.mark.parametrize("strategy", ["full", "prompt"])
def test_fine_tuning_has_each_published_number(strategy):
    found = arguments("adapt", "--recipe", "published", "--strategy", strategy)
    settings = _adapt_settings(found)
    assert {settings.loop.learning_rate_at(step, 1000) for step in (0, 1, 500, 999)} == {5e-5}
    assert (settings.loop.clip_norm, settings.loop.beta2, settings.prompt_len) == (None, 0.999, 50)
    assert (found.normalisation, settings.head_input, settings.clip_average) == ("global", "raw", "outputs")
    assert (settings.balance, settings.aligned_starts, settings.matmul) == (False, True, "high")


def test_prompts_begin_as_a_truncated_normal_of_the_published_width():
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(img_size=(24, 24, 24, 4), embed_dim=64, depths=(1, 1), prompt_len=50))
    prompts = torch.cat([p.detach().flatten() for name, p in encoder.named_parameters() if name.endswith(".prompt")])
    assert prompts.std() == pytest.approx(0.02, rel=0.03)
    assert prompts.abs().max() < 2.0  # truncated at 2
    outside = (prompts.abs() > 0.04).double().mean()
    assert outside == pytest.approx(0.0455, abs=0.01)  # normal, not uniform


def test_a_raw_head_reads_the_embedding(tiny_model):
    head = LinearHead(tiny_model.config.n_features, 1)
    learner = Learner(tiny_model, head, AdaptSettings("full", head_input="raw"))
    clips = torch.randn(2, 1, 96, 96, 96, 20)
    expected = head.head(tiny_model.encode(clips).mean(dim=(2, 3, 4, 5)))
    torch.testing.assert_close(learner(clips), expected)


def test_full_fine_tuning_has_the_published_rate_in_both_recipes():
    for name in RECIPES:
        assert _adapt_settings(arguments("adapt", "--recipe", name, "--strategy", "full")).loop.learning_rate == 5e-5


def test_each_recipe_has_values_for_every_method():
    for recipe in RECIPES.values():
        assert set(recipe.learning_rates) == set(recipe.epochs) == {PRETRAINING, *STRATEGIES}


def settings_that_differ() -> set[str]:
    """Names of the settings in which the recipes differ; those of their parts have the name of the part in front."""
    published, ours = RECIPES[PUBLISHED], RECIPES[OURS]
    found = set()
    for field in fields(Recipe):
        one, other = getattr(published, field.name), getattr(ours, field.name)
        if field.name in ("loop", "augment"):
            names = [f"{field.name}.{f.name}" for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)]
        else:
            names = [field.name] if one != other else []
        found.update(names)
    return found


def test_the_documentation_lists_each_difference_of_ours_with_a_reason():
    rows = re.findall(r"^\| `([\w.]+)` \|(.*)\|(.*)\|(.*)\|$", DOCS.read_text(), re.MULTILINE)
    assert {name for name, *_ in rows} == settings_that_differ()
    assert all(len(cell.strip()) > 0 for row in rows for cell in row)


def test_options_override_the_recipe_and_are_named():
    found = arguments(
        "adapt", "--recipe", "published", "--strategy", "full", "--learning-rate", "1e-4", "--epochs", "30"
    )
    assert _adapt_settings(found).loop.learning_rate == 1e-4
    assert describe_recipe(found, "full") == "published, with learning_rate 0.0001"
    assert (
        describe_recipe(arguments("pretrain", "--strd", "--recipe", "published"), PRETRAINING) == "published, with strd"
    )
    assert describe_recipe(arguments("pretrain"), PRETRAINING) == "ours"


def test_an_unknown_recipe_is_an_error():
    with pytest.raises(UsageError, match="published or ours"):
        find_recipe("theirs")
