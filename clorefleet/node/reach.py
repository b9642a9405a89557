"""The way to an address that the market names: which ones are followed, and the socket to it.

A name from the market is a stranger's word. One that leads to this machine or into a private network would
turn our client against our own network (G6), in whatever notation it comes.
"""

from __future__ import annotations

import ipaddress
import socket

from clorefleet.domain.errors import NodeError
from clorefleet.domain.text import clean_line

UNACKNOWLEDGED_MAX_S = 45
"""A peer that acknowledges nothing for this long is gone: the kernel's own default is a quarter of an hour,
during which a tunnel would swallow requests (F15)."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class ForbiddenAddress(NodeError):
    """The market's address is one that no rented server has: loopback, private, link-local (G6)."""


def open_socket(host: str, port: int, *, allow_loopback: bool, timeout_s: float) -> socket.socket:
    """Connect to a name that the market gave, never to our own network unless told (G6).

    Raises:
        ForbiddenAddress: the name points at this machine or a private network.
        OSError: it does not resolve or answer.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    trouble: OSError | None = None
    for family, kind, protocol, _, target in infos:
        if not _is_allowed(str(target[0]), allow_loopback=allow_loopback):
            raise ForbiddenAddress(
                f"The market's address {clean_line(host, max_chars=80)} points at a private network.",
                remedy="No rented server is there; it is given back and left out of later plans.",
            )
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(timeout_s)
        try:
            connection.connect(target)
        except OSError as error:
            connection.close()
            trouble = error
            continue
        # Measured: without it each command waits some 40 ms for a delayed acknowledgement.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MAX_S * 1000)
        return connection
    raise trouble or OSError(f"{host} has no address")


def _is_allowed(address: str, *, allow_loopback: bool) -> bool:
    found = ipaddress.ip_address(address.split("%")[0])
    if found.is_loopback:
        return allow_loopback
    inner = _address_inside(found)
    return found.is_global and not found.is_multicast and (inner is None or inner.is_global)


def _address_inside(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a mapped, 6to4 or NAT64 (RFC 6052) address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
