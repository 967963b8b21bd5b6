"""Random cases of every op with CUDA kernels, which run on the host thread by thread."""

import os

from cases import KERNEL_CASES
from fuzz import many

NAMES = tuple(case.name for case in KERNEL_CASES)
COUNT = int(os.environ.get("MDEPTH_FUZZ_CASES", len(NAMES)))


def test_random_cases(host):
    done, failed = many("host", seconds=3600, names=NAMES, count=COUNT, pixels=600, largest=100)
    assert not failed, "\n\n".join(failed)
    assert set(done) == set(NAMES)
