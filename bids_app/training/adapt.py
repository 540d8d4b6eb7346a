"""Adapting an encoder to a question: prompts, norms, head, or everything; the result is an adapter.

A head alone is solved on embeddings that are computed once. Whatever lies inside the encoder is trained through it,
together with a head on standardised embeddings: their differences are small beside their mean, and without being
standardised they teach the encoder nothing. The standardisation is folded into the head's weights in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_app.adapters.file import EMBEDDING, STRATEGIES, Adapter, AdapterCard
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model
from bids_app.model.encoder import Encoder
from bids_app.model.heads import LinearHead
from bids_app.training.data.loader import Batch, ClipBatches, Readable
from bids_app.training.head import StandardisedHead, embeddings_of, solve_head
from bids_app.training.loop import LoopSettings, fabric_for, fit
from bids_app.training.tasks import Question

SMALLEST_BATCH = 4


@dataclass(frozen=True)
class AdaptSettings:
    """How to adapt.

    Attributes
    ----------
    strategy : str
        ``linear``: the head; ``ln``: and norms; ``prompt``: and prompts; ``prompt_ln``: both; ``full``: everything.
    prompt_len : int
        Learned tokens in front of each window, where the strategy has prompts.
    batch_size : int
    loop : LoopSettings
        Of the part that goes through the encoder.
    patience : int, optional
        Epochs without a better validation score after which training stops.
    ridge : float
        Penalty on the head's standardised weights.
    balance : bool
        Whether classes count alike, however many scans each has.
    precision : str
        See `bids_app.training.loop.fabric_for`.
    """

    strategy: str = "prompt"
    prompt_len: int = 50
    batch_size: int = 8
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(epochs=10, learning_rate=1e-3))
    patience: int | None = None
    ridge: float = 1e-2
    balance: bool = True
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"There is no strategy {self.strategy!r}.", f"Choose one of {', '.join(STRATEGIES)}.")
        if self.strategy != "linear" and self.batch_size < SMALLEST_BATCH:
            raise UsageError(
                f"A batch of {self.batch_size} is too small to standardise embeddings.",
                f"Give {SMALLEST_BATCH} or more for the strategy {self.strategy}.",
            )
        if self.has_prompts and self.prompt_len < 1:
            raise UsageError(f"--prompt-len is {self.prompt_len}.", "At least one prompt is needed.")

    @property
    def has_prompts(self) -> bool:
        """Whether prompts are learned."""
        return self.strategy in ("prompt", "prompt_ln")


@dataclass(frozen=True)
class Labelled:
    """Scans, or stretches of them, and the answer for each as text."""

    scans: tuple[Readable, ...]
    values: tuple[str, ...]

    def pick(self, indices: Sequence[int]) -> Labelled:
        """Some of them."""
        return Labelled(tuple(self.scans[i] for i in indices), tuple(self.values[i] for i in indices))


class Learner(nn.Module):
    """An encoder, of which a strategy's part can be trained, with a head."""

    def __init__(self, model: Model, head: LinearHead | StandardisedHead, settings: AdaptSettings) -> None:
        super().__init__()
        prompt_len = settings.prompt_len if settings.has_prompts else 0
        torch.manual_seed(settings.loop.seed)  # prompts begin at random
        self.encoder = Encoder(replace(model.config, prompt_len=prompt_len)).to(model.device)
        self.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
        self.head = head
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(_belongs(settings.strategy, name, self.encoder))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """(B, 1, x, y, z, t) to (B, O)."""
        return self.head(self.encoder(clips))

    def learned(self) -> dict[str, torch.Tensor]:
        """The encoder's parameters that were trained."""
        return {n: p.detach().cpu().clone() for n, p in self.encoder.named_parameters() if p.requires_grad}


def _belongs(strategy: str, name: str, encoder: Encoder) -> bool:
    """Whether a parameter of the encoder is trained under a strategy."""
    if strategy == "full":
        return True
    owner = encoder.get_submodule(name.rpartition(".")[0])
    is_norm, is_prompt = isinstance(owner, nn.LayerNorm), name.endswith(".prompt")
    return (is_norm and strategy in ("ln", "prompt_ln")) or (is_prompt and strategy in ("prompt", "prompt_ln"))


def adapt(
    model: Model,
    question: Question,
    training: Labelled,
    validation: Labelled | None,
    settings: AdaptSettings,
    normalisation: str,
    name: str,
    folder: Path | None = None,
    say: Callable[[str], None] | None = None,
    images: Mapping[str, np.ndarray] | None = None,
) -> tuple[Adapter, list[dict[str, float]]]:
    """Train an adapter.

    Parameters
    ----------
    model : Model
        Stays as it is.
    validation : Labelled, optional
        Scans of other participants; the epoch that does best on them is kept.
    normalisation : str
        Of the clips that the scans hold.
    name : str
        The adapter's.
    folder : Path, optional
        For the log and the state, see `bids_app.training.loop.fit`.
    images : mapping of str to numpy.ndarray, optional
        Given vectors of all images shown, for a question about images.

    Returns
    -------
    adapter : Adapter
    rows : list of dict
        The log; one row for ``linear``.
    """
    targets = question.targets(training.values).to(model.device)
    weights = question.class_weights(targets) if settings.balance else None
    head: LinearHead | StandardisedHead
    if settings.strategy == "linear":
        embeddings, scans = embeddings_of(model, training.scans, settings.batch_size)
        head = solve_head(question, embeddings, targets[scans], settings.ridge, weights, settings.loop.seed)
    else:
        torch.manual_seed(settings.loop.seed)
        head = StandardisedHead(model.config.n_features, question.n_outputs, from_zero=question.task != EMBEDDING)
        head.to(model.device)
    learner = Learner(model, head, settings)
    validate = _validator(learner, question, validation, settings, images) if validation else None
    if settings.strategy == "linear":
        rows = [{"epoch": 0.0, **(validate() if validate else {})}]
    else:
        rows = _through_the_encoder(learner, question, training, targets, weights, settings, validate, folder, say)
    card = AdapterCard(
        name=name,
        task=question.task,
        target=question.target,
        encoder_sha256=model.weights_sha256,
        normalisation=normalisation,
        labels=question.labels,
        value_mean=question.mean,
        value_std=question.std,
        strategy=settings.strategy,
        prompt_len=settings.prompt_len if settings.has_prompts else 0,
        dimensions=question.dimensions,
        cohort=_cohort(training),
        metrics=_metrics(rows, question, validation),
        demonstration=model.demonstration,
    )
    final = head.folded() if isinstance(head, StandardisedHead) else head
    return Adapter(card, _cpu(final.state_dict()), learner.learned()), rows


def _through_the_encoder(
    learner: Learner,
    question: Question,
    training: Labelled,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    settings: AdaptSettings,
    validate: Callable[[], dict[str, float]] | None,
    folder: Path | None,
    say: Callable[[str], None] | None,
) -> list[dict[str, float]]:
    def loss_of(batch: Batch) -> torch.Tensor:
        batch = batch.to(targets.device)
        return question.loss(learner(batch.clips), targets[batch.scans], weights)

    in_pairs = question.task == EMBEDDING and question.images is None
    kinds = tuple(targets.tolist()) if in_pairs else None
    batches = ClipBatches(training.scans, settings.batch_size, settings.loop.seed, kinds=kinds)
    n_clips = batches.n_clips
    if n_clips < SMALLEST_BATCH:
        raise BadDataError(
            f"The training scans have {n_clips} clips, too few to standardise embeddings.",
            f"{SMALLEST_BATCH} are the least; use the strategy linear, or more scans.",
        )
    best_by = question.score if validate else None
    fabric = fabric_for(targets.device, 1, settings.precision)
    return fit(learner, batches, loss_of, settings.loop, folder, validate, best_by, settings.patience, say, fabric)


@torch.no_grad()
def predict(learner: nn.Module, question: Question, scans: tuple[Readable, ...], batch_size: int) -> np.ndarray:
    """The answer for each scan: the mean over its clips; (N, n_labels), (N, 1) or (N, dimensions)."""
    batches = ClipBatches(scans, batch_size, moving=False)
    device = next(learner.parameters()).device
    sums = torch.zeros(len(scans), max(1, len(question.labels), question.dimensions))
    for batch in batches.epoch(0):
        sums.index_add_(0, batch.scans, question.answers(learner(batch.to(device).clips)).float().cpu())
    return (sums / torch.tensor([max(1, scan.n_clips) for scan in scans])[:, None]).numpy()


def _validator(
    learner: Learner,
    question: Question,
    validation: Labelled,
    settings: AdaptSettings,
    images: Mapping[str, np.ndarray] | None,
) -> Callable[[], dict[str, float]]:
    def validate() -> dict[str, float]:
        learner.eval()
        answers = predict(learner, question, validation.scans, settings.batch_size)
        return question.scores(answers, validation.values, images)

    return validate


def _cohort(training: Labelled) -> dict[str, Any]:
    counts = {value: training.values.count(value) for value in sorted(set(training.values))}
    return {
        "participants": len({scan.participant for scan in training.scans}),
        "scans": len(training.scans),
        **({"scans_of_each": counts} if len(counts) <= 20 else {}),
    }


def _metrics(rows: list[dict[str, float]], question: Question, validation: Labelled | None) -> dict[str, Any]:
    if validation is None:
        return {}
    best = max(rows, key=lambda row: row[question.score])
    scores = {k: round(v, 4) for k, v in best.items() if k not in ("epoch", "loss", "rate", "seconds")}
    return {"validation": {**scores, "scans": len(validation.scans)}}


def _cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
