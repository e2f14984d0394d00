"""Products of a batch with layers' weights: MKL, through torch's own operations, against oneDNN.

    python benchmarks/gemm.py [--rows 4096] [--shapes 424x512 424x64 ...] [--threads 1]

Forward x W^T + b, gradient of the input g W, gradient of the weight g^T x; and x W^T in bfloat16, its
operands converted beforehand. Each shape's ways take turns; prints the best and the median GFLOP per CPU second, of
more threads than one per second of the clock.
"""

import argparse
import statistics
import time

import torch

product = torch.ops.mkldnn._linear_pointwise
WINDOWS, CALLS = 15, 5


def ways(rows: int, width: int, out: int) -> dict[str, object]:
    x, w, g, b = torch.randn(rows, width), torch.randn(out, width), torch.randn(rows, out), torch.randn(out)
    x16, w16, b16 = x.bfloat16(), w.bfloat16(), b.bfloat16()
    return {"x W^T mkl": lambda: torch.addmm(b, x, w.t()),
            "x W^T onednn": lambda: product(x, w, b, "none", [], None),
            "x W^T bf16": lambda: torch.addmm(b16, x16, w16.t()),
            "g W mkl": lambda: g.mm(w),
            "g W onednn": lambda: product(g, w.t().contiguous(), None, "none", [], None),
            "g^T x mkl": lambda: g.t().mm(x),
            "g^T x onednn": lambda: product(g.t().contiguous(), x.t().contiguous(), None, "none", [], None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--shapes", nargs="+", default=["424x512", "424x256", "256x128", "128x64", "64x64", "424x64",
                                                        "424x32", "32x16", "16x8"])
    parser.add_argument("--threads", type=int, default=1)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    clock = time.process_time if said.threads == 1 else time.perf_counter
    for shape in said.shapes:
        width, out = map(int, shape.split("x"))
        found, work = ways(said.rows, width, out), 2e-9 * said.rows * width * out
        spent: dict[str, list[float]] = {k: [] for k in found}
        for _ in range(WINDOWS):
            for name, way in found.items():
                start = clock()
                for _ in range(CALLS):
                    way()
                spent[name].append((clock() - start) / CALLS)
        print(f"{shape:>8}  " + "  ".join(f"{name} {work / min(s):.0f} / {work / statistics.median(s):.0f}"
                                          for name, s in spent.items()), flush=True)


if __name__ == "__main__":
    main()
