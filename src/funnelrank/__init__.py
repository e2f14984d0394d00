"""Multi-task, multi-scenario ranking of multi-step conversions.

Names are imported when they are first used, so that `import funnelrank` and the command line start at once.
"""

from importlib import import_module

TYPE_CHECKING = False            # as typing has it, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from funnelrank.api import Ranker
    from funnelrank.config import load as load_config
    from funnelrank.errors import ArtefactError, ConfigError, DataError, FunnelrankError, TrainingError
    from funnelrank.evaluate.table import wide
    from funnelrank.flow import build, encode, fit, measure_split, open_data, prepare

_HOME = {
    "funnelrank.api": ("Ranker", "load_config"),
    "funnelrank.errors": ("ArtefactError", "ConfigError", "DataError", "FunnelrankError", "TrainingError"),
    "funnelrank.evaluate.table": ("wide",),
    "funnelrank.flow": ("build", "encode", "fit", "measure_split", "open_data", "prepare"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["ArtefactError", "ConfigError", "DataError", "FunnelrankError", "Ranker", "TrainingError", "build", "encode",
           "fit", "load_config", "measure_split", "open_data", "prepare", "wide"]


def __getattr__(name: str) -> "Any":
    if name not in _MODULE:
        raise AttributeError(f"module 'funnelrank' has no attribute '{name}'")
    value = getattr(import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
