"""Random cases of every op with Triton kernels, interpreted."""

import os

from fuzz import many
from triton_blocks import CASES

NAMES = tuple(case.name for case in CASES)
COUNT = int(os.environ.get("MDEPTH_FUZZ_CASES", len(NAMES)))


def test_random_cases():
    done, failed = many("triton", seconds=3600, names=NAMES, count=COUNT, pixels=300, largest=60)
    assert not failed, "\n\n".join(failed)
    assert set(done) == set(NAMES)
