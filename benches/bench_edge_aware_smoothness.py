def test_edge_aware_smoothness(compare):
    compare("edge_aware_smoothness")
