"""Encoders that are registered with Brainmarks (``--model brainmarks:NAME``): construction, weights, and embedding.

Brainmarks is an optional package. Its models are functions that return a transform of a sample and a wrapper of an
encoder; the wrapper names the space of its samples. Brainmarks' models may download their own weights when they are
constructed. Samples are made by `bids_app.preprocess.brainmarks_samples`.

    L  tokens    C  features
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.errors import BadDataError, NeurostormError, UsageError
from bids_app.settings import BRAINMARKS_PREFIX

INSTALL = 'Install it: pip install "neurostorm[brainmarks]".'
SEED, OTHER_SEED = 0, 1
"""Seeds of the two constructions that are compared: weights that differ are random."""
TOKENS = ("cls", "patch", "reg")
"""Kinds of tokens in the order of preference: the first kind that a wrapper returns is averaged."""
TOKENS_IN_WORDS = {"cls": "the class token", "patch": "the mean over patch tokens", "reg": "the mean over registers"}
MIN_SHARE = 1e-3
"""Norm of the mean of tokens, relative to that of the tokens, below which the mean is rounding error."""


@dataclass(frozen=True)
class WrapperFacts:
    """Everything that the numbers of a wrapper depend on.

    Attributes
    ----------
    name : str
        Name in Brainmarks' registry.
    options : tuple of str
        ``KEY=VALUE``: arguments of its function.
    space : str
        Space of its samples.
    version : str
        Version of Brainmarks.
    source_sha256 : str
        Hash of the module that registered it.
    weights_sha256 : str
        Hash of its parameters and buffers; empty if it has none.
    n_tensors, n_random : int
        Parameters and buffers, and those with random values: they were not read from a file.
    """

    name: str
    options: tuple[str, ...]
    space: str
    version: str
    source_sha256: str
    weights_sha256: str
    n_tensors: int
    n_random: int

    @property
    def title(self) -> str:
        """Name as the value of ``--model``."""
        return BRAINMARKS_PREFIX + self.name

    @property
    def is_untrained(self) -> bool:
        """True if any weights are random."""
        return self.n_random > 0


@dataclass(frozen=True)
class BrainmarksModel:
    """A wrapper, its transform of a sample, and the hashes of its tensors by name."""

    title: str
    transform: Any
    wrapper: torch.nn.Module
    tensors: Mapping[str, str]

    @property
    def weights_sha256(self) -> str:
        """Hash of all tensors; empty without any."""
        listed = "".join(f"{name} {digest}\n" for name, digest in sorted(self.tensors.items()))
        return hashlib.sha256(listed.encode()).hexdigest() if listed else ""


@lru_cache(maxsize=4)
def describe_wrapper(name: str, options: tuple[str, ...]) -> WrapperFacts:
    """Construct a wrapper with two seeds, and return its facts.

    Parameters
    ----------
    name : str
        Name in Brainmarks' registry.
    options : tuple of str
        ``KEY=VALUE``.

    Raises
    ------
    UsageError
        Brainmarks is not installed or has no such model, an option is invalid, or the transform has to be fitted.
    BadDataError
        The model cannot be constructed.
    """
    from importlib.metadata import version

    first = build(name, options)
    other = build(name, options, OTHER_SEED).tensors if first.tensors else {}
    return WrapperFacts(
        name,
        options,
        str(getattr(first.wrapper, "__space__", None)),
        version("brainmarks"),
        _source_sha256(_registry()[0]._MODEL_REGISTRY[name]),
        first.weights_sha256,
        len(first.tensors),
        sum(digest != other.get(key) for key, digest in first.tensors.items()),
    )


def build(name: str, options: Sequence[str], seed: int = SEED) -> BrainmarksModel:
    """Construct a wrapper with a seed for its random weights; raises as `describe_wrapper`."""
    registry, failed = _registry()
    title = BRAINMARKS_PREFIX + name
    if name not in registry.list_models():
        others = f" Modules that could not be imported: {'; '.join(failed)}." if failed else ""
        raise UsageError(
            f"Brainmarks has no model '{name}'.", f"Its models: {', '.join(sorted(registry.list_models()))}.{others}"
        )
    arguments = dict(map(_parse, options))
    try:
        with _seeded(seed):
            transform, wrapper = registry.create_model(name, **arguments)
        tensors = {
            key: _sha256(tensor) for key, tensor in wrapper.state_dict().items() if isinstance(tensor, torch.Tensor)
        }
    except NeurostormError:
        raise
    except (Exception, SystemExit) as error:  # anything may fail in the code of others
        raise BadDataError(
            f"{title} cannot be constructed ({type(error).__name__}: {error}).",
            "Check --model-options, and which weights and packages this model of Brainmarks needs.",
        ) from error
    if _has_fit(transform):
        raise UsageError(
            f"{title}: its transform takes statistics from a training dataset, which a single run does not have.",
            "Choose a model whose transform needs no fit, or evaluate this one with Brainmarks' own commands.",
        )
    return BrainmarksModel(title, transform, wrapper, tensors)


@dataclass(frozen=True)
class Embedded:
    """Embedding of a run.

    Attributes
    ----------
    values : numpy.ndarray of float32, (C,)
    tokens : str
        Key of `TOKENS_IN_WORDS`.
    share : float
        Norm of the mean of the tokens relative to their root mean square norm; 1 for one token.
    """

    values: np.ndarray
    tokens: str
    share: float

    @property
    def is_rounding_error(self) -> bool:
        """True if the tokens cancel."""
        return self.share < MIN_SHARE


@torch.inference_mode()
def embed(model: BrainmarksModel, sample: Mapping[str, Any], device: torch.device) -> Embedded:
    """Embed a run.

    Parameters
    ----------
    model : BrainmarksModel
    sample : mapping
        ``bold`` (T, V), ``mean`` and ``std`` (1, V), ``tr`` in s: the default sample of Brainmarks.
    device : torch.device

    Raises
    ------
    BadDataError
        The transform or the wrapper fails, or the result is not as Brainmarks' contract says or not finite.
    """
    from torch.utils.data import default_collate

    given = {name: torch.as_tensor(value) if isinstance(value, np.ndarray) else value for name, value in sample.items()}
    try:
        if model.transform is not None:
            given = model.transform(given)
        batch = default_collate([given])
        batch = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
        returned = dict(zip(("cls", "reg", "patch"), model.wrapper.to(device).eval()(batch), strict=True))
    except NeurostormError:
        raise
    except (Exception, SystemExit) as error:
        raise BadDataError(
            f"{model.title} failed ({type(error).__name__}: {error}).",
            "The run may be too short for this model, or the model or its options may be faulty.",
        ) from error
    for kind in TOKENS:
        if returned[kind] is not None:
            return _average(model.title, kind, returned[kind])
    raise BadDataError(
        f"{model.title} returned no tokens.", "Correct the wrapper: one of its results must be a tensor."
    )


def _average(title: str, kind: str, tokens: Any) -> Embedded:
    """Average the tokens (1, L, C) of a run."""
    is_tensor = isinstance(tokens, torch.Tensor) and not tokens.is_complex()
    if not is_tensor or tokens.ndim != 3 or len(tokens) != 1 or 0 in tokens.shape:
        shape, dtype = tuple(getattr(tokens, "shape", ())), getattr(tokens, "dtype", type(tokens).__name__)
        raise BadDataError(
            f"{title} returned {kind} tokens of shape {shape} and type {dtype} for one run.",
            "Correct the wrapper: real numbers, (1, tokens, features).",
        )
    values = tokens[0].double().cpu().numpy()
    if not np.isfinite(values).all():
        raise BadDataError(f"{title}: the embeddings contain NaN or infinite values.", "Check the run and the model.")
    mean, size = values.mean(axis=0), float(np.sqrt((values**2).sum(axis=1).mean()))
    share = float(np.linalg.norm(mean)) / size if size else 0.0
    return Embedded(mean.astype(np.float32), kind, share)


@cache
def _registry() -> tuple[Any, tuple[str, ...]]:
    """Import Brainmarks' registry; return it, and messages about its modules that could not be imported."""
    messages: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("brainmarks.models")
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        from brainmarks.models import registry
    except ImportError as error:
        raise UsageError(f"--model {BRAINMARKS_PREFIX}NAME needs the package brainmarks ({error}).", INSTALL) from error
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    return registry, tuple(messages)


def _parse(option: str) -> tuple[str, Any]:
    """Split ``KEY=VALUE`` and read the value as YAML: numbers, true, false, null, or text."""
    import yaml

    key, _, value = option.partition("=")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(
            f"--model-options {option}: invalid value.", "Put text with special signs in quotes."
        ) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all random numbers on the CPU, and restore their states afterwards."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


def _sha256(tensor: torch.Tensor) -> str:
    """Hash shape, type and content of a tensor."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode() + content.tobytes()).hexdigest()


def _source_sha256(function: Any) -> str:
    """Hash the file that defines a function; empty if it has none."""
    path = inspect.getsourcefile(inspect.unwrap(function))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ""


def _has_fit(transform: Any) -> bool:
    """Return whether a transform has a ``fit`` of its own, beside the empty one of Brainmarks' base class."""
    from brainmarks.models import base

    own = getattr(type(transform), "fit", None)
    return own is not None and own is not getattr(base.ModelTransform, "fit", None)
