"""Ports on this machine for programs that want a number."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved() -> Iterator[int]:
    """A port where nobody answers until a program that is told of it does: others who ask for a free one are not given it.

    Such programs bind it with SO_REUSEADDR or SO_REUSEPORT, which this socket does not hinder: it does not listen.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
