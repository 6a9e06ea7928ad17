"""Where an epoch of all folds spends its time, at the home case's size: `python -m benchmarks.profile`."""

from __future__ import annotations

import time
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import epoch

KINDS = {
    "matrix products": ("bmm", "baddbmm", "mm", "addmm"),
    "gathering of the posts' chunks": ("index_select", "index"),
    "k-th largest": ("maximum", "minimum", "topk"),
    "softmax, layer norm": ("_softmax", "_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward"),
    "ReLU": ("relu_", "clamp_min_", "threshold_backward"),
    "optimizer and clipping": ("linalg_vector_norm", "lerp_", "addcmul_", "addcdiv_", "sqrt", "mul_", "div_"),
    "dropout's random numbers": ("uniform_",),
}


def measure() -> dict[str, float]:
    """Seconds of an epoch by kind of work; what no operation accounts for is Python, dispatch and autograd."""
    once = epoch.fused(epoch.case(epoch.HOME_POSTS))
    once()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        once()
        wall = time.perf_counter() - started
    of = {name: kind for kind, names in KINDS.items() for name in names}
    spent: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        if event.key.startswith("aten::"):
            spent[of.get(event.key.removeprefix("aten::"), "other element-wise work and copies")] += (
                event.self_cpu_time_total / 1e6
            )
    spent["Python, dispatch, autograd"] = max(wall - sum(spent.values()), 0.0)
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def main() -> None:
    spent = measure()
    whole = sum(spent.values())
    print(f"| {whole:.2f} s on {torch.get_num_threads()} threads, while profiled | share |\n|---|---|")
    for kind, seconds in spent.items():
        print(f"| {kind} | {100 * seconds / whole:.0f} % |")


if __name__ == "__main__":
    main()
