"""The generalised Charbonnier penalty of the flow losses, as in csrc/include/mdepth/charbonnier.h."""

import struct

import triton
import triton.language as tl

from mdepth_fast.kernels._launch import number


def constants(alpha: float, scale: float, epsilon: float) -> dict[str, float]:
    """The constexpr arguments of `charbonnier`: what follows from the options, computed in double.

    HIGH is alpha with so few bits that its product with an exponent of float32 is exact, and LOW the rest.
    """
    (bits,) = struct.unpack("<I", struct.pack("<f", alpha))
    (high,) = struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFF80))
    return {"ALPHA": alpha, "HIGH": high, "LOW": alpha - high, "SCALE": scale, "SQUARE": epsilon * epsilon}


@triton.jit
def charbonnier(
    s, ALPHA: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, SCALE: tl.constexpr, SQUARE: tl.constexpr
):
    """((SCALE s)^2 + SQUARE)^ALPHA, and its derivative by s."""
    x = s * number(SCALE, s)
    base = tl.fma(x, x, tl.broadcast_to(number(SQUARE, s), s.shape))
    if s.dtype == tl.float64:
        value = tl.exp(number(ALPHA, s) * tl.log(base))
    else:
        # The instructions for powers of 2 and logarithms are coarser than float32, and so is alpha log(base) itself.
        # With base = 2^k (1 + f) and log2(base^alpha) = n + r, |r| <= 1/2, n whole, it is 2^n 2^r.
        bits = tl.where(base < float("inf"), base, 1.0).to(tl.int32, bitcast=True) + (0x3F800000 - 0x3F3504F3)
        k = ((bits >> 23) - 127).to(tl.float32)
        f = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
        poly = f * 6.0658414e-2 - 1.1881942e-1
        poly = poly * f + 1.2381513e-1
        poly = poly * f - 1.2424741e-1
        poly = poly * f + 1.4149050e-1
        poly = poly * f - 1.6662650e-1
        poly = poly * f + 2.0005521e-1
        poly = poly * f - 2.5000197e-1
        poly = poly * f + 3.3333266e-1
        square = f * f
        log = f + (f * square * poly - 0.5 * square)
        small = k * LOW + log * (ALPHA * 1.44269504088896340736)
        n = tl.floor(k * HIGH + small + 0.5)
        r = (k * HIGH - n) + small
        value = r * 1.5353361e-4 + 1.3398874e-3
        value = value * r + 9.618437e-3
        value = value * r + 5.5503324e-2
        value = value * r + 2.4022648e-1
        value = value * r + 6.9314718e-1
        value = value * r + 1.0
        value = value * ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True) + (base - base)
    return value, x * number(2 * ALPHA * SCALE, s) * (value / base)
