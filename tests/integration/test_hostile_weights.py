"""Weight files of up to a few kilobytes that claim anything are refused at once, by name, without memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bids_app.adapters.file import AdaptedModel, load_adapter
from bids_app.cli import models
from bids_app.errors import BadDataError
from bids_app.model.api import Model, load_autoencoder, load_model
from bids_app.workflow.adapters import read_adapter
from tests.helpers.hostile_weights import (
    ADAPTERS,
    CLAIMS,
    CONFIG,
    PICKLES,
    adapter_bytes,
    encoder_bytes,
    pickle_bytes,
    write,
)
from tests.helpers.models import random_model

MAX_SECONDS, MAX_BYTES = 1.0, 100e6
ADDRESS_SPACE = 4 * 2**30
"""Address space that a test may add, so that a failing one does not exhaust the machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return random_model(tmp_path_factory.mktemp("model"), CONFIG)


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load a model once, so that what libraries import at their first use is not counted."""
    random_model(tmp_path_factory.mktemp("first"), CONFIG)


def status(field: str) -> int:
    """Return a size of this process in bytes: ``VmSize``, ``VmRSS`` or its peak ``VmHWM``."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


@pytest.fixture
def refused() -> Iterator[Callable[[Callable[[], Any], Path], None]]:
    """Check that a call refuses a file by name, within a second of CPU time and 100 MB."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + ADDRESS_SPACE, limits[1]))

    def check(call: Callable[[], Any], path: Path) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, start = status("VmRSS"), time.process_time()
        with pytest.raises(BadDataError) as caught:
            call()
        assert time.process_time() - start < MAX_SECONDS
        assert status("VmHWM") - before < MAX_BYTES
        assert str(path) in caught.value.message
        assert len(caught.value.message.encode()) < 2000
        assert caught.value.hint

    yield check
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("hostile", ADAPTERS.values(), ids=ADAPTERS)
def test_a_hostile_adapter_is_refused_at_once(tmp_path: Path, model: Model, refused, hostile: dict[str, Any]) -> None:
    path = write(tmp_path / "a.safetensors", adapter_bytes(model, **hostile))
    assert path.stat().st_size < 20_000
    refused(lambda: AdaptedModel(model, load_adapter(path)), path)


def test_the_unmodified_adapter_is_accepted(tmp_path: Path, model: Model) -> None:
    path = write(tmp_path / "a.safetensors", adapter_bytes(model))
    AdaptedModel(model, load_adapter(path))
    assert read_adapter(path).card.labels == ("a", "b")


@pytest.mark.parametrize("changes", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_an_encoder_that_claims_anything_is_refused_at_once(
    tmp_path: Path, refused, suffix: str, changes: dict[str, Any]
) -> None:
    path = write(tmp_path / f"a{suffix}", (encoder_bytes if suffix == ".safetensors" else pickle_bytes)(changes))
    refused(lambda: load_model(path), path)


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_a_checkpoint_larger_than_its_file_is_refused_at_once(tmp_path: Path, refused, content) -> None:
    path = write(tmp_path / "a.ckpt", content())
    refused(lambda: load_model(path), path)


def test_the_largest_valid_configuration_allocates_nothing_without_weights(tmp_path: Path, refused) -> None:
    changes = {"img_size": [4096] * 4, "patch_size": [1] * 4, "embed_dim": 4096, "depths": [31] * 8}
    path = write(tmp_path / "a.safetensors", encoder_bytes(changes))
    refused(lambda: load_model(path), path)
    with pytest.raises(BadDataError, match="248 blocks, but the file has only"):
        load_model(path)


def test_an_autoencoder_that_claims_anything_is_refused_at_once(tmp_path: Path, refused) -> None:
    content = pickle_bytes({"embed_dim": 4096}, **{"decoder_pred.weight": torch.zeros(1)})
    path = write(tmp_path / "a.ckpt", content)
    refused(lambda: load_autoencoder(path), path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_an_encoder_with_weights_of_1e38_is_refused(tmp_path: Path, model: Model, refused, suffix: str) -> None:
    from bids_app.model.checkpoint import save_encoder
    from tests.helpers.models import lightning_content

    model.encoder.patch_embed.fc.weight.data[0, 0], kept = 1e38, model.encoder.patch_embed.fc.weight[0, 0].clone()
    path = tmp_path / f"a{suffix}"
    if suffix == ".ckpt":
        torch.save(lightning_content(model.encoder), path)
    else:
        save_encoder(path, CONFIG, model.encoder.state_dict(), "a")
    model.encoder.patch_embed.fc.weight.data[0, 0] = kept
    refused(lambda: load_model(path), path)


def test_a_name_without_letters_or_of_300_letters_is_refused(tmp_path: Path, model: Model, refused) -> None:
    from bids_app.model.checkpoint import save_encoder

    for name in ("---", "a" * 300, "a\nb"):
        path = save_encoder(tmp_path / "a.safetensors", CONFIG, model.encoder.state_dict(), name)
        refused(lambda path=path: load_model(path), path)


@pytest.mark.parametrize("command", [["card"], ["card", "--json"], ["convert"]], ids=" ".join)
@pytest.mark.parametrize("kind", ["adapter", "encoder", "checkpoint"])
def test_the_models_command_returns_65_with_the_reason(
    tmp_path: Path, model: Model, capsys, command: list[str], kind: str
) -> None:
    contents = {
        "adapter": lambda: adapter_bytes(model, value_mean=10**400),
        "encoder": lambda: encoder_bytes({"depths": [10**9]}),
        "checkpoint": lambda: PICKLES["a billion numbers expanded from one"](),
    }
    path = write(tmp_path / ("a.ckpt" if kind == "checkpoint" else "a.safetensors"), contents[kind]())
    output = [str(tmp_path / "out.safetensors")] if command == ["convert"] else []
    assert models.main([*command, str(path), *output]) == 65
    said = capsys.readouterr()
    assert str(path) in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out.safetensors").exists()
