"""Section of the group report on site effects in image quality, predictions and embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from bids_app.bids.entities import natural_key
from bids_app.group.cohort import Cohort
from bids_app.group.identity import principal_components, standardise
from bids_app.group.predictions import collect_predictions
from bids_app.group.quality import metric_title, p_text
from bids_app.group.reading import RunRecord
from bids_app.group.statistics import (
    Difference,
    difference_of_groups,
    difference_of_points,
    false_discovery_rate,
    mean_by,
)
from bids_app.reports.contents import spec
from bids_app.reports.figures.group_charts import MAX_SITES, plot_sites
from bids_app.reports.group import BAD, FIGURES, GOOD, WARN, Cell, Figure, Remark, Section, Table

MIN_PARTICIPANTS = 3
"""Minimum participants per site."""
N_COMPONENTS = 10
"""Principal components of the embeddings for the comparison of sites."""


def sites_section(cohort: Cohort) -> Section:
    """Build the section on differences between sites, over participants, corrected for multiple tests."""
    section = Section("sites", "Site effects")
    if not cohort.site_column:
        section.paragraphs.append("participants.tsv has no column with sites or scanners.")
        return section
    members = Counter(site for site, _ in {(cohort.site(run), run.participant) for run in cohort.runs} if site)
    sites = [site for site, n in members.most_common() if n >= MIN_PARTICIPANTS]
    if len(sites) < 2:
        section.paragraphs.append(
            f"Fewer than two sites (column {cohort.site_column}) have at least {MIN_PARTICIPANTS} participants."
        )
        return section
    runs = [run for run in cohort.runs if cohort.site(run) in sites]
    units = [f"{cohort.site(run)}\t{run.participant}" for run in runs]
    measures = _measures(cohort, runs)
    averaged = {name: mean_by(values, units) for name, values in measures.items()}
    tested = {name: difference_of_groups(values, _sites_of(keys)) for name, (keys, values) in averaged.items()}
    for (model, normalisation), having in runs_by_embedding(runs).items():
        points = np.stack([run.vectors[model, normalisation].values for run in having])
        scores, _ = principal_components(standardise(points), N_COMPONENTS)
        keys, means = mean_by(scores, [f"{cohort.site(run)}\t{run.participant}" for run in having])
        tested[f"Embedding of {model}, {normalisation}"] = difference_of_points(means, _sites_of(keys))
    tested = {name: found for name, found in tested.items() if np.isfinite(found.effect)}
    adjusted = dict(zip(tested, false_discovery_rate([found.p for found in tested.values()]), strict=True))
    order = sorted(tested, key=lambda name: -tested[name].effect)
    min_effect, alpha = spec()["group"]["site_effect"], spec()["group"]["alpha"]
    differ = [name for name in order if adjusted[name] < alpha and tested[name].effect >= min_effect]

    section.paragraphs.append(
        f"{len(sites)} sites (column {cohort.site_column} of participants.tsv), compared over participants (runs "
        "averaged). The effect size is the fraction of variance explained by site: eta squared of the Kruskal-Wallis "
        f"test; for embeddings, adjusted R squared of a PERMANOVA on {N_COMPONENTS} principal components. p values are "
        f"FDR-corrected for {len(tested)} tests (Benjamini-Hochberg)."
    )
    plotted = [name for name in order if name in averaged][:6]
    if plotted:
        section.figures.append(_figure(plotted, averaged, sorted(sites[:MAX_SITES], key=natural_key)))
    section.tables.append(_table(order, tested, adjusted, differ))
    if differ:
        worst = ", ".join(f"{name} ({tested[name].effect:.0%})" for name in differ[:3])
        level = BAD if tested[differ[0]].effect >= 0.14 else WARN
        section.remarks.append(
            Remark(level, f"Sites differ in {len(differ)} of {len(tested)} measures; largest effects: {worst}.")
        )
    else:
        section.remarks.append(Remark(GOOD, f"No differences found between the {len(sites)} sites."))
    return section


def _measures(cohort: Cohort, runs: Sequence[RunRecord]) -> dict[str, np.ndarray]:
    """Return image quality metrics and predictions of runs, by label."""
    found = {}
    for name in spec()["group"]["worse"]:
        values = np.array([run.quality.get(name, np.nan) for run in runs], float)
        if np.isfinite(values).any():
            found[metric_title(name)] = values
    chosen = {id(run) for run in runs}
    mask = np.array([id(run) in chosen for run in cohort.runs])
    return found | {variable.title: variable.values[mask] for variable in collect_predictions(cohort)}


def runs_by_embedding(runs: Sequence[RunRecord]) -> dict[tuple[str, str], list[RunRecord]]:
    """Group runs by model and normalisation; only runs with the most frequent vector length."""
    found: dict[tuple[str, str], list[RunRecord]] = {}
    for kind in dict.fromkeys(kind for run in runs for kind in run.vectors):
        having = [run for run in runs if kind in run.vectors]
        usual = Counter(len(run.vectors[kind].values) for run in having).most_common(1)[0][0]
        found[kind] = [run for run in having if len(run.vectors[kind].values) == usual]
    return found


def _sites_of(keys: Sequence[str]) -> list[str]:
    return [key.partition("\t")[0] for key in keys]


def _figure(names: Sequence[str], averaged: dict[str, tuple[list[str], np.ndarray]], sites: Sequence[str]) -> Figure:
    groups = {}
    for name in names:
        keys, values = averaged[name]
        where = np.array(_sites_of(keys))
        groups[name] = [values[where == site] for site in sites]
    return Figure(
        f"{FIGURES}/sites.svg",
        "Differences between sites",
        f"The {len(names)} measures with the largest effects{' (largest sites)' if len(sites) == MAX_SITES else ''}. "
        "Boxes show median and quartiles over participants.",
        f"Box plots by site of {', '.join(names)}.",
        partial(plot_sites, groups, sites),
    )


def _table(
    order: Sequence[str], tested: dict[str, Difference], adjusted: dict[str, float], differ: Sequence[str]
) -> Table:
    return Table(
        "Differences between sites",
        ("Measure", "Effect size", "Participants", "Sites", "p (FDR)", "Result"),
        [
            (
                Cell(name),
                Cell(f"{max(0.0, tested[name].effect):.3f}"),
                Cell(str(tested[name].n)),
                Cell(str(tested[name].n_groups)),
                Cell(p_text(adjusted[name]), value=float(adjusted[name])),
                Cell("sites differ", level=WARN) if name in differ else Cell("no evidence", level=GOOD),
            )
            for name in order
        ],
    )
