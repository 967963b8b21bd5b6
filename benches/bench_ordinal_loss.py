def test_ordinal_loss(compare):
    compare("ordinal_loss")
