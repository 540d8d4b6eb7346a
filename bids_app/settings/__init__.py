"""What was asked for, as frozen dataclasses that check themselves, and the defaults that the machine gives.

``sections`` and ``definitions`` hold the dataclasses, with each option defined on the field that it fills; ``option``
says what an option is, ``values`` how its words become values, and ``machine`` what this process may use. Only the
standard library may be imported here, so that ``neurostorm --help`` answers at once.
"""

from bids_app.settings.definitions import Settings, settings_from
from bids_app.settings.machine import (
    CACHES,
    SCRATCH_VARIABLE,
    default_cpus,
    default_memory_gb,
    default_work_dir,
    home_dir,
    own_scratch,
)
from bids_app.settings.option import Option, as_options, options_of
from bids_app.settings.sections import (
    ATTRIBUTIONS,
    GROUPS,
    IGNORABLE,
    OUT_OF_DOMAIN,
    ModelSettings,
    PreprocessSettings,
    QuerySettings,
    ResourceSettings,
)
from bids_app.settings.values import GROUP, PARTICIPANT

__all__ = [
    "ATTRIBUTIONS",
    "CACHES",
    "GROUP",
    "GROUPS",
    "IGNORABLE",
    "OUT_OF_DOMAIN",
    "PARTICIPANT",
    "SCRATCH_VARIABLE",
    "ModelSettings",
    "Option",
    "PreprocessSettings",
    "QuerySettings",
    "ResourceSettings",
    "Settings",
    "as_options",
    "default_cpus",
    "default_memory_gb",
    "default_work_dir",
    "home_dir",
    "options_of",
    "own_scratch",
    "settings_from",
]
