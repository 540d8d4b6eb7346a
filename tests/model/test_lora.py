"""Low-rank updates of fine-tuned files are merged; what cannot be merged exactly is an error."""

from __future__ import annotations

import pytest
import torch

from bids_app.errors import BadDataError
from bids_app.model.checkpoint import read_checkpoint
from bids_app.model.lora import has_low_rank_updates, merge_low_rank_updates

WEIGHT = torch.arange(6.0).reshape(2, 3)
FIRST, SECOND = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0], [-1.0]])


def wrapped(layer: str = "mlp.linear1", name: str = "default") -> dict[str, torch.Tensor]:
    return {
        f"{layer}.base_layer.weight": WEIGHT,
        f"{layer}.base_layer.bias": torch.zeros(2),
        f"{layer}.lora_A.{name}.weight": FIRST,
        f"{layer}.lora_B.{name}.weight": SECOND,
        "norm.weight": torch.ones(3),
    }


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("hyper", [{"lora_alpha": 3}, {"peft_config": {"lora_alpha": 3}}])
def test_updates_are_merged_under_the_names_of_the_layers(prefix, hyper):
    state = {prefix + key: value for key, value in wrapped().items()}
    assert has_low_rank_updates(state)
    merged = merge_low_rank_updates(state, hyper)
    assert set(merged) == {"mlp.linear1.weight", "mlp.linear1.bias", "norm.weight"}
    torch.testing.assert_close(merged["mlp.linear1.weight"], WEIGHT + 3 * SECOND @ FIRST)


def test_the_scale_is_alpha_over_the_rank_or_its_root():
    state = wrapped() | {
        "mlp.linear1.lora_A.default.weight": FIRST.repeat(4, 1),
        "mlp.linear1.lora_B.default.weight": SECOND.repeat(1, 4),
    }
    for hyper, scale in (({"lora_alpha": 2}, 0.5), ({"lora_alpha": 2, "use_rslora": True}, 1.0)):
        merged = merge_low_rank_updates(state, hyper)["mlp.linear1.weight"]
        torch.testing.assert_close(merged, WEIGHT + scale * 4 * SECOND @ FIRST)


def test_an_update_may_have_a_bias_and_modules_may_be_replaced():
    state = wrapped() | {
        "mlp.linear1.lora_B.default.bias": torch.ones(2),
        "norm2.original_module.weight": torch.ones(3),
        "norm2.modules_to_save.default.weight": 2 * torch.ones(3),
    }
    merged = merge_low_rank_updates(state, {"lora_alpha": 3})
    torch.testing.assert_close(merged["mlp.linear1.bias"], 3 * torch.ones(2))
    torch.testing.assert_close(merged["norm2.weight"], 2 * torch.ones(3))


def test_files_without_updates_are_not_touched():
    assert not has_low_rank_updates({"mlp.linear1.weight": WEIGHT, "layers.0.norm1.weight": torch.ones(3)})


@pytest.mark.parametrize(
    ("changes", "hyper", "reason"),
    [
        ({}, {}, "no lora_alpha"),
        ({}, {"lora_alpha": True}, "no lora_alpha"),
        ({}, {"lora_alpha": 3, "rank_pattern": {"x": 2}}, "rank_pattern"),
        ({"mlp.linear1.lora_B.default.weight": None}, {"lora_alpha": 3}, r"mlp\.linear1 is incomplete"),
        ({"mlp.linear1.lora_B.default.weight": torch.ones(3, 1)}, {"lora_alpha": 3}, "does not fit"),
        ({"mlp.linear1.lora_A.default.weight": torch.ones(1, 3, 1)}, {"lora_alpha": 3}, "does not fit"),
        ({"mlp.linear1.lora_magnitude_vector.default.weight": torch.ones(2)}, {"lora_alpha": 3}, "unsupported kind"),
        ({"mlp.linear1.lora_A.second.weight": FIRST}, {"lora_alpha": 3}, "several adapters"),
        ({"mlp.linear1.lora_B.default.bias": torch.ones(5)}, {"lora_alpha": 3}, "bias"),
    ],
)
def test_updates_that_cannot_be_merged_are_an_error(changes, hyper, reason):
    state = {key: value for key, value in (wrapped() | changes).items() if value is not None}
    with pytest.raises(BadDataError, match=reason):
        merge_low_rank_updates(state, hyper)


def test_the_error_names_the_file(small_checkpoint):
    content = torch.load(small_checkpoint, weights_only=True)
    content["state_dict"]["model.patch_embed.fc.lora_A.default.weight"] = FIRST
    torch.save(content, small_checkpoint)
    with pytest.raises(BadDataError, match=r"small\.ckpt.*patch_embed\.fc"):
        read_checkpoint(small_checkpoint)


def test_updates_of_the_head_are_merged(small_checkpoint):
    content = torch.load(small_checkpoint, weights_only=True)
    state, first = content["state_dict"], torch.randn(2, 16)
    before = state["output_head.head.head.weight"].clone()
    state["output_head.head.head.base_layer.weight"] = state.pop("output_head.head.head.weight")
    state["output_head.head.head.base_layer.bias"] = state.pop("output_head.head.head.bias")
    state["output_head.head.head.lora_A.default.weight"] = first
    state["output_head.head.head.lora_B.default.weight"] = torch.ones(1, 2)
    torch.save(content | {"hyper_parameters": content["hyper_parameters"] | {"lora_alpha": 2}}, small_checkpoint)
    merged = read_checkpoint(small_checkpoint).head["head.weight"]
    torch.testing.assert_close(merged, before + first.sum(0, keepdim=True))
