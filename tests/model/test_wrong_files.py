"""Files that are not the expected weights: the error names what they are and the way out."""

from __future__ import annotations

import pytest
import torch

from bids_app.adapters.file import load_adapter
from bids_app.errors import BadDataError
from bids_app.model.checkpoint import read_checkpoint, read_safetensors
from bids_app.model.wrong_files import ADAPTER_FORMAT, ENCODER_FORMAT, wrong_format


@pytest.mark.parametrize("name", ["weights.ckpt", "weights.safetensors"])
def test_a_pointer_of_git_lfs_is_not_called_truncated(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 93061240\n")
    with pytest.raises(BadDataError, match="Git LFS pointer") as error:
        read_checkpoint(path)
    assert "git lfs pull" in error.value.hint


def test_a_checkpoint_as_adapter_is_referred_to_the_model_option(tmp_path):
    path = tmp_path / "tuned.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(BadDataError, match="a PyTorch checkpoint, not a safetensors file") as error:
        load_adapter(path)
    assert "--model" in error.value.hint


def test_other_damage_is_reported_with_the_error_of_the_library(tmp_path):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(b"x" * 20)
    with pytest.raises(BadDataError, match="not a readable safetensors file") as error:
        read_safetensors(path, ADAPTER_FORMAT)
    assert "Download it again" in error.value.hint


@pytest.mark.parametrize(
    ("found", "expected", "way_out"),
    [
        (ADAPTER_FORMAT, ENCODER_FORMAT, "--adapter"),
        (ENCODER_FORMAT, ADAPTER_FORMAT, "--model"),
        ("None", ADAPTER_FORMAT, f"format {ADAPTER_FORMAT}"),
    ],
)
def test_a_model_and_an_adapter_are_told_apart(tmp_path, found, expected, way_out):
    assert way_out in wrong_format(tmp_path / "file.safetensors", found, expected).hint
