"""A port to listen at, for what answers over HTTP."""

import socket

from align3gr.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, to be had before models are loaded; port 0 takes any that is free.

    Args:
        host: a name or an address.
        port: a number; 0 for any that is free.

    Raises:
        InputError: there is no such address, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: expected 0 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise InputError(f"--host {host}: {error.strerror}; give a name or an address of this machine") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(f"--port {port}: {error.strerror} at {host}; choose another port or host") from error
    return listener
