"""Fitting and prediction in the folds of an evaluation: the encoder, baselines, and permutations of the labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model
from bids_app.training.adapt import AdaptSettings, LabelledScans
from bids_app.training.data.examples import Examples
from bids_app.training.data.splits import TEST, TRAINING, VALIDATION, apply_split, participant_groups
from bids_app.training.data.splits import Split as GivenSplit
from bids_app.training.evaluation.baselines import BASELINES, SITE, compute_features
from bids_app.training.evaluation.comparison import ENCODER, Units
from bids_app.training.evaluation.folds import Fold, make_folds
from bids_app.training.evaluation.harmonise import combat
from bids_app.training.evaluation.linear import Split, fit_predict
from bids_app.training.evaluation.retrieval import Retrieval
from bids_app.training.evaluation.shares import check_shares, limit_fold
from bids_app.training.evaluation.workers import FoldTraining, run_folds
from bids_app.training.head import compute_embeddings, solve_head
from bids_app.training.tasks import Task

FeatureCache = dict[tuple[str, tuple[tuple[str, str], ...]], np.ndarray]
"""Features (N, F) by baseline, and participants and names of the examples: for several targets of the same scans."""
REPEATS = 10
"""Default number of repeats for linear heads."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluation settings.

    Attributes
    ----------
    adaptation : AdaptSettings
    folds : int
        Number of folds; reduced to the number of participants if there are fewer.
    baselines : tuple of str
        Entries of `BASELINES`.
    repeats : int, optional
        Repetitions of the cross-validation with other folds; for folds by site, only the samples of `train_shares` are
        repeated. None: `REPEATS` for linear heads that are no embeddings, else 1.
    permutations : int
        Permutations of the labels for the test; 0: no test.
    harmonise : bool
        Remove differences between sites from the embeddings by ComBat, fitted to training sets.
    retrieval : Retrieval
        What a scan is compared with, for embeddings.
    train_shares : tuple of float
        Shares of the training participants for the table of data efficiency; empty: no table.
    split : dict of str to tuple of str, optional
        Participants of the training, test and, optionally, validation set, instead of folds. With a validation set, the
        strategies that train the encoder keep the epoch with its best metric.
    seed : int
    workers : int
        Processes in which the folds are trained; they do not change the results.
    """

    adaptation: AdaptSettings
    folds: int = 5
    baselines: tuple[str, ...] = tuple(BASELINES)
    repeats: int | None = None
    permutations: int = 200
    harmonise: bool = False
    retrieval: Retrieval = field(default_factory=Retrieval)
    train_shares: tuple[float, ...] = ()
    split: GivenSplit | None = None
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers > 1 and self.adaptation.strategy == "linear":
            raise UsageError(
                "--workers is for strategies that train the encoder in each fold; linear heads are fitted at once.",
                "Omit --workers.",
            )
        if self.folds < 2 or self.permutations < 0 or (self.repeats is not None and self.repeats < 1):
            raise UsageError(
                f"Invalid evaluation settings: {self.folds} folds, {self.permutations} permutations, "
                f"{self.repeats} repeats.",
                "At least 2 folds and 1 repeat are required.",
            )
        check_shares(self.train_shares)
        if self.retrieval.zero_shot and self.train_shares:
            raise UsageError("--zero-shot trains nothing that --train-shares could limit.", "Omit one of them.")
        if self.split is not None and (self.train_shares or (self.repeats or 1) > 1):
            raise UsageError(
                "--split is one split: it has no --repeats and no --train-shares.", "Omit --split, or these options."
            )

    def repeats_for(self, kind: str) -> int:
        """Return the number of repeats for a kind of task."""
        if self.repeats is not None or self.split is not None:
            return self.repeats or 1
        return REPEATS if self.adaptation.strategy == "linear" and kind != EMBEDDING else 1


class Run:
    """Fitting and prediction in the folds of one evaluation."""

    def __init__(
        self,
        model: Model,
        task: Task,
        examples: Examples,
        settings: EvaluateSettings,
        normalisation: str,
        images: Mapping[str, np.ndarray] | None,
        report: Callable[[str], None],
    ) -> None:
        self.model, self.task, self.settings, self.examples = model, task, settings, examples
        self.data, self.normalisation, self.images, self.report = examples.data, normalisation, images, report
        is_linear = settings.adaptation.strategy == "linear"
        if settings.harmonise and (examples.sites or not is_linear or len(set(examples.known_sites)) < 2):
            raise UsageError(
                "--harmonise requires the strategy linear, participants of at least two sites and no --site-column "
                "(--leave-out): ComBat needs training scans of each site.",
                "Add a column site to participants.tsv, or omit --harmonise.",
            )
        self.is_repeated = is_linear and task.kind != EMBEDDING and not examples.sites and settings.split is None
        n_repeats = 1 if examples.sites else settings.repeats_for(task.kind)
        self.groups = participant_groups(self.data.scans, examples.families)
        self.validation: list[int] = []
        if settings.split is None:
            self.repeats = [
                make_folds(task, examples, settings.folds, settings.seed + k, images is not None)
                for k in range(n_repeats)
            ]
        else:
            self.repeats = [[self._read_fold(settings.split)]]
        settings.retrieval.check(
            task, self.data, [fold for folds in self.repeats for fold in folds], settings.adaptation.strategy
        )
        self.units = self._make_units()
        self.embeddings: tuple[torch.Tensor, np.ndarray] | None = None
        self.splits: list[list[Split]] = []

    def _read_fold(self, split: GivenSplit) -> Fold:
        """Return the training and test examples of a given split, and keep those of its validation set."""
        if self.examples.sites:
            raise UsageError("--split and --site-column (--leave-out) are mutually exclusive.", "Omit one of them.")
        scans = self.data.scans
        train, test = (np.array(apply_split(split, scans, part)) for part in (TRAINING, TEST))
        if VALIDATION in split:
            self.validation = apply_split(split, scans, VALIDATION)
        if self.images is not None:
            values = np.array(self.data.values)
            train = train[~np.isin(values[train], values[test])]
            if not len(train):
                raise BadDataError("The split: all training images are in the test set.", "Use --folds.")
        return train, test

    def _make_units(self) -> list[Units]:
        retrieval = self.settings.retrieval
        return [Units(self.task, self.data, folds, self.images, retrieval) for folds in self.repeats]

    def limit(self, share: float) -> Run:
        """Return the same evaluation with a share of the training participants of each fold, see `limit_fold`.

        Folds by site are the same in all repeats; their samples differ.
        """
        limited, seed, repeats = copy.copy(self), self.settings.seed, self.repeats
        if self.examples.sites:
            repeats = repeats * (self.settings.repeats_for(self.task.kind) if share < 1 else 1)
        kind, values = self.task.kind, self.data.values
        limited.repeats = [
            [limit_fold(fold, share, self.groups, values, kind, (seed, r, k)) for k, fold in enumerate(folds)]
            for r, folds in enumerate(repeats)
        ]
        limited.units, limited.splits = limited._make_units(), []
        return limited

    @property
    def n_trained(self) -> float:
        """Mean number of training participants (or families)."""
        return float(np.mean([len({self.groups[i] for i in train}) for folds in self.repeats for train, _ in folds]))

    def predict_all(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cross-validate the encoder and the baselines with these features (N, F); (repeats, N, K) of each."""
        found = {ENCODER: self.cross_validate_encoder()}
        return found | {name: self.cross_validate_linear(rows) for name, rows in features.items()}

    @property
    def test_share(self) -> float:
        """Mean number of test participants divided by that of training participants."""
        groups = np.array(self.groups)
        return float(
            np.mean(
                [len(set(groups[test])) / len(set(groups[train])) for folds in self.repeats for train, test in folds]
            )
        )

    def describe_folds(self) -> str:
        """Describe the folds for the report."""
        n = len(self.repeats[0])
        if self.settings.split is not None:
            return "one split, as given"
        if self.examples.sites:
            again = f", samples repeated {self.settings.repeats_for(self.task.kind)} times"
            return f"{n}, leave one site out{again if self.settings.train_shares else ''}"
        again = f", repeated {len(self.repeats)} times" if len(self.repeats) > 1 else ""
        return f"{n}, by participant{again}"

    def compute_baselines(
        self, labels: np.ndarray | None, cache: FeatureCache
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return the features (N, F) of each baseline, and a note on each that cannot be computed."""
        features, notes = {}, []
        scans = tuple((scan.participant, scan.name) for scan in self.data.scans)  # type: ignore[attr-defined]
        for name in self.settings.baselines:
            try:
                if name == SITE and self.examples.sites:
                    raise BadDataError("Each fold tests another site.", "Omit --site-column (--leave-out).")
                if (name, scans) not in cache:
                    known = self.examples.known_sites
                    cache[name, scans] = compute_features(name, self.data.scans, labels, known)  # type: ignore[arg-type]
                features[name] = cache[name, scans]
            except BadDataError as error:
                notes.append(f"Baseline omitted: {BASELINES[name]}. {error}")
                continue
            self.report(f"{BASELINES[name]}: {features[name].shape[1]} features")
        return features, notes

    def fold_metrics(self, predictions: np.ndarray) -> list[dict[str, float]]:
        """Compute the metrics of predictions (repeats, N, K) in each fold of each repeat."""
        pairs = zip(self.units, predictions, strict=True)
        return [found for units, rows in pairs for found in units.fold_metrics(rows)]

    def fold_task(self, values: Sequence[str], train: np.ndarray) -> Task:
        """Define the task on the training set of a fold."""
        training_values = [values[i] for i in train]
        return Task.from_values(self.task.target, training_values, self.task.kind, self.task.dimensions, self.images)

    def collect(
        self, folds: list[Fold], predict_fold: Callable[[int, Task], np.ndarray], values: Sequence[str]
    ) -> np.ndarray:
        """Collect the predictions of the folds of one repeat, (N, K); NaN for examples outside all test sets."""
        rows: np.ndarray | None = None
        for k, (train, test) in enumerate(folds):
            task = self.fold_task(values, train)
            found = predict_fold(k, task)
            if task.kind == CLASSIFICATION:
                columns = [self.task.labels.index(label) for label in task.labels]
                whole = np.zeros((len(found), len(self.task.labels)))
                whole[:, columns] = found
                found = whole
            if rows is None:
                rows = np.full((len(values), found.shape[1]), np.nan)
            width = min(rows.shape[1], found.shape[1])
            rows[test, :width], rows[test, width:] = found[:, :width], 0
        assert rows is not None
        return rows

    def make_splits(self, features: np.ndarray, nuisance: np.ndarray | None = None) -> list[list[Split]]:
        """Prepare the features (N, F) for the folds of each repeat."""
        return [[Split.make(features, train, test, nuisance) for train, test in folds] for folds in self.repeats]

    def predict_linear(self, splits: list[list[Split]], values: Sequence[str]) -> np.ndarray:
        """Fit and predict in all folds; (repeats, N, K)."""
        pairs = zip(self.repeats, splits, strict=True)
        found = [self.predict_repeat(folds, own, values) for folds, own in pairs]
        width = max(rows.shape[1] for rows in found)
        return np.stack([np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in found])

    def predict_repeat(self, folds: list[Fold], splits: list[Split], values: Sequence[str]) -> np.ndarray:
        """Fit and predict in the folds of one repeat, (N, K)."""
        return self.collect(folds, lambda k, task: fit_predict(task, splits[k], values, self.groups), values)

    def cross_validate_linear(self, features: np.ndarray) -> np.ndarray:
        """Cross-validate a linear model of features (N, F); (repeats, N, K)."""
        return self.predict_linear(self.make_splits(features), self.data.values)

    def cross_validate_encoder(self, nuisance: np.ndarray | None = None) -> np.ndarray:
        """Cross-validate the encoder, optionally without nuisance variables (N, V); (repeats, N, K)."""
        settings = self.settings.adaptation
        if settings.strategy != "linear":
            return self._adapt_folds()
        if self.embeddings is None:
            values, owners = compute_embeddings(self.model, self.data.scans, settings.batch_size)
            self.embeddings = (values, owners.cpu().numpy())
        if self.settings.retrieval.zero_shot:
            return self.predict_linear(self.encoder_splits(None), self.data.values)
        if self.task.kind == EMBEDDING:
            repeats = [self.collect(folds, self._solve_fold(folds), self.data.values) for folds in self.repeats]
            return np.stack(repeats)
        splits = self.encoder_splits(nuisance)
        if nuisance is None:
            self.splits = splits
        return self.predict_linear(splits, self.data.values)

    def encoder_splits(self, nuisance: np.ndarray | None) -> list[list[Split]]:
        """Prepare the mean embedding of each example, harmonised if requested, for the folds of each repeat."""
        assert self.embeddings is not None
        clips, owners = self.embeddings
        sums = np.zeros((len(self.data.scans), clips.shape[1]))
        np.add.at(sums, owners, clips.cpu().numpy())
        means = sums / np.maximum(np.bincount(owners, minlength=len(sums)), 1)[:, None]
        if not self.settings.harmonise:
            return self.make_splits(means, nuisance)
        sites = self.examples.known_sites
        return [
            [Split.make(combat(means, sites, train), train, test, nuisance) for train, test in folds]
            for folds in self.repeats
        ]

    def _adapt_folds(self) -> np.ndarray:
        """Train an adapter in each fold of each repeat, and predict the test sets; (repeats, N, K)."""
        data, values = self.data, self.data.values
        folds = [
            FoldTraining(
                self.model,
                self.fold_task(values, train),
                data.pick(train.tolist()),
                data.pick(self.validation) if self.validation else None,
                tuple(data.scans[i] for i in test),
                self.settings.adaptation,
                self.normalisation,
                self.images,
            )
            for folds in self.repeats
            for train, test in folds
        ]
        found = run_folds(folds, self.settings.workers, self.report)
        return np.stack([self.collect(folds, lambda k, task: next(found), values) for folds in self.repeats])

    def _solve_fold(self, folds: list[Fold]) -> Callable[[int, Task], np.ndarray]:
        """Return a function that fits the head of an embedding to the clips of a fold, and predicts its test set."""
        assert self.embeddings is not None
        settings, (embeddings, owners) = self.settings.adaptation, self.embeddings

        def predict_fold(k: int, task: Task) -> np.ndarray:
            train, test = folds[k]
            is_training, is_test = np.isin(owners, train), np.isin(owners, test)
            targets = task.targets([self.data.values[i] for i in owners[is_training]]).to(embeddings.device)
            head = solve_head(task, embeddings[is_training], targets, settings.ridge, None, self.settings.seed)
            with torch.no_grad():
                clips = task.to_predictions(head.from_embedding(embeddings[is_test])).cpu().numpy()
            positions = np.searchsorted(np.sort(test), owners[is_test])
            sums = np.zeros((len(test), clips.shape[1]))
            np.add.at(sums, positions, clips)
            means = sums / np.maximum(np.bincount(positions, minlength=len(test)), 1)[:, None]
            return means[np.searchsorted(np.sort(test), test)]

        return predict_fold

    def permutation_test(self, predictions: np.ndarray, scores: list[dict[str, float]]) -> float:
        """Return the permutation p value of the main metric in the first repeat.

        A linear model is refitted for each permutation; otherwise the predictions are kept.
        """
        rng = np.random.default_rng(self.settings.seed + 1)
        units, main = self.units[0], self.task.main_metric
        n_folds = sum(len(own) > 0 for own in units.fold_indices)
        observed = float(np.nanmean([row[main] for row in scores[:n_folds]]))
        n_reached = 0
        for k in range(self.settings.permutations):
            if k and k % 50 == 0:
                self.report(f"{k} of {self.settings.permutations} permutations")
            values = units.permute_values(rng)
            permuted_predictions = self._refit(values) if self.splits else predictions
            if permuted_predictions is None:
                continue
            permuted = Units(
                self.task, LabelledScans(self.data.scans, values), self.repeats[0], self.images, units.retrieval
            )
            found = np.nanmean([row[main] for row in permuted.fold_metrics(permuted_predictions)])
            n_reached += bool(found >= observed)
        return (1 + n_reached) / (1 + self.settings.permutations)

    def _refit(self, values: tuple[str, ...]) -> np.ndarray | None:
        try:
            return self.predict_repeat(self.repeats[0], self.splits[0], values)
        except BadDataError:  # the permutation left one class in a training set
            return None
