from collections.abc import Iterator

import pytest
from pytest_socket import disable_socket, enable_socket


@pytest.fixture(autouse=True)
def no_sockets(request: pytest.FixtureRequest) -> Iterator[None]:
    """Unit tests reach nothing: event loops need their Unix socket pair, and that is all there is."""
    if request.node.get_closest_marker("enable_socket") is not None:
        yield
        return
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
