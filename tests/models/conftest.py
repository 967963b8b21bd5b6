import pytest

from mdepth_fast.bench import plain_monodepth2


@pytest.fixture(scope="session")
def plain():
    """The plain formulation of the nets, with the published key names."""
    return plain_monodepth2
