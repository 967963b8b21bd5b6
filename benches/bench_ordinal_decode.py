def test_ordinal_decode(compare):
    compare("ordinal_decode")
