def test_berhu_loss(compare):
    compare("berhu_loss")
