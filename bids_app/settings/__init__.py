"""Settings of an invocation: frozen dataclasses that validate themselves, and their machine-dependent defaults.

``sections`` and ``definitions`` hold the dataclasses, with each option defined on its field; ``option`` defines an
option, ``values`` parses its text, and ``machine`` reads the resources of this process. Only the standard library may
be imported here, so that ``neurostorm --help`` stays fast.
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
from bids_app.settings.option import Option, as_options, options_of, refuse_empty
from bids_app.settings.sections import (
    ATTRIBUTION_CONTROLS,
    ATTRIBUTIONS,
    AVERAGE,
    CLIP_MB_PER_MINUTE,
    CLIP_NORMALISATIONS,
    DENOISING,
    FIRST,
    GROUPS,
    IGNORABLE,
    OUT_OF_DOMAIN,
    SESSIONWISE,
    ModelSettings,
    PreprocessSettings,
    QuerySettings,
    ResourceSettings,
)
from bids_app.settings.values import (
    BRAINMARKS_PREFIX,
    DEFAULT_MODEL,
    FUNC_SPACE,
    GROUP,
    HUB_PREFIX,
    PARTICIPANT,
    T1W_SPACE,
)

__all__ = [
    "ATTRIBUTIONS",
    "ATTRIBUTION_CONTROLS",
    "AVERAGE",
    "BRAINMARKS_PREFIX",
    "CACHES",
    "CLIP_MB_PER_MINUTE",
    "CLIP_NORMALISATIONS",
    "DEFAULT_MODEL",
    "DENOISING",
    "FIRST",
    "FUNC_SPACE",
    "GROUP",
    "GROUPS",
    "HUB_PREFIX",
    "IGNORABLE",
    "OUT_OF_DOMAIN",
    "PARTICIPANT",
    "SCRATCH_VARIABLE",
    "SESSIONWISE",
    "T1W_SPACE",
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
    "refuse_empty",
    "settings_from",
]
