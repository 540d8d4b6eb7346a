"""How often an evaluation is wrong: random labels, and a group that differs in motion or site.

    python benchmarks/evaluation.py random       # random labels: intervals that hold chance, and false declarations
    python benchmarks/evaluation.py confounded   # a group that differs in motion or site, and nothing else

Embeddings (64 features), motion and confounds (28) and mean image (40) are simulated, with a similarity of the scans of
a person; the evaluation is that of `neurostorm-train evaluate --strategy linear`. The first table has the share of
intervals that hold chance, and of sets with a declaration: "exceeds chance", "is better than" or "is worse than".
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bids_app.training.adapt import AdaptSettings, LabelledScans
from bids_app.training.data.examples import Examples
from bids_app.training.evaluation import run as running
from bids_app.training.evaluation.comparison import ENCODER, chance_level
from bids_app.training.evaluation.evaluate import Evaluation, evaluate
from bids_app.training.evaluation.run import EvaluateSettings
from bids_app.training.tasks import Task

WIDTHS = {ENCODER: 64, "confounds": 28, "mean": 40}
MODEL: Any = SimpleNamespace(name="simulated", weights_sha256="0" * 64)


def evaluate_features(task: Task, examples: Examples, features: dict[str, np.ndarray], repeats: int) -> Evaluation:
    """Evaluate given features (N, F) instead of those of scans; each example has one clip."""
    own = torch.from_numpy(features[ENCODER])
    running.compute_embeddings = lambda *_: (own, torch.arange(len(own)))  # type: ignore[assignment]
    running.compute_features = lambda name, *_: features[name]  # type: ignore[assignment]
    names = tuple(name for name in features if name != ENCODER)
    settings = EvaluateSettings(AdaptSettings("linear"), baselines=names, repeats=repeats, permutations=0)
    return evaluate(MODEL, task, examples, settings, "voxel")


def scans_of(people: int, runs: int, values: list[str]) -> Examples:
    """Return examples of people with several runs."""
    scans = tuple(
        SimpleNamespace(participant=f"{k:03d}", session="", n_clips=1, name=f"{k}-{r}") for k in range(people)
        for r in range(runs)
    )  # fmt: skip
    return Examples(LabelledScans(scans, tuple(values)), {})  # type: ignore[arg-type]


def similar(people: int, runs: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return features (people * runs, width); two thirds of their variance is that of people."""
    own = np.repeat(rng.normal(size=(people, width)), runs, axis=0)
    return np.sqrt(2 / 3) * own + np.sqrt(1 / 3) * rng.normal(size=own.shape)


Labels = Callable[[int, int, np.random.Generator], list[str]]


def group(people: int, runs: int, rng: np.random.Generator) -> list[str]:
    """Return a random group for each person."""
    return [f"group {k % 2}" for k in rng.permutation(people) for _ in range(runs)]


def state(people: int, runs: int, rng: np.random.Generator) -> list[str]:
    """Return the states of each person in random order, so that units are runs."""
    return [f"state {k % 2}" for _ in range(people) for k in rng.permutation(runs)]


def age(people: int, runs: int, rng: np.random.Generator) -> list[str]:
    """Return a random age for each person."""
    return [f"{value:.1f}" for value in rng.uniform(20, 80, people) for _ in range(runs)]


RANDOM: dict[str, tuple[int, int, Labels]] = {
    "group, 16 people of 4 runs": (16, 4, group),
    "group, 40 people of 1 run": (40, 1, group),
    "state, 16 people of 4 runs": (16, 4, state),
    "age, 40 people of 1 run": (40, 1, age),
}


def print_random(sets: int, repeats: int) -> None:
    """Print how often intervals hold chance on random labels, and how often anything is declared."""
    print("| labels | interval of the encoder | of confounds | exceeds chance | better | worse | red flags |")
    print("| --- " * 7 + "|")
    for name, (people, runs, labels) in RANDOM.items():
        count: Counter[str] = Counter()
        for seed in range(sets):
            rng = np.random.default_rng([seed, people, runs])
            values = labels(people, runs, rng)
            task = Task.from_values("label", values)
            features = {key: similar(people, runs, width, rng) for key, width in WIDTHS.items()}
            found = evaluate_features(task, scans_of(people, runs, values), features, repeats)
            chance = chance_level(task) or 0.0
            for method in (ENCODER, "confounds"):
                low, high = found.methods[method].intervals[task.main_metric]
                count[method] += low <= chance <= high
            relations = [found.relation(key) for key in features if key != ENCODER]
            count["exceeds"] += found.exceeds_chance
            count["better"] += "is better than" in relations
            count["worse"] += "is worse than" in relations
            count["flag"] += bool(found.flags)
        cells = [f"{count[key] / sets:.1%}" for key in (ENCODER, "confounds", "exceeds", "better", "worse", "flag")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def print_confounded(sets: int, repeats: int) -> None:
    """Print the score of an encoder that sees motion or site, or the group itself, and how often it is flagged."""
    print("| the group differs in | the encoder sees | encoder | after removal | flagged | remains above chance |")
    print("| --- " * 6 + "|")
    people, runs = 40, 2
    for nuisance in ("confounds", "site"):
        for sees in ("nuisance", "nuisance and group"):
            rows: list[tuple[float, float, bool, bool]] = []
            for seed in range(sets):
                rng = np.random.default_rng([seed, len(nuisance), len(sees)])
                is_patient = np.repeat(rng.permutation(people) % 2, runs)
                other = np.where(rng.random(people) < 0.85, is_patient[::runs], 1 - is_patient[::runs]).repeat(runs)
                given = np.stack([other, 1 - other], axis=1) if nuisance == "site" else 2 * other[:, None]
                shown = given + (0.5 * rng.normal(size=given.shape) if nuisance == "confounds" else 0)
                embeddings = similar(people, runs, 16, rng)
                embeddings[:, 0] += 3 * other
                embeddings[:, 1] += 3 * is_patient * (sees == "nuisance and group")
                values = [f"group {k}" for k in is_patient]
                found = evaluate_features(
                    Task.from_values("group", values),
                    scans_of(people, runs, values),
                    {ENCODER: embeddings, nuisance: shown.astype(float)},
                    repeats,
                )
                main, left = found.main_metric, found.conditional
                rows.append((
                    found.methods[ENCODER].metrics[main],
                    left.metrics[main] if left else np.nan,
                    bool(found.flags),
                    left is not None and (left.p_value or 0) < 0.05,
                ))  # fmt: skip
            score, after, flagged, remains = np.nanmean(np.array(rows, float), axis=0)
            what = "motion" if nuisance == "confounds" else "site"
            print(f"| {what} (85 %) | {sees} | {score:.2f} | {after:.2f} | {flagged:.0%} | {remains:.0%} |", flush=True)


def main() -> None:
    """Print the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tables", nargs="*", choices=("random", "confounded"), default=["random", "confounded"])
    p.add_argument("--sets", type=int, default=200, help="simulated data sets (default: %(default)s)")
    p.add_argument("--repeats", type=int, default=10, help="repeats of the folds (default: %(default)s)")
    arguments = p.parse_args()
    for table in arguments.tables:
        print(f"\n{table}, {arguments.sets} sets, {arguments.repeats} repeats")
        print_table = {"random": print_random, "confounded": print_confounded}[table]
        print_table(arguments.sets, arguments.repeats)


if __name__ == "__main__":
    main()
