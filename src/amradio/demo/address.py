"""Where the page is served: on this machine alone."""

import socket

from ..errors import UserError

HOST = "127.0.0.1"


def bind(port: int) -> socket.socket:
    """A listening socket on this machine alone; port 0 takes any that is free. Raises UserError where it is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # who comes before the server is ready waits
    except (OSError, OverflowError) as error:
        listening.close()
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "no such port"
        raise UserError(f"--port: {port} cannot be used ({reason}); give another one, or 0 for any that is free") from None
    return listening
