def test_inverse_warp(compare):
    compare("inverse_warp")
