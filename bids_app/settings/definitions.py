"""Settings of one invocation: its sections, and the options that belong to none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_app.errors import UsageError
from bids_app.settings.machine import default_work_dir
from bids_app.settings.option import flag, option, values_from, whole_number
from bids_app.settings.sections import (
    ACTIONS,
    DATA,
    RESOURCES,
    SESSIONS_PER_REPORT,
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
        help="BIDS dataset: raw data, or outputs of fMRIPrep, XCP-D, HCP or UK Biobank",
        parse=absolute_path,
    )
    out_dir: Path = option("output_dir", help="folder for the derivatives; created if missing", parse=absolute_path)
    level: str = option(
        "analysis_level",
        metavar="{participant,group}",
        help="analysis level to run",
        parse=known_level,
    )
    work_dir: Path = option(
        "-w",
        "--work-dir",
        group=RESOURCES,
        metavar="DIR",
        help="scratch folder; keep it to reuse cached results in later runs",
        parse=absolute_path,
        write=str,
        everyday=True,
    )
    clean_workdir: bool = flag(
        "--clean-workdir", group=RESOURCES, help="delete the scratch files of this run if it succeeds"
    )
    query: QuerySettings = field(default_factory=QuerySettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    exclude_failed: bool = flag(
        "--exclude-failed",
        group=DATA,
        help="group level: leave out the runs that people rated as failed (neurostorm-review)",
    )
    check: bool = flag(
        "--check",
        group=ACTIONS,
        help="check inputs, weights, templates, disk and memory, print the plan, write nothing",
        everyday=True,
    )
    reports_only: bool = flag("--reports-only", group=ACTIONS, help="rebuild the reports from existing derivatives")
    sessions_per_report: int = option(
        "--aggregate-session-reports",
        default=SESSIONS_PER_REPORT,
        group=ACTIONS,
        type=whole_number,
        metavar="N",
        help="maximum number of sessions in one report; with more, each session has its own (default: 4)",
    )
    boilerplate_only: bool = flag("--boilerplate-only", group=ACTIONS, help="write the methods text only")
    provenance: bool = flag(
        "--provenance",
        group=ACTIONS,
        help="also write the provenance of the outputs to prov/ and to their sidecars, as BIDS-Prov (BEP028): "
        "activities, software, environment, checksums",
        everyday=True,
    )
    stop_on_first_crash: bool = flag("--stop-on-first-crash", group=ACTIONS, help="stop after the first failed step")
    verbosity: int = option(
        "-v",
        "--verbose",
        default=0,
        group=ACTIONS,
        counted=True,
        help="print more messages; give twice for debug messages",
    )

    def __post_init__(self) -> None:
        if self.sessions_per_report < 1:
            raise UsageError(
                f"Invalid value for --aggregate-session-reports: {self.sessions_per_report} is below 1.",
                "Give a number, 1 or more.",
            )


def settings_from(*given: Mapping[str, Any]) -> Settings:
    """Make the settings from the configuration file and the command line.

    Parameters
    ----------
    *given : mapping
        Option keys with their values; later mappings take precedence, missing options take their defaults.

    Raises
    ------
    UsageError, AnalysisLevelError
        Invalid or conflicting values; an unknown analysis level.
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
