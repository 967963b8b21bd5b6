"""What makes a float64 kernel less than float64, found in what Triton's compiler makes of it."""

import re
import struct
from functools import partial

from triton.language import semantic

# Double functions of libdevice and PTX: the function, the stage, its instructions, and why they lose no digits.
ALLOWED = (
    ("exp", "llir", r"bitcast i32 %\S+ to float|@llvm\.nvvm\.fabs\.|= select|= fcmp", "compares exponents as floats"),
    ("exp", "ptx", r"\b(abs(\.ftz)?|setp\.\w+)\.f32\b", "compares exponents as floats"),
    ("log", "ptx", r"\brcp\.approx\.ftz\.f64\b", "a first guess, which Newton's steps refine"),
    ("rsqrt", "ptx", r"\brsqrt\.approx\.f64\b", "1 ulp, as CUDA's rsqrt of doubles; only `.approx.ftz` is coarse"),
)
_MLIR = r"(?<![A-Za-z_])(?:\d+x)*(?:f32|tf32|f16|bf16|f8\w*)\b"
_NARROW = {
    "ttir": _MLIR,
    "ttgir": _MLIR,
    "llir": r"\b(?:float|half|bfloat)\b",
    "ptx": r"\.(?:f32|tf32|f16|bf16)(?:x2)?\b|\.approx\b",
}
_NO_CODE = {
    "ttir": r"\bloc\(.*|^#.*",
    "ttgir": r"\bloc\(.*|^#.*",
    "llir": r"!.*|^(?:;|declare|attributes|source_filename).*",
    "ptx": r"//.*|^\s*\.(?:loc|file|reg|section|b8|b32).*",
}
_DOUBLE = re.compile(r"arith\.constant (?:dense<)?(-?\d[\d.eE+-]*|0x[0-9A-F]+)>? : (?:tensor<[\dx]+x)?f64")


def rounded_constants(ttir: str) -> list[str]:
    """Doubles that have exactly the digits of a float32, more than a number that somebody writes down would have."""
    found = []
    for text in _DOUBLE.findall(ttir):
        number = bytes.fromhex(text[2:].zfill(16)) if text.startswith("0x") else struct.pack(">d", float(text))
        bits = int.from_bytes(number, "big")
        infinite = bits >> 52 & 0x7FF == 0x7FF
        if not infinite and bits % 2**29 == 0 and bits % 2**36 != 0:
            found.append(f"ttir: {text} was rounded to float32")
    return found


def narrow_operations(stages: dict[str, str], functions: tuple[str, ...] = ()) -> list[str]:
    """Lines that hold anything narrower than float64, but for what `functions` (of `ALLOWED`) are built from."""
    found = []
    for stage, narrow in _NARROW.items():
        allowed = [pattern for function, where, pattern, _ in ALLOWED if function in functions and where == stage]
        for line in stages[stage].splitlines():
            code = re.sub(_NO_CODE[stage], "", line).strip()
            if re.search(narrow, code) and not any(re.search(pattern, code) for pattern in allowed):
                found.append(f"{stage}: {code}")
    return found


_BY_FLOAT32 = (
    *("less_than", "less_equal", "greater_than", "greater_equal", "equal", "not_equal", "minimum", "maximum", "clamp"),
    "ternary_op_type_checking_impl",  # of `tl.fma`
)


def as_older_tritons(monkeypatch) -> None:
    """Python numbers reach comparisons, `tl.fma` and the like as float32, as they do before Triton 3.9: newer ones hide
    what goes wrong there."""

    def by_float32(method, self, *arguments):
        return method(self, *(self.to_tensor(a) if isinstance(a, float) else a for a in arguments))

    for name in _BY_FLOAT32:
        if method := getattr(semantic.TritonSemantic, name, None):
            late = partial(by_float32, method)
            monkeypatch.setattr(semantic.TritonSemantic, name, lambda self, *a, late=late: late(self, *a))
