"""A stand-in for Brainmarks: its contract of models, and a few models, as files in a folder of the search path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bids_app.model import brainmarks

BASE = """
from typing import NamedTuple
import torch
from torch import Tensor, nn


class Embeddings(NamedTuple):
    cls_embeds: Tensor | None
    reg_embeds: Tensor | None
    patch_embeds: Tensor | None


class ModelWrapper(nn.Module):
    __space__: str


class ModelTransform:
    def __call__(self, sample): ...
    def fit(self, train_dataset): ...
"""
REGISTRY = """
import importlib
import logging

_MODEL_REGISTRY = {}


def register_model(function):
    _MODEL_REGISTRY[function.__name__] = function
    return function


def create_model(name, **arguments):
    pair = _MODEL_REGISTRY[name](**arguments)
    return pair if isinstance(pair, tuple) else (None, pair)


def list_models():
    return list(_MODEL_REGISTRY)


for _name in ("models_of_the_tests", "broken"):
    try:
        importlib.import_module(f"brainmarks.models.{_name}")
    except Exception as error:
        logging.getLogger(__package__).warning(f"Import model plugin {_name} failed: {error}")
"""
MODELS = '''
import torch
from torch import nn
from bids_app.errors import NoInputError
from brainmarks.models.base import Embeddings, ModelTransform, ModelWrapper
from brainmarks.models.registry import register_model


class Series(ModelWrapper):
    """Tokens are volumes, as in Brainmarks' identity."""

    def __init__(self, space):
        super().__init__()
        self.__space__ = space

    def forward(self, batch):
        return Embeddings(None, None, batch["bold"])


class Connectome(Series):
    def forward(self, batch):
        bold = batch["bold"] / batch["bold"].shape[1] ** 0.5
        upper = torch.triu_indices(bold.shape[2], bold.shape[2], offset=1)
        return Embeddings((bold.mT @ bold)[:, upper[0], upper[1]][:, None], None, None)


class Patches(ModelTransform):
    """Patches of 4 volumes of 8 columns in the middle, in the units of the series."""

    def __call__(self, sample):
        bold = sample["bold"] * sample["std"] + sample["mean"]
        n, middle = len(bold) // 4, bold.shape[1] // 2
        if not n:
            raise ValueError("fewer than 4 volumes")
        return {"bold": bold[: 4 * n, middle : middle + 8].T.reshape(8 * n, 4) / 1000}


class Transformer(ModelWrapper):
    def __init__(self, space, width):
        super().__init__()
        self.__space__ = space
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.project = nn.Linear(4, width)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 2, 16, dropout=0.5, batch_first=True), 1)

    def forward(self, batch):
        tokens = self.project(batch["bold"])
        tokens = self.layers(torch.cat([self.start.expand(len(tokens), -1, -1), tokens], dim=1))
        return Embeddings(tokens[:, :1], None, tokens[:, 1:])


class Fitted(Patches):
    def fit(self, train_dataset):
        self.median = 0


@register_model
def identity(space="mni"):
    return Series(space)


@register_model
def connectome(space="schaefer400"):
    return Connectome(space)


@register_model
def transformer(ckpt_path=None, width=8, space="mni"):
    model = Transformer(space, width)
    if ckpt_path:
        model.load_state_dict(torch.load(ckpt_path, weights_only=True))
    return Patches(), model


@register_model
def fitted():
    return Fitted(), Series("mni")


@register_model
def leaving():
    raise SystemExit("no GPU")


@register_model
def faulty(own=False):
    raise NoInputError("weights.pt: no such file.", "Fetch it.") if own else RuntimeError("no weights")
'''


def write_stand_in(folder: Path) -> Path:
    """Write the stand-in into a folder, which then is to be searched for modules."""
    models = folder / "brainmarks" / "models"
    models.mkdir(parents=True)
    (models / "base.py").write_text(BASE)
    (models / "registry.py").write_text(REGISTRY)
    (models / "models_of_the_tests.py").write_text(MODELS)
    (models / "broken.py").write_text("import no_such_package\n")
    (folder / "brainmarks-0.1.1.dist-info").mkdir()
    (folder / "brainmarks-0.1.1.dist-info" / "METADATA").write_text("Name: brainmarks\nVersion: 0.1.1\n")
    return folder


def forget_brainmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Brainmarks be imported anew in a test, and leave nothing of it behind."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "brainmarks"]:
        monkeypatch.delitem(sys.modules, name)
    brainmarks._registry.cache_clear()
    brainmarks.describe_wrapper.cache_clear()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install the stand-in for the time of a test; return its folder."""
    forget_brainmarks(monkeypatch)
    folder = write_stand_in(tmp_path / "stand-in")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "brainmarks"]:
        del sys.modules[name]
    brainmarks._registry.cache_clear()
    brainmarks.describe_wrapper.cache_clear()
