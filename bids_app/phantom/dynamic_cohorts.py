"""Simulated cohorts with effects in dynamics: connectivity, lag, spectrum, variance, connectome and short activation.

Each trait has its own effect on the regional time series: patients differ from controls in the connectivity of `LINKS`,
men from women in the lag of `LAGGED`, age changes the exponent of the spectrum, and the score changes the variance of
`VARIED`. Heads, motion and sites are independent of the traits unless `Confounding` says otherwise, so that the mean
image carries no information.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from bids_app.bids.writer import write_text
from bids_app.errors import UsageError
from bids_app.phantom.activity import STATES, Event, random_events
from bids_app.phantom.cohorts import Participant, write_tables
from bids_app.phantom.dynamic_scans import SITES, DynamicScan, Nuisances, simulate_head, simulate_scan
from bids_app.phantom.geometry import rng_for
from bids_app.phantom.regional_series import OWN_SHARE, RegionalModel, make_model, own_covariance, parameters

LINKS = (("default", "control"), ("attention", "visual"))
"""Pairs of networks whose correlation is higher in patients."""
LAGGED = "visual"
"""Network that follows the others in men and precedes them in women."""
VARIED = ("limbic", "cerebellum")
"""Networks whose variance grows with the score."""
GROUPS = ("control", "patient")
AGES, SCORES = (50.0, 17.3), (100.0, 15.0)
"""Mean and standard deviation of age and score."""


@dataclass(frozen=True)
class DynamicEffects:
    """Strengths of the effects; 0 is none.

    Attributes
    ----------
    connectivity : float
        Added to the correlations of `LINKS` in patients, and subtracted in controls.
    lag_s : float
        Delay of `LAGGED` in men; the same lead in women, so that correlations at equal times do not differ.
    slowing : float
        Added to the exponent of the spectrum per standard deviation of age.
    variance : float
        Added to the logarithm of the standard deviation of `VARIED` per standard deviation of the score.
    own : float
        Share of the correlations that only one participant has.
    activation : tuple of float
        Range over participants of the response to a long block at a focus, relative to the mean signal.
    """

    connectivity: float = 0.15
    lag_s: float = 1.0
    slowing: float = 0.4
    variance: float = 0.12
    own: float = OWN_SHARE
    activation: tuple[float, float] = (0.01, 0.02)


NO_EFFECTS = DynamicEffects(0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0))


@dataclass(frozen=True)
class Confounding:
    """Relations between group and nuisances.

    Attributes
    ----------
    site : float
        Probability that the group determines the site; otherwise the site is random.
    motion : float
        Logarithm of the factor by which patients move more.
    """

    site: float = 0.0
    motion: float = 0.0


@dataclass(frozen=True)
class CohortPlan:
    """How the scans of a cohort are made.

    Attributes
    ----------
    seconds : float
        Duration of a scan.
    tr : float
        Repetition time, s.
    step : int
        Edge of the scan's voxels, in voxels of the model grid; see `dynamic_scans.simulate_head`.
    effects, nuisances, confounding
    """

    seconds: float = 192.0
    tr: float = 2.0
    step: int = 2
    effects: DynamicEffects = field(default_factory=DynamicEffects)
    nuisances: Nuisances = field(default_factory=Nuisances)
    confounding: Confounding = field(default_factory=Confounding)

    @property
    def n_vols(self) -> int:
        """Volumes of a scan."""
        return round(self.seconds / self.tr)


@dataclass(frozen=True)
class DynamicCohortScan:
    """A scan of a cohort, simulated on demand.

    Attributes
    ----------
    name, participant, session : str
        As in a store of clips.
    labels : dict of str to str
        Labels of the scan, besides those of the tables.
    simulate : callable
        Returns the scan.
    """

    name: str
    participant: str
    session: str
    labels: dict[str, str]
    simulate: Callable[[], DynamicScan]


def random_participant(seed: int, number: int, confounding: Confounding) -> Participant:
    """Simulate the traits of participant ``number``; half of the participants are patients."""
    rng = rng_for(seed, number, "traits")
    group = GROUPS[number % 2]
    follows, chosen = rng.random() < confounding.site, int(rng.integers(len(SITES)))
    return Participant(
        label=f"{number:03d}",
        age=round(float(rng.uniform(20, 80)), 1),
        sex="FM"[int(rng.integers(2))],
        score=round(float(rng.normal(*SCORES)), 1),
        group=group,
        site=SITES[GROUPS.index(group) if follows else chosen].name,
    )


def participants_of(plan: CohortPlan, participants: int, seed: int) -> list[Participant]:
    """Simulate the traits of a cohort."""
    if participants < 2:
        raise UsageError(f"Invalid number of participants: {participants}.", "At least 2 are required.")
    return [random_participant(seed, number, plan.confounding) for number in range(participants)]


def model_of(person: Participant, effects: DynamicEffects, seed: int) -> RegionalModel:
    """Return the regional model of a participant with the effects of their traits."""
    sign = 1.0 if person.group == GROUPS[1] else -1.0
    age, score = (person.age - AGES[0]) / AGES[1], (person.score - SCORES[0]) / SCORES[1]
    return make_model(
        own_covariance(seed, person.label),
        effects.own,
        dict.fromkeys(LINKS, sign * effects.connectivity),
        parameters().exponent + effects.slowing * age,
        {LAGGED: effects.lag_s if person.sex == "M" else -effects.lag_s},
        {name: float(np.exp(effects.variance * score)) for name in VARIED},
    )


def scan_participant(
    person: Participant, plan: CohortPlan, seed: int, *scan: int | str, own_head: bool = False, state: str = ""
) -> DynamicScan:
    """Simulate one scan of a participant.

    Parameters
    ----------
    person : Participant
    plan : CohortPlan
    seed : int
    scan : int or str
        Name of the scan; scans of one participant differ in it.
    own_head : bool
        The scan has a head of its own, so that the anatomy does not identify the participant.
    state : str
        State of all blocks, with pauses of the same length; "" for rest.
    """
    keys = (seed, person.label, *scan)
    events = random_events(state, plan.seconds, rng_for(*keys, "events")) if state else ()
    return _simulate(person, plan, seed, keys, keys if own_head else (seed, person.label), events)


def _simulate(
    person: Participant,
    plan: CohortPlan,
    seed: int,
    keys: tuple[int | str, ...],
    head: tuple[int | str, ...],
    events: tuple[Event, ...],
) -> DynamicScan:
    effects = plan.effects
    return simulate_scan(
        model_of(person, effects, seed),
        simulate_head(*head, folds_mm=plan.nuisances.folds_mm, step=plan.step),
        next(site for site in SITES if site.name == person.site),
        plan.nuisances,
        plan.n_vols,
        plan.tr,
        *keys,
        events=events,
        activation=float(rng_for(seed, person.label, "activation").uniform(*effects.activation)),
        extra_motion=plan.confounding.motion if person.group == GROUPS[1] else 0.0,
    )


def dynamic_traits(folder: Path, participants: int, plan: CohortPlan, seed: int = 0) -> list[DynamicCohortScan]:
    """Simulate participants at rest, one scan each; write the tables of a raw dataset into ``folder``."""
    people = participants_of(plan, participants, seed)
    write_tables(folder, people)
    return [_cohort_scan(person, "", {}, partial(scan_participant, person, plan, seed, "rest")) for person in people]


def dynamic_sessions(
    folder: Path, participants: int, plan: CohortPlan, sessions: int = 2, seed: int = 1
) -> list[DynamicCohortScan]:
    """Simulate participants at rest in several sessions; only the connectome identifies a participant.

    The other traits have no effect. Each scan has a head and a site of its own, so the table names no site.
    """
    plan = replace(plan, effects=replace(NO_EFFECTS, own=plan.effects.own))
    people = participants_of(plan, participants, seed)
    write_tables(folder, [replace(person, site="n/a") for person in people])
    found = []
    for person in people:
        for number in range(1, sessions + 1):
            site = SITES[int(rng_for(seed, person.label, number, "site").integers(len(SITES)))].name
            scan = partial(scan_participant, replace(person, site=site), plan, seed, str(number), own_head=True)
            found.append(_cohort_scan(person, str(number), {}, scan))
    return found


def dynamic_states(
    folder: Path, participants: int, plan: CohortPlan, blocks: int = 4, block_s: float = 16.0, seed: int = 2
) -> list[DynamicCohortScan]:
    """Simulate participants in short blocks of all states in one scan; write tables and events into ``folder``."""
    plan = replace(plan, seconds=blocks * len(STATES) * block_s + 8.0)
    people = participants_of(plan, participants, seed)
    write_tables(folder, people)
    found = []
    for person in people:
        orders = [rng_for(seed, person.label, k, "order").permutation(list(STATES)) for k in range(blocks)]
        order = [str(state) for block in orders for state in block]
        events = tuple(Event(k * block_s, block_s, state) for k, state in enumerate(order))
        path = folder / f"sub-{person.label}" / "func" / f"sub-{person.label}_task-x_events.tsv"
        rows = "".join(f"{event.onset}\t{event.duration}\t{event.trial_type}\n" for event in events)
        write_text(path, "onset\tduration\ttrial_type\n" + rows)
        own = (seed, person.label)
        scan = partial(_simulate, person, plan, seed, (*own, "states"), own, events)
        found.append(_cohort_scan(person, "", {}, scan))
    return found


def dynamic_runs(folder: Path, participants: int, plan: CohortPlan, seed: int = 3) -> list[DynamicCohortScan]:
    """Simulate one scan of each state and participant, with blocks and pauses, as in the demonstration dataset.

    The state is a label of the scan.
    """
    people = participants_of(plan, participants, seed)
    write_tables(folder, people)
    return [
        _cohort_scan(
            person, "", {"state": state}, partial(scan_participant, person, plan, seed, state, state=state), state
        )
        for person in people
        for state in STATES
    ]


def _cohort_scan(
    person: Participant, session: str, labels: dict[str, str], scan: Callable[[], DynamicScan], task: str = "x"
) -> DynamicCohortScan:
    name = f"sub-{person.label}" + (f"_ses-{session}" if session else "") + f"_task-{task}"
    return DynamicCohortScan(name, person.label, session, {"task": task, **labels}, scan)
