def test_disparity_to_depth(compare):
    compare("disparity_to_depth")
