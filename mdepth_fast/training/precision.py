"""What `trainer.precision: auto` means on the machine at hand."""

import torch

from mdepth_fast.engines.runtimes import bfloat16_reason

__all__ = ["choose_precision"]


def choose_precision(precision: str, accelerator: str = "auto") -> tuple[str, str]:
    """Lightning's name of a precision, and why it was chosen; anything but "auto" is returned as it is.

    "auto" is bf16-mixed where the hardware multiplies bfloat16 faster than float32, and 32-true elsewhere: without such
    units bfloat16 convolutions are several times slower. It is never float16, which needs its losses scaled.
    """
    if precision != "auto":
        return precision, "as configured"
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if not gpu and accelerator not in ("auto", "cpu"):
        return "32-true", f"nothing is known of bfloat16 on {accelerator}"
    # Every device of a run computes alike, so the first speaks for all.
    if reason := bfloat16_reason("cuda:0" if gpu else "cpu"):
        return "32-true", reason.partition(";")[0]
    return "bf16-mixed", f"this {'GPU' if gpu else 'CPU'} has units for bfloat16"
