def test_min_reprojection(compare):
    compare("min_reprojection")
