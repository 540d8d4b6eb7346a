"""Checkpoint files: loading, validation and writing."""

from __future__ import annotations

import os

import pytest
import torch

from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.model.api import load_model
from bids_app.model.checkpoint import read_checkpoint, save_encoder
from tests.helpers.models import lightning_content


def rewrite(path, change) -> None:
    """Change a checkpoint's content in place."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.fixture
def clips() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 1, 24, 24, 24, 6)


def test_a_lightning_file_gives_the_encoder_that_was_saved(small_checkpoint, small_encoder, clips):
    model = load_model(small_checkpoint)
    torch.testing.assert_close(model.encode(clips), small_encoder(clips))
    assert model(clips).shape == (2, 1)
    assert model.config == small_encoder.config
    assert not any(p.requires_grad for p in model.parameters())


def test_the_same_weights_have_the_same_hash_in_every_format(small_checkpoint, small_encoder, tmp_path, clips):
    model = load_model(small_checkpoint)
    path = save_encoder(
        tmp_path / "ours.safetensors", model.config, small_encoder.state_dict(), "small", model.head.state_dict()
    )
    ours = load_model(path)
    assert ours.weights_sha256 == model.weights_sha256
    assert ours.name == "small"
    torch.testing.assert_close(ours(clips), model(clips), rtol=0, atol=0)


def test_saving_twice_gives_the_same_bytes(small_encoder, tmp_path):
    one, two = (
        save_encoder(tmp_path / n, small_encoder.config, small_encoder.state_dict(), "m")
        for n in ("1.safetensors", "2.safetensors")
    )
    assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.safetensors", "2.safetensors"]


def test_prompts_do_not_change_the_hash_of_the_encoder(small_checkpoint, tmp_path, small_encoder):
    plain = load_model(small_checkpoint).weights_sha256
    for block in (b for stage in small_encoder.layers for b in stage.blocks):
        block.set_prompt(torch.randn(1, 3, block.norm1.normalized_shape[0]))
    torch.save(lightning_content(small_encoder, use_prompt_tuning=True, prompt_len=3), tmp_path / "p.ckpt")
    prompted = load_model(tmp_path / "p.ckpt")
    assert prompted.weights_sha256 == plain
    assert prompted.config.prompt_len == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("model.patch_embed.fc.bias"), "missing: patch_embed.fc.bias"),
        (lambda s: s.update({"model.surprise": torch.zeros(1)}), "unused keys: surprise"),
        (
            lambda s: s.update({"model.patch_embed.fc.bias": torch.zeros(3)}),
            r"patch_embed.fc.bias \(3,\) instead of \(8,\)",
        ),
        (lambda s: s["model.patch_embed.fc.bias"].fill_(float("nan")), "not finite: patch_embed.fc.bias"),
        (lambda s: s.pop("output_head.head.head.bias"), "missing: head.bias"),
    ],
)
def test_invalid_keys_are_an_error_that_names_them(small_checkpoint, change, named):
    rewrite(small_checkpoint, lambda content: change(content["state_dict"]))
    with pytest.raises(BadDataError, match=named):
        load_model(small_checkpoint)


def test_unused_keys_are_listed(small_checkpoint):
    extra = {
        "model.mask_token": torch.zeros(256, 8),
        "output_head.head.norm.weight": torch.ones(16),
        "scaler": torch.ones(1),
    }
    rewrite(small_checkpoint, lambda content: content["state_dict"].update(extra))
    assert load_model(small_checkpoint).unused_keys == ("scaler", "mask_token", "head.norm.weight")


def test_files_of_2025_have_another_model_name(small_checkpoint, clips):
    expected = load_model(small_checkpoint)(clips)
    rewrite(small_checkpoint, lambda content: content["hyper_parameters"].update(model="swin4d_mae"))
    torch.testing.assert_close(load_model(small_checkpoint)(clips), expected)


class Bomb:
    """Would run a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_with_code_is_rejected_without_running_it(tmp_path):
    torch.save({"state_dict": {"model.x": torch.zeros(1)}, "callbacks": Bomb(tmp_path / "ran")}, tmp_path / "bomb.ckpt")
    with pytest.raises(BadDataError, match="code"):
        load_model(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["cut.ckpt", "cut.safetensors"])
def test_the_error_for_a_truncated_file_names_it(small_encoder, tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".ckpt":
        torch.save(lightning_content(small_encoder), path)
    else:
        save_encoder(path, small_encoder.config, small_encoder.state_dict(), "m")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadDataError, match=name):
        load_model(path)


def test_the_error_for_a_missing_file_names_it(tmp_path):
    with pytest.raises(NoInputError, match=r"none\.ckpt"):
        load_model(tmp_path / "none.ckpt")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda h: h.pop("depths"), "lack depths"),
        (lambda h: h.update(model="swift"), "'swift'"),
        (lambda h: h.update(c_multiplier=3), "c_multiplier"),
        (lambda h: h.update(use_mamba=False), "attention"),
        (lambda h: h.update(img_size=[24, 25, 24, 6]), "is not divisible"),
    ],
)
def test_invalid_hyperparameters_are_an_error_that_names_them(small_checkpoint, change, named):
    rewrite(small_checkpoint, lambda content: change(content["hyper_parameters"]))
    with pytest.raises(BadDataError, match=named):
        load_model(small_checkpoint)


def test_a_model_without_a_head_cannot_predict(small_encoder, tmp_path, clips):
    model = load_model(save_encoder(tmp_path / "m.safetensors", small_encoder.config, small_encoder.state_dict(), "m"))
    with pytest.raises(UsageError, match="no head"):
        model(clips)


def test_half_precision_files_are_read_as_float32(small_encoder, tmp_path):
    path = save_encoder(
        tmp_path / "m.safetensors", small_encoder.config, small_encoder.state_dict(), "m", dtype=torch.float16
    )
    assert {v.dtype for v in read_checkpoint(path).encoder.values()} == {torch.float32}


HYPER = {
    "img_size": [96, 96, 96, 20], "patch_size": [6, 6, 6, 1], "embed_dim": 4, "depths": [1, 1], "window_size": [4] * 4,
    "first_window_size": [2] * 4, "last_layer_full_MSA": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"model.x": 3}},
        {"state_dict": {3: torch.zeros(1)}},
        {"state_dict": {"model.x": torch.zeros(1)}, "hyper_parameters": [1]},
        {"state_dict": {"model.x": torch.zeros(1)}, "hyper_parameters": HYPER | {"depths": 3}},
        {"state_dict": {"model.x": torch.zeros(1)}, "hyper_parameters": HYPER | {"embed_dim": "wide"}},
        {"state_dict": {"model.x": torch.zeros(1)}, "hyper_parameters": HYPER | {"img_size": [1]}},
        {"state_dict": {"model.x.prompt": torch.zeros(1), "model.x": torch.zeros(1)}, "hyper_parameters": HYPER},
    ],
)
def test_a_checkpoint_with_invalid_values_is_rejected(tmp_path, content):
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(BadDataError, match=r"odd\.ckpt"):
        read_checkpoint(tmp_path / "odd.ckpt")


def test_a_tensor_that_repeats_its_data_is_rejected(tmp_path):
    """Also if it is only twice as large as its data: published checkpoints have none."""
    twice = torch.zeros(1, 10_000).expand(2, 10_000)
    torch.save({"state_dict": {"model.x": twice}, "hyper_parameters": HYPER}, tmp_path / "odd.ckpt")
    with pytest.raises(BadDataError, match=r"odd\.ckpt: it contains tensors that are larger than their data"):
        read_checkpoint(tmp_path / "odd.ckpt")


@pytest.mark.parametrize(("n_names", "accepted"), [(3, True), (6, False)])
def test_a_few_names_of_the_same_tensor_are_accepted(tmp_path, n_names, accepted):
    """Tied weights have two names; more names would multiply the memory of a small file."""
    data = torch.zeros(10_000)
    state = {f"model.x{k}": data for k in range(n_names)}
    torch.save({"state_dict": state, "hyper_parameters": HYPER}, tmp_path / "odd.ckpt")
    if accepted:
        assert len(read_checkpoint(tmp_path / "odd.ckpt").encoder) == n_names
        return
    with pytest.raises(BadDataError, match=r"odd\.ckpt: its tensors share their data"):
        read_checkpoint(tmp_path / "odd.ckpt")


@pytest.mark.parametrize("data", [b"u", b"\x80\x02u.", b"]q\x00.", b"PK\x03\x04", b""])
def test_bytes_that_are_not_a_pickle_are_rejected(tmp_path, data):
    (tmp_path / "odd.ckpt").write_bytes(data)
    with pytest.raises(BadDataError, match=r"odd\.ckpt"):
        read_checkpoint(tmp_path / "odd.ckpt")
