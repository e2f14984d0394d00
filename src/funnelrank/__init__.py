"""Multi-task, multi-scenario ranking of multi-step conversions.

Names are imported when they are first used, so that `import funnelrank` and the command line start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funnelrank.api import Ranker, build, encode, fit, load_config, measure_split, open_data, prepare
    from funnelrank.errors import ArtefactError, ConfigError, DataError, FunnelrankError, TrainingError
    from funnelrank.evaluate.table import wide

_HOME = {
    "funnelrank.api": ("Ranker", "build", "encode", "fit", "load_config", "measure_split", "open_data", "prepare"),
    "funnelrank.errors": ("ArtefactError", "ConfigError", "DataError", "FunnelrankError", "TrainingError"),
    "funnelrank.evaluate.table": ("wide",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["ArtefactError", "ConfigError", "DataError", "FunnelrankError", "Ranker", "TrainingError", "build", "encode",
           "fit", "load_config", "measure_split", "open_data", "prepare", "wide"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'funnelrank' has no attribute '{name}'")
    value = getattr(import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
