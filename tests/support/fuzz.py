"""Random cases for every op, drawn from the case table: what each must hold is `check`.

    python tests/support/fuzz.py [--minutes M] [--backend B] [--op NAME] [--seed N]      (make fuzz MINUTES=30)

A case that fails is printed as a program that repeats it.
"""

import argparse
import dataclasses
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from cases import CASES
from scenes import awkward_layouts

BY_NAME = {case.name: case for case in CASES}
BAD = (float("nan"), float("inf"), float("-inf"))

# Where numbers are not finite. EXACT: exactly where PyTorch's own operations have none. The others may lose more of the
# image, or the whole gradient of its camera, and fewer where a weight of 0 or a clamp keeps a number out. COUPLED: what
# one image gives depends on the others of its batch; all other ops leave the bits of the others alone.
EXACT = {
    "berhu_loss", "depth_metrics", "edge_aware_smoothness", "flow_smoothness_loss", "ordinal_decode", "silog_loss",
}  # fmt: skip
COUPLED = {"berhu_loss", "silog_loss", "ordinal_loss", "view_synthesis_loss"}
WEIGHTED = {"flow_warp", "inverse_warp"}  # a neighbour of weight 0 may be NaN
PRODUCTS = {"nnconv5"}  # gradients by PyTorch's matmul, whose last bits depend on the number of threads
KINKED = {
    "flow_warp",
    "flow_photometric_loss",
}  # in half precision a flow hits whole pixels: two slopes


@dataclass(frozen=True)
class Draw:
    """What decides a case. layouts and spoiled name inputs; a place is a fraction of the flattened input."""

    op: str
    seed: int
    batch: int
    height: int
    width: int
    dtype: str = "float32"
    layouts: tuple[tuple[str, str], ...] = ()
    spoiled: tuple[tuple[str, float, float], ...] = ()
    wanted: tuple[str, ...] = ()
    threads: tuple[int, int] = (1, 2)

    def program(self, backend: str, why: str) -> str:
        fields = (
            ", ".join(
                f"{entry.name}={getattr(self, entry.name)!r}"
                for entry in dataclasses.fields(self)
                if getattr(self, entry.name) != entry.default
            )
            .replace("nan", "NAN")
            .replace("inf)", "INF)")
        )
        return "\n".join([
            "# " + why.replace("\n", "\n# "),
            "import sys",
            "sys.path.insert(0, 'tests/support')",
            "from fuzz import Draw, check, inputs",
            "NAN, INF = float('nan'), float('inf')",
            f"draw = Draw({fields})",
            "for name, value in inputs(draw).items():",
            "    print(name, value.dtype, tuple(value.shape), value.stride())",
            f"check(draw, {backend!r})",
        ])  # fmt: skip


def draw(seed: int, names: tuple[str, ...] = tuple(BY_NAME), largest: int = 300, pixels: int = 90_000) -> Draw:
    """The case of a number: half of them plain, so that a wrong value is not mistaken for one of NaN's."""
    random = np.random.default_rng(seed)
    case = BY_NAME[names[seed % len(names)]]
    height, width = (int(np.exp(random.uniform(0, np.log(largest + 1)))) for _ in range(2))
    batch = min(int(random.choice([0, 1, 1, 2, 2, 3, 4, 5])), max(1, pixels // (height * width)))
    template = case.inputs(batch=1, height=4, width=5)
    layouts = [(name, str(random.choice(LAYOUTS))) for name in template if random.random() < 0.5]
    spoiled = []
    if batch and random.random() < 0.5:
        for _ in range(random.integers(1, 4)):
            place = round(float(random.random()), 6)
            spoiled.append((str(random.choice(list(template))), place, float(random.choice(BAD))))
    dtype = str(random.choice(["float32", "float32", "float32", "float64", "float16", "bfloat16"]))
    threads = int(random.integers(2, 6))
    return Draw(
        case.name,
        int(random.integers(1000)),
        batch,
        height,
        width,
        dtype if case.name not in KINKED or dtype == "float64" else "float32",
        tuple(layouts),
        tuple(spoiled),
        tuple(name for name in case.differentiable if random.random() < 0.7),
        (1, threads) if case.name not in PRODUCTS else (threads, threads),
    )


LAYOUTS = ("strided", "transposed", "channels_last", "expanded", "offset")


def inputs(drawn: Draw, laid_out: bool = True) -> dict[str, torch.Tensor]:
    """The inputs of a case; without their layouts they are the same numbers, contiguous."""
    case = BY_NAME[drawn.op]
    # Half precision rounds what was made in float32.
    made = torch.float64 if drawn.dtype == "float64" else torch.float32
    values = case.inputs(batch=drawn.batch, height=drawn.height, width=drawn.width, dtype=made, seed=drawn.seed)
    values = {name: value.to(getattr(torch, drawn.dtype)) for name, value in values.items()}
    chosen = dict(drawn.layouts)
    for name, value in values.items():
        if chosen.get(name) == "expanded" and name not in case.shared and drawn.batch:
            values[name] = value[:1].clone()
    for name, place, bad in drawn.spoiled:
        flat = values[name].view(-1)
        flat[int(place * len(flat))] = bad
    for name, value in values.items():
        if chosen.get(name) == "expanded" and name not in case.shared and drawn.batch:
            value = value.expand(drawn.batch, *value.shape[1:])
            values[name] = value if laid_out else value.contiguous()
        elif laid_out and chosen.get(name) == "offset":
            room = value.new_full((value.numel() + 3,), torch.nan)
            values[name] = room[3:].view(value.shape).copy_(value)
        elif laid_out:
            values[name] = awkward_layouts(value).get(chosen.get(name, ""), value)
    return values


def run(drawn: Draw, backend: str, given: dict[str, torch.Tensor]) -> list[torch.Tensor] | str:
    """Outputs, then the wanted gradients; or type and words of the error."""
    case = BY_NAME[drawn.op]
    leaves = {name: value.detach().requires_grad_(name in drawn.wanted) for name, value in given.items()}
    try:
        outputs = case.call(backend, **leaves)
        if not drawn.wanted:
            return outputs
        generator = torch.Generator().manual_seed(drawn.seed)
        weights = [torch.rand(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
        total = sum((w * o).sum() for w, o in zip(weights, outputs) if o.requires_grad)
        return [*(o.detach() for o in outputs), *torch.autograd.grad(total, [leaves[name] for name in drawn.wanted])]
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def same_bits(some: list[torch.Tensor] | str, others: list[torch.Tensor] | str) -> bool:
    if isinstance(some, str) or isinstance(others, str):
        return some == others
    return all(
        a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0), b.nan_to_num(0))
        for a, b in zip(some, others, strict=True)
    )


def check(drawn: Draw, backend: str = "cpu") -> str:
    """AssertionError where `backend` breaks the contract of docs/design.md; what was compared: "values" or "error"."""
    given, plain = inputs(drawn), inputs(drawn, laid_out=False)
    owners = [value if value._base is None else value._base for value in given.values()]
    before = [owner.clone() for owner in owners]
    threads = torch.get_num_threads()
    try:
        results = []
        for count, values in zip((*drawn.threads, drawn.threads[0]), (given, plain, given)):
            torch.set_num_threads(count)
            results.append(run(drawn, backend, values))
    finally:
        torch.set_num_threads(threads)
    got, contiguous, again = results
    assert same_bits(got, again), "other bits in a second run"
    assert same_bits(got, contiguous), f"other bits on {drawn.threads[1]} threads or in contiguous memory"
    assert same_bits(before, owners), "an input has changed"
    eager = run(drawn, "reference", plain)
    if isinstance(got, str) or isinstance(eager, str):
        assert got == eager, f"{backend}: {got}; reference: {eager}" if isinstance(got, type(eager)) else (got, eager)
        return "error"
    exact = run(drawn, "reference", {name: value.double() for name, value in plain.items()})
    assert not isinstance(exact, str), exact
    case = BY_NAME[drawn.op]
    names = [*(f"output {n}" for n in range(len(got) - len(drawn.wanted))), *drawn.wanted]
    images = _spoiled_images(drawn, plain)
    for name, a, e, x in zip(names, got, eager, exact, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype, f"{name}: {a.dtype} {a.shape}, eager {e.dtype} {e.shape}"
        _check_spread(case.name, name, a, e, images)
        if case.name in EXACT or not images.any():
            _check_values(drawn, name, a, e, x)
    if images.any() and not images.all() and case.name not in COUPLED:
        clean = run(drawn, backend, inputs(dataclasses.replace(drawn, spoiled=()), laid_out=False))
        for name, a, c in zip(names, got, clean, strict=True):
            if a.dim() > 1 and len(a) == drawn.batch and name not in case.shared:
                assert same_bits([a[~images]], [c[~images]]), f"{name}: NaN in one image changes another"
    return "values"


def _spoiled_images(drawn: Draw, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B,) bool: the images with a number that is not finite in any input, all if it is in one that they share."""
    images = torch.zeros(drawn.batch, dtype=torch.bool)
    for name, value in values.items():
        lost = ~value.isfinite()
        images |= lost.any() if name in BY_NAME[drawn.op].shared else _by_image(lost)
    return images


def _by_image(mask: torch.Tensor) -> torch.Tensor:
    return mask.flatten(1).any(1) if mask.dim() > 1 else mask


def _check_spread(op: str, name: str, got: torch.Tensor, eager: torch.Tensor, images: torch.Tensor) -> None:
    lost, bound = ~got.isfinite(), ~eager.isfinite()
    if op in EXACT or not images.any():
        assert torch.equal(lost, bound), f"{name}: {int(lost.sum())} numbers not finite, eager has {int(bound.sum())}"
    elif name.startswith("output") and op not in WEIGHTED:
        if got.dim() and len(got) == len(images):
            lost, bound = _by_image(lost), _by_image(bound)
        assert not (bound & ~lost).any(), f"{name}: finite numbers where eager has none"


def _check_values(drawn: Draw, name: str, got: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor) -> None:
    fine = got.isfinite() & eager.isfinite() & exact.isfinite()
    if not fine.any():
        return
    a, e, x = (t[fine].double() for t in (got, eager, exact))
    size = x.norm().clamp_min(1e-300)
    error, eagers = float((a - x).norm() / size), float((e - x).norm() / size)
    # A number is close by chance now and then, eager's as well as ours.
    slack = {"float64": 1e-9, "float32": 3e-6}.get(drawn.dtype, 3e-6 if got.dtype == torch.float32 else 4e-3)
    assert error <= 2 * eagers + slack, f"{name}: error {error:.2e}, eager's {eagers:.2e}"


def side_by_side(draws: list[Draw], backend: str = "cpu") -> None:
    """The bits of cases that run in threads at the same time are those that each has alone."""
    given = [inputs(drawn) for drawn in draws]
    alone = [run(drawn, backend, values) for drawn, values in zip(draws, given)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, draws, [backend] * len(draws), given))
    for drawn, a, b in zip(draws, alone, together):
        assert same_bits(a, b), drawn.program(backend, "other bits beside other threads")


def many(
    backend: str,
    *,
    seconds: float,
    names: tuple[str, ...] = tuple(BY_NAME),
    seed: int = 0,
    count: int = 10**9,
    **sizes: int,
) -> tuple[Counter[str], list[str]]:
    """Cases until the time is over or there are `count`: how many of each op, and a program for each that fails."""
    done: Counter[str] = Counter()
    failed = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and sum(done.values()) < count:
        drawn = draw(seed, names, **sizes)
        try:
            check(drawn, backend)
        except Exception as error:
            why = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
            failed.append(drawn.program(backend, f"{backend}, case {seed}: {why}"))
        done[drawn.op] += 1
        seed += 1
    return done, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--op", choices=tuple(BY_NAME), nargs="+", default=tuple(BY_NAME))
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10**6 * 1000)
    arguments = parser.parse_args()
    done, failed = many(
        arguments.backend, seconds=60 * arguments.minutes, names=tuple(arguments.op), seed=arguments.seed
    )
    side_by_side([draw(arguments.seed + n) for n in range(2 * len(CASES))])
    for program in failed:
        print(program, end="\n\n")
    print(f"{sum(done.values())} cases from seed {arguments.seed} on, {len(failed)} failed: {dict(done)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
