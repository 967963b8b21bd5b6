"""Argument checks of the public ops: a clear error names the argument, what was expected and what came."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def floating(value: object, name: str, symbols: str) -> Tensor:
    """`value` as a floating-point tensor; `symbols` is its shape in words."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor {symbols}, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    return value


def tensor(value: object, name: str, shape: Sequence[int | None], symbols: str) -> Tensor:
    """`value` as a floating-point tensor of `shape`, where None allows any size; `symbols` is the shape in words."""
    value = floating(value, name, symbols)
    if value.shape == shape:  # most calls; what follows takes ten times as long
        return value
    if value.dim() != len(shape) or any(want is not None and want != got for want, got in zip(shape, value.shape)):
        expected = tuple("any" if want is None else want for want in shape)
        raise ValueError(
            f"{name}: expected shape {symbols} = ({', '.join(map(str, expected))}), got {tuple(value.shape)}"
        )
    return value


def mask(value: object, name: str, shape: tuple[int, ...], symbols: str) -> None:
    """A bool tensor of `shape`, or None."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a bool tensor {symbols} or None, got {got}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {symbols} = {shape}, got {tuple(value.shape)}")


def depth_map(value: object, name: str) -> tuple[int, int, int, int]:
    """Checks a tensor (B, 1, H, W) and returns its shape."""
    batch, _, height, width = tensor(value, name, (None, 1, None, None), "(B, 1, H, W)").shape
    return batch, 1, height, width


def image_size(value: object, name: str) -> tuple[int, int]:
    """(H, W), both at least 1."""
    whole = (int, torch.SymInt)  # an exporter's sizes are symbols
    if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(v, whole) and v >= 1 for v in value):
        raise ValueError(f"{name}: expected (H, W), two integers of at least 1, got {value!r}")
    return value[0], value[1]


def counted(value: object, shape: tuple[int, ...]) -> tuple[Tensor | None, bool]:
    """The argument `valid` of a loss over depth maps as (mask or None, whether "measured")."""
    if isinstance(value, str):
        if value != "measured":
            raise ValueError(f'valid: expected a bool tensor, "measured" or None, got {value!r}')
        return None, True
    mask(value, "valid", shape, "(B, 1, H, W)")
    assert value is None or isinstance(value, Tensor)
    return value, False


def maps(value: object, name: str, symbols: str) -> Sequence[Tensor]:
    """A non-empty sequence of floating-point tensors, whose shapes are `symbols` in words."""
    if isinstance(value, (Tensor, str)) or not isinstance(value, Sequence) or not value:
        raise TypeError(f"{name}: expected a non-empty sequence of tensors, got {type(value).__name__}")
    for s, one in enumerate(value):
        floating(one, f"{name}[{s}]", symbols)
    return value


def number(value: object, name: str, expected: str) -> None:
    """TypeError unless it is a number; `expected` says which numbers are allowed."""
    kinds = (int, float, torch.SymInt, torch.SymFloat, Real)  # an exporter's numbers are symbols
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")


def flag(value: object, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def count(value: object, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name}: expected an integer of at least 0, got {value!r}")


def weight(value: float, name: str) -> None:
    """Of a term of a loss."""
    number(value, name, "a weight of at least 0")
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name}: expected a weight of at least 0, got {value}")


def depth_range(min_depth: float, max_depth: float) -> None:
    for name, value in (("min_depth", min_depth), ("max_depth", max_depth)):
        number(value, name, "a number above 0")
    if not 0.0 < min_depth < max_depth < math.inf:
        raise ValueError(f"min_depth, max_depth: expected 0 < min_depth < max_depth, got {min_depth} and {max_depth}")


def positive(value: float, name: str) -> None:
    number(value, name, "a finite number above 0")
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")


def weights(value: object, name: str, shape: tuple[int, ...], symbols: str) -> Tensor | None:
    """A bool or floating-point tensor of `shape`, or None."""
    if value is None or (isinstance(value, Tensor) and value.dtype == torch.bool):
        mask(value, name, shape, symbols)
        return value
    return tensor(value, name, shape, symbols)


def charbonnier(alpha: float, scale: float, epsilon: float, prefix: str = "") -> None:
    """The parameters of `((scale x)^2 + epsilon^2)^alpha`: a smaller epsilon has no square in float32."""
    number(alpha, f"{prefix}alpha", "a number above 0, at most 1")
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"{prefix}alpha: expected a number above 0, at most 1, got {alpha}")
    positive(scale, f"{prefix}scale")
    number(epsilon, "epsilon", "a finite number of at least 1e-12")
    if not 1e-12 <= epsilon < float("inf"):
        raise ValueError(f"epsilon: expected a finite number of at least 1e-12, got {epsilon}")


def contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def ordinal_bins(logits: Tensor) -> int:
    """K of logits (B, 2K, H, W)."""
    if logits.shape[1] < 2 or logits.shape[1] % 2:
        raise ValueError(f"logits: expected an even number of channels, 2 a threshold, got {logits.shape[1]}")
    return logits.shape[1] // 2


def readable(value: Tensor) -> bool:
    """Whether looking at the values costs nothing: not on a GPU, and not while a compiler or torch.func traces."""
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is None


def increasing(value: Tensor, name: str) -> None:
    if readable(value) and not bool((value.diff() > 0).all()):
        raise ValueError(f"{name}: expected increasing numbers, got {value.tolist()}")


def shares(value: Tensor, name: str) -> None:
    """Values from 0 to 1."""
    if readable(value) and not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(f"{name}: expected values from 0 to 1, got others")


def same_device(first: Tensor, first_name: str, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != first.device:
            raise ValueError(f"{name}: expected device {first.device}, where {first_name} is, got {other.device}")


def windows(sizes: Mapping[str, int]) -> str | None:
    """What kernels of 3x3 windows need of their sizes, in words where it does not hold."""
    fits = sizes["height"] >= 2 and sizes["width"] >= 2 and sizes.get("channels", 1) >= 1
    return None if fits else "at least 1 channel, H and W of at least 2"


def some(sizes: Mapping[str, int]) -> bool:
    """Whether every size but the batch is at least 1."""
    return all(size >= 1 for name, size in sizes.items() if name != "batch")


def window_fits(image: Tensor, name: str) -> None:
    height, width = image.shape[-2:]
    if height < 2 or width < 2:
        raise ValueError(f"{name}: expected H and W of at least 2 (3x3 windows reflect), got {height}x{width}")


def fraction(value: float, name: str) -> None:
    number(value, name, "a number from 0 to 1")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")


def padding_mode(value: str) -> None:
    if value not in ("border", "zeros"):
        raise ValueError(f'padding: expected "border" or "zeros", got {value!r}')


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32: half and bfloat16 are computed in float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def cast(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Each in `dtype`. `Tensor.to` takes five times as long to find that there is nothing to do."""
    return [t if t.dtype == dtype else t.to(dtype) for t in tensors]
