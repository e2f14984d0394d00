"""Builds src/funnelrank/_kernels.so from csrc/*.cpp while the package is installed or made into a wheel.

The library is optional: without a C++ compiler one line says so and the package works on torch's own operations. It
is C++ with a plain C interface, so neither Python nor torch is needed to build it, and one build serves every version
of both.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "csrc/*.cpp"
LIBRARY = "src/funnelrank/_kernels.so"
# no contraction: a * b + c must not depend on the instruction set; no errno, no traps: square roots become vectors
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared",
         "-fvisibility=hidden", "-pthread", "-Wno-psabi"]


class KernelsHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict) -> None:
        why = build(Path(self.root))
        if why:
            self.app.display_warning(f"funnelrank: the compiled kernels are not built ({why}); "
                                     "torch's own operations will do their work, more slowly")
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


def build(root: Path) -> str | None:
    """Compile; None, or why there is no library. One that was there before and no longer fits is removed."""
    library, made = root / LIBRARY, root / (LIBRARY + ".new")
    library.unlink(missing_ok=True)
    compiler = shlex.split(os.environ.get("CXX", "")) or next(
        ([found] for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        return "no C++ compiler"
    try:
        done = subprocess.run([*compiler, *FLAGS, *map(str, sorted(root.glob(SOURCES))), "-o", str(made)],
                              capture_output=True, text=True)
    except OSError as error:
        return f"{compiler[0]}: {error.strerror}"
    if done.returncode:
        made.unlink(missing_ok=True)
        return f"{compiler[0]}: {(done.stderr.strip().splitlines() or ['failed'])[0]}"
    os.replace(made, library)
    return None
