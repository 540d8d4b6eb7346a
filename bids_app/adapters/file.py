"""Adapter files: prompts, norms or low-rank updates, and a head, for one encoder and one task, in one safetensors file.

The adapter's card (JSON in the file's metadata) describes the prediction, its encoder and its training cohort. Files
with an incomplete card or for another encoder are refused. A file may also hold a second head for clips under the other
normalisation (the twin), and reference statistics of the training cohort.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_app.adapters.calibration import Calibration
from bids_app.adapters.domain import Domain
from bids_app.clips import NORMALISATIONS
from bids_app.errors import BadDataError
from bids_app.files import parse_json
from bids_app.model.api import Model
from bids_app.model.checkpoint import (
    MAX_LABEL,
    MAX_METADATA,
    State,
    naming,
    parse_safetensors,
    read_safetensors,
    write_safetensors,
)
from bids_app.model.encoder import Encoder
from bids_app.model.heads import build_and_load, build_head, check_head, check_numbers, n_outputs
from bids_app.model.lora import FACTOR, merge_low_rank_updates
from bids_app.model.wrong_files import ADAPTER_FORMAT

ADAPTER_FORMAT_VERSION = 5
VERSIONS_READ = ("1", "2", "3", "4", "5")
"""Version 1 has neither twin nor reference statistics, version 2 has those of mean embeddings only, version 3 always
averages the predictions of clips, and version 4 has no low-rank updates."""
FORMER_KEYS = ("retrieval",)
"""Card keys of earlier versions, ignored on reading."""
DOMAINS = {"embedding": "reference", "clips": "clips", "signal": "signal"}
"""Parts of a file with reference statistics, by what a scan is compared in."""
PARTS = ("encoder", "head", "twin", *DOMAINS.values())
CLASSIFICATION, REGRESSION, EMBEDDING = "classification", "regression", "embedding"
TASKS = (CLASSIFICATION, REGRESSION, EMBEDDING)
LORA = "lora"
STRATEGIES = ("linear", "ln", "prompt", "prompt_ln", LORA, "full")
OWN = "own"
"""Strategy of a head that is part of a model's file: its encoder is the one that was trained with it."""
PREDICTIONS, OUTPUTS = "predictions", "outputs"
CLIP_AVERAGES = (PREDICTIONS, OUTPUTS)
"""What is averaged over the clips of a run: predictions, or the head's outputs (logits), as in the published code."""
PROMPT = ".prompt"
"""End of the names of prompts."""
NAME = re.compile(rf"[A-Za-z0-9]{{1,{MAX_LABEL}}}")
MAX_TEXT = 200
"""Letters of a target, unit or label."""
DIAGNOSES = re.compile(
    r"diagnos|^group$|^grp$|(^|_)(dx|patient|case|clinical|disease|disorder|autis|asd|adhd|schizo|scz|mdd|depress|bipolar"
    r"|alzheimer|dementia|parkinson|ptsd|ocd)",
    re.IGNORECASE,
)
"""Names of columns that hold a diagnosis or patient status."""


def is_diagnosis(target: str) -> bool:
    """Tell whether a column name indicates a diagnosis or patient status."""
    return DIAGNOSES.search(target) is not None


@dataclass(frozen=True)
class AdapterCard:
    """Description of an adapter.

    Attributes
    ----------
    name : str
        Letters and digits; used as a ``desc-`` label.
    task : str
        ``classification``, ``regression`` or ``embedding`` (a unit vector for comparison with others).
    target : str
        Predicted variable: ``state``, ``sex``, ``age``; for an embedding, what similar vectors have in common.
    encoder_sha256 : str
        `Model.weights_sha256` of its encoder.
    normalisation : str
        Normalisation of its clips; an entry of `bids_app.clips.NORMALISATIONS`.
    labels : tuple of str
        Class labels, in the order of the outputs; two classes have one logit, of the second.
    unit : str
        Unit of a regression.
    value_mean, value_std : float
        Mean and standard deviation in the training cohort; a regression is output * ``value_std`` + ``value_mean``.
    strategy : str
        Training strategy; an entry of `STRATEGIES`, or `OWN`.
    prompt_len : int
        Number of prompt tokens in front of each window.
    rank : int
        Rank of low-rank updates; 0 for other strategies than ``lora``.
    lora_alpha : float
        Low-rank updates are scaled by ``lora_alpha`` / ``rank``.
    lora_targets : tuple of str
        Linear layers with low-rank updates, as they were chosen in training; see
        `bids_app.training.low_rank.LowRankSettings`. The names of the tensors give each layer.
    dimensions : int
        Length of an embedding vector; 0 otherwise.
    clip_average : str
        What is averaged over the clips of a run; an entry of `CLIP_AVERAGES`.
    withheld : str
        Why the predictions are never reported; empty if they are.
    cohort, metrics : dict
        Training cohort (where known: ``participants``, ``scans``, ``ages``, ``sexes``, ``sites``, ``scanners``), and
        performance with its test set; JSON values.
    ranges : dict
        Lowest and highest value in the training cohort, by check of `bids_app.adapters.verdict.COHORT_RULES`.
    calibration : dict
        `bids_app.adapters.calibration.Calibration` as JSON; empty if not calibrated.
    twin : dict
        ``normalisation`` and ``metrics`` of a second head.
    signal : tuple of str
        Names of the measures (`bids_app.preprocess.brain_signal`) in the reference statistics of the signal.
    intended_use, limits, licence : str
        Intended use, known limitations, and licence.
    research_only : bool
        It predicts a diagnosis, and requires ``--acknowledge-research-use``.
    demonstration : bool
        It is for demonstration only; every output states this.
    """

    name: str
    task: str
    target: str
    encoder_sha256: str
    normalisation: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    value_mean: float = 0.0
    value_std: float = 1.0
    strategy: str = "linear"
    prompt_len: int = 0
    rank: int = 0
    lora_alpha: float = 0.0
    lora_targets: tuple[str, ...] = ()
    dimensions: int = 0
    clip_average: str = PREDICTIONS
    withheld: str = ""
    cohort: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    twin: dict[str, Any] = field(default_factory=dict)
    signal: tuple[str, ...] = ()
    intended_use: str = ""
    limits: str = ""
    licence: str = ""
    research_only: bool = False
    demonstration: bool = False

    def __post_init__(self) -> None:
        faults = [
            f"{f.name} is {_shown(getattr(self, f.name))}" for f in fields(self) if not self._right_type(f.name, f.type)
        ]
        if not faults:
            faults = self._wrong_values()
        if faults:
            raise BadDataError(f"Not a valid adapter: {'; '.join(faults)}.", "See AdapterCard for the valid values.")

    def _right_type(self, name: str, declared: Any) -> bool:
        value = getattr(self, name)
        if declared == "tuple[str, ...]":
            return isinstance(value, tuple) and all(isinstance(v, str) for v in value)
        if declared == "dict[str, Any]":
            return isinstance(value, dict)
        if declared == "float":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        if declared == "int":
            return isinstance(value, int) and not isinstance(value, bool)
        return isinstance(value, {"str": str, "bool": bool}[declared])

    def _wrong_values(self) -> list[str]:
        wrong = {
            "name": not NAME.fullmatch(self.name),
            "task": self.task not in TASKS,
            "normalisation": self.normalisation not in NORMALISATIONS,
            "strategy": self.strategy not in (*STRATEGIES, OWN),
            "clip_average": self.clip_average not in CLIP_AVERAGES,
            "encoder_sha256": not re.fullmatch(r"[0-9a-f]{64}", self.encoder_sha256),
            "prompt_len": self.prompt_len < 0,
            "rank": self.rank < 1 if self.strategy == LORA else self.rank != 0,
            "lora_alpha": not (0 < self.lora_alpha < float("inf") if self.strategy == LORA else self.lora_alpha == 0),
            "lora_targets": bool(self.lora_targets) != (self.strategy == LORA)
            or not all(target and _is_line(target) for target in self.lora_targets),
            "dimensions": (self.dimensions < 1) if self.task == EMBEDDING else self.dimensions != 0,
            "value_mean": not abs(self.value_mean) < float("inf"),
            "value_std": not 0 < self.value_std < float("inf"),
            "labels": (
                len(self.labels) < 2
                or len(set(self.labels)) != len(self.labels)
                or not all(label and _is_line(label) for label in self.labels)
            )
            if self.task == CLASSIFICATION
            else bool(self.labels),
            "target": not _is_line(self.target),
            "unit": not _is_line(self.unit),
            "ranges": not all(map(_is_range, self.ranges.values())),
            "twin": bool(self.twin)
            and self.twin.get("normalisation") not in set(NORMALISATIONS) - {self.normalisation},
        }
        if self.calibration:
            Calibration.from_dict(self.calibration).check_labels(self.labels)
        return [f"{name} is {_shown(getattr(self, name))}" for name, is_wrong in wrong.items() if is_wrong]

    @property
    def n_outputs(self) -> int:
        """Number of outputs of the head."""
        if self.task == EMBEDDING:
            return self.dimensions
        return n_outputs(len(self.labels)) if self.task == CLASSIFICATION else 1


def _is_range(value: Any) -> bool:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    return is_pair and all(isinstance(v, int | float) for v in value) and value[0] <= value[1]


def _is_line(text: str) -> bool:
    """Return True for a text that fits into a cell of a table."""
    return len(text) <= MAX_TEXT and (text.isprintable() or not text)


def _shown(value: Any) -> str:
    """Return the beginning of a value for an error message."""
    return ascii(value[:MAX_TEXT] if isinstance(value, str | list | tuple) else value)[:MAX_TEXT]


@dataclass(frozen=True)
class Adapter:
    """An adapter: its card and tensors.

    Attributes
    ----------
    card : AdapterCard
    encoder : dict of str to torch.Tensor
        Parameters that replace the encoder's or are added to it (prompts), or the factors of low-rank updates under
        the names that ``peft`` gives them, see `bids_app.model.lora`; may be empty.
    head : dict of str to torch.Tensor
        State dict of a head.
    twin : dict of str to torch.Tensor
        State dict of a second head for the same task under the other normalisation; may be empty.
    reference, clips, signal : dict of str to torch.Tensor
        Reference statistics of the cohort's mean embeddings, embeddings of clips, and measures of the signal, see
        `bids_app.adapters.domain.Domain.as_arrays`; each may be empty.
    path : pathlib.Path, optional
    """

    card: AdapterCard
    head: State
    encoder: State = field(default_factory=dict)
    path: Path | None = None
    twin: State = field(default_factory=dict)
    reference: State = field(default_factory=dict)
    clips: State = field(default_factory=dict)
    signal: State = field(default_factory=dict)

    @property
    def domains(self) -> dict[str, Domain]:
        """Reference statistics of the training cohort, by `DOMAINS`; those that the file holds."""
        with naming(self.path or self.card.name, "the reference statistics"):
            return {
                name: Domain.from_arrays({key: value.numpy() for key, value in getattr(self, part).items()})
                for name, part in DOMAINS.items()
                if getattr(self, part)
            }

    @property
    def domain(self) -> Domain | None:
        """Reference statistics of the mean embeddings; None if the file holds none."""
        return self.domains.get("embedding")

    def with_domains(self, domains: Mapping[str, Domain]) -> Adapter:
        """Return the adapter with these reference statistics, by `DOMAINS`."""
        parts = {
            DOMAINS[name]: {key: torch.from_numpy(np.array(value)) for key, value in domain.as_arrays().items()}
            for name, domain in domains.items()
        }
        return replace(self, **parts)  # type: ignore[arg-type]


def save_adapter(path: str | Path, adapter: Adapter) -> Path:
    """Write an adapter's file atomically; the same adapter gives the same bytes."""
    tensors = {
        f"{part}.{key}": value.detach().to("cpu", copy=True).contiguous()
        for part in PARTS
        for key, value in getattr(adapter, part).items()
    }
    metadata = {
        "format": ADAPTER_FORMAT,
        "version": str(ADAPTER_FORMAT_VERSION),
        "card": json.dumps(asdict(adapter.card), sort_keys=True),
    }
    return write_safetensors(path, tensors, metadata)


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter's file.

    Raises
    ------
    BadDataError
        The file is not an adapter, has a later version, or its card is invalid.
    """
    path = Path(path)
    return _assemble(path, *read_safetensors(path, ADAPTER_FORMAT))


def parse_adapter(content: bytes, path: Path) -> Adapter:
    """Read an adapter from a file's content, as `load_adapter`; ``path`` is for error messages."""
    return _assemble(path, *parse_safetensors(content, path, ADAPTER_FORMAT))


def _assemble(path: Path, tensors: State, metadata: Mapping[str, str]) -> Adapter:
    if metadata.get("version") not in VERSIONS_READ:
        raise BadDataError(
            f"{path}: version {str(metadata.get('version'))[:100]!a} of the adapter format is not supported.",
            "Install a newer neurostorm.",
        )
    parts: dict[str, State] = {part: {} for part in PARTS}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise BadDataError(f"{path}: unexpected tensor {key[:100]} in an adapter.", "Download the file again.")
        parts[part][name] = value
    adapter = Adapter(_read_card(path, metadata.get("card", "")), path=path, **parts)
    if bool(adapter.twin) != bool(adapter.card.twin):
        raise BadDataError(f"{path}: the card and the tensors disagree about a twin.", "Download the file again.")
    problem = strategy_problem(adapter.card, adapter.encoder)
    if problem:
        raise BadDataError(f"{path}: {problem}.", "Download the file again.")
    return adapter


def strategy_problem(card: AdapterCard, encoder: State) -> str:
    """Compare the tensors of an adapter with the strategy, the prompts and the rank of its card.

    Parameters
    ----------
    card : AdapterCard
    encoder : dict of str to torch.Tensor
        As in `Adapter`.

    Returns
    -------
    str
        What does not agree; empty if all does.
    """
    prompts = {name for name in encoder if name.endswith(PROMPT)}
    if bool(prompts) != bool(card.prompt_len):
        return f"the card has prompts of length {card.prompt_len}, but the file has {len(prompts)} tensors of prompts"
    factors = {name: found for name in encoder if (found := FACTOR.fullmatch(name))}
    ranks = {_rank_of(encoder[name], found["factor"]) for name, found in factors.items()}
    if ranks != ({card.rank} if card.rank else set()):
        return f"the card has low-rank updates of rank {card.rank}, but those of the file have {ranks or 'no rank'}"
    if len(factors) != 2 * len({found["layer"] for found in factors.values()}):
        return f"the low-rank updates are incomplete or of several adapters: there are {len(factors)} tensors of them"
    required = {
        LORA: 0 < len(factors) == len(encoder),
        "prompt": bool(prompts),
        "prompt_ln": bool(prompts) and len(prompts) < len(encoder),
        "ln": len(prompts) < len(encoder),
        "full": len(prompts) < len(encoder),
        "linear": not encoder,
        OWN: not encoder,
    }
    if not required[card.strategy]:
        return f"the strategy {card.strategy!r} does not agree with the file, which has {len(encoder)} encoder tensors"
    return ""


def _rank_of(factor: torch.Tensor, kind: str) -> int:
    """Return the rank of a factor of a low-rank update: A (R, I) or B (O, R)."""
    return factor.shape[0 if kind == "A" else 1] if factor.ndim == 2 else 0


def _read_card(path: Path, text: str) -> AdapterCard:
    try:
        content = parse_json(text, f"{path}, card of the adapter", max_values=MAX_METADATA)
        if not isinstance(content, dict):
            raise TypeError("not an object")
        for key in ("labels", "signal", "lora_targets"):
            listed = content.get(key, [])
            if not isinstance(listed, list):
                raise TypeError(f"{key} is {listed!r}")
            content[key] = tuple(listed)
        return AdapterCard(**{key: value for key, value in content.items() if key not in FORMER_KEYS})
    except (ValueError, TypeError, OverflowError) as error:
        reason = str(error)[:MAX_TEXT]
        raise BadDataError(f"{path}: the adapter's card is invalid ({reason}).", "Download the file again.") from error
    except BadDataError as error:
        raise error if str(path) in error.message else BadDataError(f"{path}: {error.message}", error.hint) from error


class AdaptedModel(nn.Module):
    """An encoder with an adapter.

    Parameters
    ----------
    model : Model
        Not changed; its tensors are shared unless the adapter has its own.
    adapter : Adapter

    Raises
    ------
    BadDataError
        The adapter belongs to another encoder, or its tensors do not fit.
    """

    def __init__(self, model: Model, adapter: Adapter) -> None:
        super().__init__()
        card = adapter.card
        where = adapter.path or card.name
        if card.encoder_sha256 != model.weights_sha256:
            raise BadDataError(
                f"{where}: the adapter belongs to an encoder with sha256 {card.encoder_sha256[:12]}…, but "
                f"{model.name} has {model.weights_sha256[:12]}….",
                "Give the --model of this adapter, or an adapter of this model.",
            )
        self.card = card
        self.shares_encoder = not adapter.encoder
        """The adapter uses the features of the unadapted encoder."""
        self.where = where
        self.domains = adapter.domains
        for name, domain in self.domains.items():
            expected = len(card.signal) if name == "signal" else model.config.n_features
            if len(domain.mean) != expected:
                raise BadDataError(
                    f"{where}: the reference statistics ({name}) have {len(domain.mean)} features, but "
                    f"{'the card' if name == 'signal' else 'the encoder'} has {expected}.",
                    "Download the adapter's file again.",
                )
        self.encoder = model.encoder
        with naming(where, "the weights"):
            if adapter.encoder:
                config = replace(model.config, prompt_len=card.prompt_len)
                weights = {key: value.cpu() for key, value in model.encoder.state_dict().items()} | adapter.encoder
                if card.strategy == LORA:
                    check_numbers(adapter.encoder, "low-rank updates")
                    weights = merge_low_rank_updates(weights, {"lora_alpha": card.lora_alpha})
                self.encoder = build_and_load(lambda: Encoder(config), weights, f"encoder of {where}")
                self.encoder.to(model.device)
            self.head = self._build_head(adapter.head, model.device, where)
            self.twin = self._build_head(adapter.twin, model.device, where) if adapter.twin else None
        """A head for the unadapted encoder's features under ``card.twin["normalisation"]``."""
        self.requires_grad_(False).eval()

    def _build_head(self, state: State, device: torch.device, where: str | Path) -> nn.Module:
        head, _ = build_head(state)
        check_head(head, self.encoder.config.n_features)
        head.to(device)
        outputs = head(self._probe(device)).shape[1]
        if outputs != self.card.n_outputs:
            raise BadDataError(
                f"{where}: the head has {outputs} outputs, but the card requires {self.card.n_outputs}.",
                "Download the file again.",
            )
        return head

    def _probe(self, device: torch.device) -> torch.Tensor:
        config = self.encoder.config
        last = config.n_stages - 1
        return torch.zeros(1, config.n_features, *config.grid(last), device=device)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Map (B, 1, x, y, z, t) to the head's raw outputs (B, O)."""
        return self.head(self.encoder(clips))


def to_predictions(card: AdapterCard, outputs: torch.Tensor) -> torch.Tensor:
    """Convert raw outputs to predictions.

    Parameters
    ----------
    card : AdapterCard
    outputs : torch.Tensor, (B, O)

    Returns
    -------
    torch.Tensor
        Class probabilities (B, n_labels), values in the card's unit (B, 1), or unit vectors (B, O).
    """
    outputs = outputs.float()
    if card.task == EMBEDDING:
        return nn.functional.normalize(outputs, dim=1)
    if card.task == REGRESSION:
        return outputs * card.value_std + card.value_mean
    if outputs.shape[1] == 1:
        second = torch.sigmoid(outputs)
        return torch.cat([1 - second, second], dim=1)
    return torch.softmax(outputs, dim=1)
