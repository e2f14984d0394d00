"""ONNX Runtime, which is an extra: sessions of one graph on a CPU, and silence.

From 1.32 on it makes an id of the machine in the home folder and sends its makers events of every session, unless the
environment says otherwise before it is imported; so that is said here, where it is imported, and nowhere else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from funnelrank.errors import ArtefactError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def session(path: Path, threads: int) -> InferenceSession:
    """A graph, ready to be run. ArtefactError for a file that is none; ModuleNotFoundError where the library is not."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as runtime  # an extra, and slow to come
    from onnxruntime.capi import onnxruntime_pybind11_state as faults

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (faults.Fail, faults.InvalidArgument, faults.InvalidGraph, faults.InvalidProtobuf, faults.NoSuchFile) as e:
        raise ArtefactError(f"{path}: ONNX Runtime {runtime.__version__} does not take this graph "
                            f"({str(e).splitlines()[0][:200]}); export it again") from None
