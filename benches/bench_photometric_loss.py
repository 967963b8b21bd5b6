def test_photometric_loss(compare):
    compare("photometric_loss")
