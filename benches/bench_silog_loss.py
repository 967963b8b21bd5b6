def test_silog_loss(compare):
    compare("silog_loss")
