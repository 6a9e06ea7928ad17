"""Where an epoch of all folds spends its time, at the size of ReDSM5: `python -m benchmarks.profile`."""

from __future__ import annotations

import time
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import epoch

KINDS = {
    "matrix products": ("bmm", "baddbmm", "mm", "addmm"),
    "gathering the posts' chunks": ("index_select", "index"),
    "k-th largest": ("maximum", "minimum", "topk"),
    "softmax, layer norm": ("_softmax", "_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward"),
    "ReLU": ("relu_", "clamp_min_", "gt_"),
    "optimizer and clipping": ("_fused_adamw_", "linalg_vector_norm", "mul_"),
    "random numbers of dropout": ("random_",),
}


def measure() -> dict[str, float]:
    """Seconds of an epoch by kind of work; time outside operations is Python, dispatch and autograd."""
    run_epoch = epoch.fused(epoch.case(epoch.HOME_POSTS))
    run_epoch()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        run_epoch()
        wall = time.perf_counter() - started
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            kind = kind_of.get(event.key.removeprefix("aten::"), "other element-wise work and copies")
            seconds[kind] += event.self_cpu_time_total / 1e6
    seconds["Python, dispatch, autograd"] = max(wall - sum(seconds.values()), 0.0)
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def main() -> None:
    seconds_by_kind = measure()
    total = sum(seconds_by_kind.values())
    print(f"| {total:.2f} s on {torch.get_num_threads()} threads, while profiled | share |\n|---|---|")
    for kind, seconds in seconds_by_kind.items():
        print(f"| {kind} | {100 * seconds / total:.0f} % |")


if __name__ == "__main__":
    main()
