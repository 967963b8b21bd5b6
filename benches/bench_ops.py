"""Every case of `mdepth_fast.bench.cases`: ops, the whole loss, networks for inference."""

import pytest

from mdepth_fast.bench.cases import CASES


@pytest.mark.parametrize("name", CASES)
def test_op(compare, name):
    compare(name)
