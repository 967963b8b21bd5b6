import plain_monodepth2
import pytest


@pytest.fixture(scope="session")
def plain():
    """The plain formulation of the nets, with the published key names."""
    return plain_monodepth2
