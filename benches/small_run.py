"""Every op, forward and backward, small, on every backend of the GPU: the program that `make gpu-sanitize` watches.

python benches/small_run.py [backend ...]

What results are compared with is computed on the CPU: under a sanitizer every kernel takes its time, PyTorch's too.
"""

import sys
from pathlib import Path

import torch

from mdepth_fast import _dispatch, ops

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from cases import KERNEL_CASES, gradients
from scenes import relative_error

DEVICE = torch.device("cuda", 0)
# A pixel of another winner is no wrong kernel; anything beyond a few of them is.
TOLERANCES = {torch.float32: 0.05, torch.float64: 1e-9, torch.float16: 0.01, torch.bfloat16: 0.05}


def moved(inputs: dict[str, torch.Tensor], *where: object) -> dict[str, torch.Tensor]:
    return {name: value.to(*where) for name, value in inputs.items()}


def check(label: str, got: list[torch.Tensor], want: list[torch.Tensor], tolerance: float) -> None:
    error = relative_error([tensor.cpu() for tensor in got], want)
    print(f"{label}: error {error:.1e}", flush=True)
    assert error < tolerance, label


def main() -> None:
    for backend in sys.argv[1:] or ("cuda", "nvrtc", "triton"):
        for case in KERNEL_CASES:
            if reason := _dispatch.why_not(case.name, backend, DEVICE):
                print(f"{case.name} {backend}: not here: {reason}")
                continue
            for dtype in (torch.float32, torch.float64):
                inputs = case.inputs(height=37, width=70, dtype=dtype)
                want, want_grads = gradients(case, "reference", moved(inputs, torch.float64))
                got, got_grads = gradients(case, backend, moved(inputs, DEVICE))
                check(f"{case.name} {backend} {dtype}", [*got, *got_grads], [*want, *want_grads], TOLERANCES[dtype])
        if _dispatch.why_not("nnconv5", backend, DEVICE) is None:
            on_tensor_cores(backend)


def on_tensor_cores(backend: str) -> None:
    case = next(case for case in KERNEL_CASES if case.name == "nnconv5")
    torch.set_float32_matmul_precision("high")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for channels in (33, 64):
            inputs = moved(case.inputs(height=9, width=17, channels=channels, out_channels=19), dtype)
            want = ops.nnconv5(**moved(inputs, torch.float64), backend="reference")
            got = ops.nnconv5(**moved(inputs, DEVICE), backend=backend)
            check(f"nnconv5 {backend} {dtype} on tensor cores", [got], [want], TOLERANCES[dtype])
    torch.set_float32_matmul_precision("highest")


if __name__ == "__main__":
    main()
