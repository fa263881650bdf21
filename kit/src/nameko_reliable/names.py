"""Look-ups of host names in threads, so that a slow name server blocks no other work of the process.

eventlet has a resolver of its own, which loads dnspython and cryptography into each process. With the variable
EVENTLET_NO_GREENDNS=yes, eventlet loads neither and uses the system's resolver, which blocks. In that case, importing
this module moves look-ups to eventlet's threads. Without the variable it changes nothing.
"""

import functools
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from eventlet import patcher, tpool
from eventlet.green import socket as green_socket


def in_threads(look_up: Callable[..., Any]) -> Callable[..., Any]:
    """`look_up`, a function like socket.getaddrinfo, that waits in a thread unless the host is an address already."""

    @functools.wraps(look_up)
    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host is None or _is_address(host):
            return look_up(host, *args, **kwargs)
        return tpool.execute(look_up, host, *args, **kwargs)

    return getaddrinfo


def _is_address(host: Any) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return isinstance(host, str)


# True if eventlet has replaced sockets, but look-ups are still the standard library's.
if patcher.is_monkey_patched("socket") and green_socket.getaddrinfo.__module__ == "socket":
    socket.getaddrinfo = green_socket.getaddrinfo = in_threads(green_socket.getaddrinfo)
