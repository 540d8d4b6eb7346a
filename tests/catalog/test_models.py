"""Models and adapters by name, and hints for missing files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.catalog.models import adapter_paths, catalog, find_adapter, find_model, weights_path
from bids_app.errors import NoInputError, UsageError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_missing_weights_hint_at_the_fetch_command(empty_cache: Path) -> None:
    with pytest.raises(NoInputError) as caught:
        weights_path(find_model("neurostorm-5ds"))
    assert "neurostorm-models fetch neurostorm-5ds" in caught.value.hint
    assert "--model demo" in caught.value.hint
    assert str(empty_cache) in caught.value.message
    assert caught.value.exit_code == 66


def test_weights_in_the_cache_are_found(empty_cache: Path) -> None:
    entry = find_model("neurostorm-5ds")
    entry.path.parent.mkdir(parents=True)
    entry.path.write_bytes(b"")
    assert weights_path(entry).is_relative_to(empty_cache)


def test_every_model_of_the_hub_has_a_full_revision() -> None:
    for entry in catalog().values():
        assert len(entry.revision) == (40 if entry.repo else 0), entry.name


def test_model_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.ckpt"
    path.write_bytes(b"")
    assert weights_path(find_model(str(path))) == path


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match=r"mine\.ckpt"):
        weights_path(find_model(str(tmp_path / "mine.ckpt")))


@pytest.mark.parametrize("find", [find_model, find_adapter])
def test_unknown_name_lists_the_catalog(find) -> None:
    with pytest.raises(UsageError, match="nonsense") as caught:
        find("nonsense")
    assert "demo" in caught.value.hint


def test_default_adapters_are_used_without_a_request(tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"")
    assert adapter_paths(find_model("demo"), [str(mine)]) == [mine]
    assert find_model("demo").adapters == ("demo-state",)
