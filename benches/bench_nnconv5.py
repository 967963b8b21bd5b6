import pytest


@pytest.mark.parametrize("channels", [1024, 512, 256, 128, 64])
def test_nnconv5(compare, channels):
    compare(f"nnconv5_{channels}")
