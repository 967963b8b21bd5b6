def test_monodepth_loss(compare):
    compare("monodepth_loss")
