"""What all Triton kernels share: the launch, its signature, and the tile of pixels that a program works on."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Intermediate maps go through memory in portions of whole images of at most this size. A launch costs tens of
# microseconds on the host, so portions are large: a usual batch (12 images of 192 x 640) goes in one.
WORKSPACE_BYTES = 96 * 2**20


class Block(NamedTuple):
    """The tile of pixels of a program, each a power of 2, and its number of warps."""

    rows: int
    columns: int
    warps: int

    def tiles(self, height: int, width: int) -> int:
        """How many tiles cover an image."""
        return -(-height // self.rows) * -(-width // self.columns)


def launch(kernel: Any, programs: int, warps: int, **arguments: Any) -> None:
    """Runs `kernel` on the device of its tensors and that device's current stream.

    Contraction of multiplications and additions is off, whatever Triton's default: where it pays the kernels ask for it
    (`tl.fma`), so results do not depend on what a compiler finds. Nothing is tuned at run time.
    """
    if programs == 0:
        return
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](**arguments, num_warps=warps, enable_fp_fusion=False)


def signature(kernel: Any, arguments: dict[str, Any], aligned: bool) -> dict[str, Any]:
    """The keywords of `triton.compiler.ASTSource` for a launch with these arguments.

    `aligned`: as Triton specialises a launch whose pointers and sizes are divisible by 16.
    """
    kinds: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            kinds[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        kinds[parameter.name] = _kind(value)
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return {"signature": kinds, "constexprs": constants, "attrs": attributes}


_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


def _kind(value: Tensor | int) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def portions(batch: int, bytes_per_image: int) -> Iterator[slice]:
    """Cuts a batch into runs of nearly equal length whose maps fit `WORKSPACE_BYTES` (or are of one image)."""
    count = -(-batch // max(1, WORKSPACE_BYTES // bytes_per_image))
    for k in range(count):
        yield slice(batch * k // count, batch * (k + 1) // count)


@triton.jit
def tile_origin(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile of this program: index of its image (int64), index in the image (int64), its first row and column."""
    program = tl.program_id(0).to(tl.int64)
    across = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * across
    image = program // tiles
    tile = program - image * tiles
    return image, tile, (tile // across).to(tl.int32) * ROWS, (tile % across).to(tl.int32) * COLUMNS


@triton.jit
def tile_pixels(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile of this program: index of its image (int64), index in the image (int64), y (ROWS, 1), x (1, COLUMNS),
    and which of its pixels lie in the image. Coordinates are int32; whoever makes an address of them goes to int64."""
    image, tile, top, left = tile_origin(height, width, ROWS, COLUMNS)
    y, x = top + tl.arange(0, ROWS)[:, None], left + tl.arange(0, COLUMNS)[None, :]
    return image, tile, y, x, (y < height) & (x < width)


@triton.jit
def plane_size(height, width):
    """int64"""
    return tl.full((), 1, dtype=tl.int64) * height * width


@triton.jit
def number(value, like):
    """A Python number in the dtype of `like`. Before Triton 3.9, comparisons and `tl.fma` round a bare one to float32,
    even among doubles: there it must have few digits (0, 1, -2.0), or come from here."""
    return tl.full((), value, dtype=like.dtype)


@triton.jit
def offset(y, x, width):
    """Of pixel (y, x) in its plane, int64."""
    return y.to(tl.int64) * width + x
