"""Random cases of every op, a few of those that `make fuzz` goes on with."""

import os

import pytest
from cases import CASES
from fuzz import BY_NAME, Draw, check, draw, many, side_by_side

COUNT = int(os.environ.get("MDEPTH_FUZZ_CASES", 4 * len(CASES)))


def test_random_cases():
    done, failed = many("cpu", seconds=3600, count=COUNT, pixels=3000)
    assert not failed, "\n\n".join(failed)
    assert set(done) == set(BY_NAME)


def test_cases_in_threads_beside_each_other():
    side_by_side([draw(n, pixels=2000) for n in range(2 * len(CASES))])


def test_a_failing_case_is_a_program():
    """Which fails in the same way; and what is checked can fail."""
    drawn = Draw("photometric_loss", 1, 2, 5, 6, spoiled=(("target", 0.5, float("nan")),), wanted=("prediction",))
    assert check(drawn) == "values"
    case = BY_NAME["photometric_loss"]
    honest = case.call

    def broken(backend, **tensors):
        outputs = honest(backend, **tensors)
        return [1.001 * outputs[0].nan_to_num()] if backend == "cpu" else outputs

    object.__setattr__(case, "call", broken)
    try:
        with pytest.raises(AssertionError, match="finite numbers where eager has none"):
            check(drawn)
        program = drawn.program("cpu", "why")
        with pytest.raises(AssertionError, match="finite numbers where eager has none"):
            exec(program, {})
        with pytest.raises(AssertionError, match=r"output 0: error 1\.\d+e-03"):
            check(Draw("photometric_loss", 1, 2, 5, 6))
    finally:
        object.__setattr__(case, "call", honest)
    assert len(program.splitlines()) <= 12
