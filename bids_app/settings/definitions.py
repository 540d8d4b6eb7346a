"""The settings of one invocation, from its sections and what concerns it as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_app.settings.machine import default_work_dir
from bids_app.settings.option import flag, option, values_from
from bids_app.settings.sections import (
    ACTIONS,
    RESOURCES,
    ModelSettings,
    PreprocessSettings,
    QuerySettings,
    ResourceSettings,
)
from bids_app.settings.values import absolute_path, known_level


@dataclass(frozen=True)
class Settings:
    """One invocation of ``neurostorm``."""

    bids_dir: Path = option(
        "bids_dir",
        help="the BIDS dataset: raw, or fMRIPrep's, XCP-D's or HCP's outputs",
        parse=absolute_path,
    )
    out_dir: Path = option("output_dir", help="where the derivatives go; made when missing", parse=absolute_path)
    level: str = option(
        "analysis_level",
        metavar="{participant,group}",
        help="which level of the analysis to run",
        parse=known_level,
    )
    work_dir: Path = option(
        "-w",
        "--work-dir",
        group=RESOURCES,
        metavar="DIR",
        help="scratch folder; keep it, and a second run is short",
        parse=absolute_path,
        write=str,
        everyday=True,
    )
    clean_workdir: bool = flag("--clean-workdir", group=RESOURCES, help="delete this run's scratch when all went well")
    query: QuerySettings = field(default_factory=QuerySettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    check: bool = flag(
        "--check",
        group=ACTIONS,
        help="examine inputs, weights, templates, disk and memory, print the plan, write nothing",
        everyday=True,
    )
    reports_only: bool = flag("--reports-only", group=ACTIONS, help="make the reports again from the derivatives")
    boilerplate_only: bool = flag("--boilerplate-only", group=ACTIONS, help="write the methods text only")
    stop_on_first_crash: bool = flag(
        "--stop-on-first-crash", group=ACTIONS, help="start nothing more after the first failure"
    )
    verbosity: int = option(
        "-v", "--verbose", default=0, group=ACTIONS, counted=True, help="say more; twice: everything"
    )


def settings_from(*given: Mapping[str, Any]) -> Settings:
    """Settings from what a configuration file and the command line give.

    Parameters
    ----------
    *given : mapping
        Option's key to its value, or values; what is given later wins, and what is not given takes its default.

    Raises
    ------
    UsageError, AnalysisLevelError
        Values that are impossible, or exclude each other; an unknown level.
    """

    def values(section: type) -> dict[str, Any]:
        return {name: value for source in given for name, value in values_from(section, source).items()}

    own = values(Settings)
    return Settings(
        **{"work_dir": default_work_dir(own["out_dir"])} | own,
        query=QuerySettings(**values(QuerySettings)),
        preprocess=PreprocessSettings(**values(PreprocessSettings)),
        model=ModelSettings(**values(ModelSettings)),
        resources=ResourceSettings.on_this_machine(values(ResourceSettings)),
    )
