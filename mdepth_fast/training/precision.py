"""What `trainer.precision: auto` means on the machine at hand."""

import torch

__all__ = ["choose_precision"]


def choose_precision(precision: str, accelerator: str = "auto") -> tuple[str, str]:
    """Lightning's name of a precision, and why it was chosen; anything but "auto" is returned as it is.

    "auto" is bf16-mixed where the hardware multiplies bfloat16 faster than float32, and 32-true elsewhere: without such
    units bfloat16 convolutions are several times slower. It is never float16, which needs its losses scaled.
    """
    if precision != "auto":
        return precision, "as configured"
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        # Every device of a run computes alike, so the first speaks for all.
        name = torch.cuda.get_device_name(0)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{name} has tensor cores for bfloat16"
        return "32-true", f"{name} has no bfloat16"
    if accelerator not in ("auto", "cpu"):
        return "32-true", f"nothing is known of bfloat16 on {accelerator}"
    if torch.cpu._is_amx_tile_supported():
        return "bf16-mixed", "this processor has AMX, which multiplies bfloat16"
    if torch.cpu._is_avx512_bf16_supported():
        return "bf16-mixed", "this processor has AVX512-BF16"
    return "32-true", "this processor has no instructions that multiply bfloat16"
