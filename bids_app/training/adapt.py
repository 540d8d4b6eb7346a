"""Adaptation of an encoder to a task: trains prompts, norms, low-rank updates, a head or all weights.

A linear head is solved on embeddings that are computed once. Everything else is trained by gradient descent together
with a head on standardised embeddings: embeddings differ little relative to their mean, so the encoder does not learn
without standardisation. After training, the standardisation is folded into the weights of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_app.adapters.file import EMBEDDING, LORA, OUTPUTS, PREDICTIONS, STRATEGIES, Adapter, AdapterCard
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model
from bids_app.model.encoder import Encoder
from bids_app.model.heads import LinearHead
from bids_app.model.lora import FACTOR
from bids_app.terminal import count_of
from bids_app.training.data.batches import Batch, ClipSource, QuantisedBatch
from bids_app.training.data.loader import ClipBatches
from bids_app.training.head import StandardisedHead, compute_embeddings, solve_head
from bids_app.training.logs import PROGRESS
from bids_app.training.loop import fit
from bids_app.training.low_rank import LowRankSettings, add_low_rank_updates
from bids_app.training.optimiser import LoopSettings, matmul_precision
from bids_app.training.processes import fabric_for
from bids_app.training.recipes import RAW, STANDARDISED
from bids_app.training.state import describe_data
from bids_app.training.tasks import Task

MIN_BATCH_SIZE = 4


@dataclass(frozen=True)
class AdaptSettings:
    """Adaptation settings.

    Attributes
    ----------
    strategy : str
        Parameters to train with the head: ``linear``: none; ``ln``: norms; ``prompt``: prompts; ``prompt_ln``: both;
        ``lora``: low-rank updates of linear layers; ``full``: all weights.
    prompt_len : int
        Number of prompts (learned tokens) per window, for strategies with prompts.
    low_rank : LowRankSettings
        Low-rank updates, for the strategy ``lora``.
    batch_size : int
    loop : LoopSettings
        Settings of the training loop; not used by ``linear``.
    patience : int, optional
        Stop after this number of epochs without a better validation metric.
    ridge : float
        L2 penalty on the weights of a linear head for standardised embeddings.
    balance : bool
        Weight classes inversely to their size.
    precision : str
        See `bids_app.training.processes.fabric_for`.
    head_input : str
        What a head that is trained with the encoder reads, see `bids_app.training.recipes`.
    clip_average : str
        What is averaged over the clips of a run, an entry of `bids_app.adapters.file.CLIP_AVERAGES`.
    aligned_starts : bool
        Clips for training start at multiples of their length.
    matmul : str
        Precision of float32 products on a GPU, see `bids_app.training.recipes`.
    """

    strategy: str = "prompt"
    prompt_len: int = 50
    low_rank: LowRankSettings = field(default_factory=LowRankSettings)
    batch_size: int = 8
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(epochs=10, learning_rate=1e-3))
    patience: int | None = None
    ridge: float = 1e-2
    balance: bool = True
    precision: str = "32-true"
    head_input: str = STANDARDISED
    clip_average: str = PREDICTIONS
    aligned_starts: bool = False
    matmul: str = "highest"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"Unknown strategy: {self.strategy!r}.", f"Choose one of {', '.join(STRATEGIES)}.")
        if self.strategy != "linear" and self.batch_size < MIN_BATCH_SIZE:
            raise UsageError(
                f"--batch-size {self.batch_size} is too small for the strategy {self.strategy}.",
                f"Use at least {MIN_BATCH_SIZE}.",
            )
        if self.has_prompts and self.prompt_len < 1:
            raise UsageError(f"Invalid value for --prompt-len: {self.prompt_len}.", "Use at least 1.")

    def facts(self, model: Model, normalisation: str, target: str) -> dict[str, Any]:
        """Return what determines the results of training beside the loop and the data."""
        left_out = ("loop", "patience", "ridge", "low_rank")
        own = {name: value for name, value in asdict(self).items() if name not in left_out}
        own["prompt_len"] = self.prompt_len if self.has_prompts else 0
        own |= self.low_rank.facts() if self.strategy == LORA else {}
        return own | {"normalisation": normalisation, "target": target, "encoder_sha256": model.weights_sha256}

    @property
    def has_prompts(self) -> bool:
        """True if the strategy trains prompts."""
        return self.strategy in ("prompt", "prompt_ln")


@dataclass(frozen=True)
class LabelledScans:
    """Scans or segments, with the value of the target for each as text."""

    scans: tuple[ClipSource, ...]
    values: tuple[str, ...]

    def pick(self, indices: Sequence[int]) -> LabelledScans:
        """Select scans by index."""
        return LabelledScans(tuple(self.scans[i] for i in indices), tuple(self.values[i] for i in indices))


class Learner(nn.Module):
    """Encoder and head, with gradients only for the parameters of a strategy."""

    def __init__(self, model: Model, head: LinearHead | StandardisedHead, settings: AdaptSettings) -> None:
        super().__init__()
        prompt_len = settings.prompt_len if settings.has_prompts else 0
        torch.manual_seed(settings.loop.seed)  # prompts are initialised at random
        self.encoder = Encoder(replace(model.config, prompt_len=prompt_len)).to(model.device)
        self.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
        if settings.strategy == LORA:
            add_low_rank_updates(self.encoder, settings.low_rank)
        self.head = head
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(_is_trained(settings.strategy, name, self.encoder))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Map clips (B, 1, x, y, z, t) to outputs (B, O)."""
        return self.head(self.encoder(clips))

    def trained_parameters(self) -> dict[str, torch.Tensor]:
        """Return the trained parameters of the encoder."""
        return {n: p.detach().cpu().clone() for n, p in self.encoder.named_parameters() if p.requires_grad}


def _is_trained(strategy: str, name: str, encoder: Encoder) -> bool:
    """Return True if a strategy trains this parameter of the encoder."""
    if strategy == "full":
        return True
    if strategy == LORA:
        return FACTOR.fullmatch(name) is not None
    owner = encoder.get_submodule(name.rpartition(".")[0])
    is_norm, is_prompt = isinstance(owner, nn.LayerNorm), name.endswith(".prompt")
    return (is_norm and strategy in ("ln", "prompt_ln")) or (is_prompt and strategy in ("prompt", "prompt_ln"))


def adapt(
    model: Model,
    task: Task,
    training: LabelledScans,
    validation: LabelledScans | None,
    settings: AdaptSettings,
    normalisation: str,
    name: str,
    folder: Path | None = None,
    report: Callable[[str], None] | None = None,
    images: Mapping[str, np.ndarray] | None = None,
) -> tuple[Adapter, list[dict[str, float]]]:
    """Train an adapter.

    Parameters
    ----------
    model : Model
        Not modified.
    task : Task
    training : LabelledScans
    validation : LabelledScans, optional
        Scans of other participants; the epoch with the best validation metric is kept.
    settings : AdaptSettings
    normalisation : str
        Normalisation of the clips.
    name : str
        Name of the adapter.
    folder : Path, optional
        Folder of the log and the state, see `bids_app.training.loop.fit`.
    report : callable, optional
        Receives one line per epoch.
    images : mapping of str to numpy.ndarray, optional
        Vectors of all images, for tasks about images.

    Returns
    -------
    adapter : Adapter
    rows : list of dict
        Training log, one row per epoch; a single row for ``linear``.
    """
    targets = task.targets(training.values).to(model.device)
    weights = task.class_weights(targets) if settings.balance else None
    head: LinearHead | StandardisedHead
    if settings.strategy == "linear":
        embeddings, scans = compute_embeddings(model, training.scans, settings.batch_size)
        head = solve_head(task, embeddings, targets[scans], settings.ridge, weights, settings.loop.seed)
    else:
        torch.manual_seed(settings.loop.seed)
        if settings.head_input == RAW:
            head = LinearHead(model.config.n_features, task.n_outputs)
        else:
            head = StandardisedHead(model.config.n_features, task.n_outputs, zero_init=task.kind != EMBEDDING)
        head.to(model.device)
    learner = Learner(model, head, settings)
    validate = _validation(learner, task, validation, settings, images) if validation else None
    if settings.strategy == "linear":
        rows = [{"epoch": 0.0, **(validate() if validate else {})}]
    else:
        facts = settings.facts(model, normalisation, task.target)
        if folder is not None:  # a state is of these data only
            facts["training"] = describe_data(training.scans, training.values)
            facts["validation"] = describe_data(validation.scans, validation.values) if validation else "none"
        with matmul_precision(settings.matmul):
            rows = _train_through_encoder(
                learner, task, training, targets, weights, settings, validate, folder, report, facts
            )
    card = AdapterCard(
        name=name,
        task=task.kind,
        target=task.target,
        encoder_sha256=model.weights_sha256,
        normalisation=normalisation,
        labels=task.labels,
        value_mean=task.mean,
        value_std=task.std,
        strategy=settings.strategy,
        prompt_len=settings.prompt_len if settings.has_prompts else 0,
        **(settings.low_rank.facts() if settings.strategy == LORA else {}),
        dimensions=task.dimensions,
        clip_average=settings.clip_average,
        cohort=_describe_cohort(training, task),
        metrics=_best_metrics(rows, task, validation),
        demonstration=model.demonstration,
    )
    final = head.to_linear_head() if isinstance(head, StandardisedHead) else head
    return Adapter(card, _to_cpu(final.state_dict()), learner.trained_parameters()), rows


def _train_through_encoder(
    learner: Learner,
    task: Task,
    training: LabelledScans,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    settings: AdaptSettings,
    validate: Callable[[], dict[str, float]] | None,
    folder: Path | None,
    report: Callable[[str], None] | None,
    facts: Mapping[str, Any],
) -> list[dict[str, float]]:
    def loss_of(read: Batch | QuantisedBatch) -> torch.Tensor:
        batch = read.to(targets.device)
        return task.loss(learner(batch.clips), targets[batch.scans], weights)

    needs_pairs = task.kind == EMBEDDING and task.images is None
    identities = tuple(targets.tolist()) if needs_pairs else None
    batches = ClipBatches(
        training.scans,
        settings.batch_size,
        settings.loop.seed,
        identities=identities,
        aligned_starts=settings.aligned_starts,
    )
    n_clips = batches.n_clips
    if n_clips < MIN_BATCH_SIZE:
        raise BadDataError(
            f"The training scans have only {count_of(n_clips, 'clip')}.",
            f"At least {MIN_BATCH_SIZE} are required; add scans or use --strategy linear.",
        )
    monitor = task.main_metric if validate else None
    fabric = fabric_for(targets.device, precision=settings.precision)
    return fit(
        learner, batches, loss_of, settings.loop, folder, validate, monitor, settings.patience, report, fabric, facts
    )


@torch.no_grad()
def predict(
    learner: nn.Module,
    task: Task,
    scans: tuple[ClipSource, ...],
    batch_size: int,
    clip_average: str = PREDICTIONS,
) -> np.ndarray:
    """Predict each scan from the average over its clips; (N, n_labels), (N, 1) or (N, dimensions).

    ``clip_average`` is an entry of `bids_app.adapters.file.CLIP_AVERAGES`.
    """
    batches = ClipBatches(scans, batch_size, random_starts=False)
    device = next(learner.parameters()).device
    averages_outputs = clip_average == OUTPUTS
    n_columns = task.n_outputs if averages_outputs else max(1, len(task.labels), task.dimensions)
    sums = torch.zeros(len(scans), n_columns)
    for batch in batches.epoch(0):
        outputs = learner(batch.to(device).clips)
        values = outputs if averages_outputs else task.to_predictions(outputs)
        sums.index_add_(0, batch.scans, values.float().cpu())
    means = sums / torch.tensor([max(1, scan.n_clips) for scan in scans])[:, None]
    return (task.to_predictions(means) if averages_outputs else means).numpy()


def _validation(
    learner: Learner,
    task: Task,
    validation: LabelledScans,
    settings: AdaptSettings,
    images: Mapping[str, np.ndarray] | None,
) -> Callable[[], dict[str, float]]:
    def validate() -> dict[str, float]:
        learner.eval()
        predictions = predict(learner, task, validation.scans, settings.batch_size, settings.clip_average)
        return task.compute_metrics(predictions, validation.values, images)

    return validate


def _describe_cohort(training: LabelledScans, task: Task) -> dict[str, Any]:
    """Count participants and scans; scans by value unless the values are participants or images."""
    values = set() if task.kind == EMBEDDING or task.target == "participant" else set(training.values)
    counts = {value: training.values.count(value) for value in sorted(values)}
    return {
        "participants": len({scan.participant for scan in training.scans}),
        "scans": len(training.scans),
        **({"scans_of_each": counts} if 0 < len(counts) <= 20 else {}),
    }


def _best_metrics(rows: list[dict[str, float]], task: Task, validation: LabelledScans | None) -> dict[str, Any]:
    if validation is None:
        return {}
    best = max(rows, key=lambda row: row[task.main_metric])
    kept = {key: value for key, value in best.items() if key not in PROGRESS}
    metrics = {key: round(value, 4) if np.isfinite(value) else None for key, value in kept.items()}  # null in JSON
    return {"validation": {**metrics, "scans": len(validation.scans)}}


def _to_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
