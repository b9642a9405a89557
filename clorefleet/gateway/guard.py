"""Who may ask: pure checks of a request's headers, before anything of its body is read.

A web page in the user's browser can send requests to loopback. `Origin` betrays the ordinary ones; a page
whose own name was made to resolve to 127.0.0.1 (DNS rebinding) shows that name in `Host`. The token
stops both too; these checks hold also when a token leaked into a page.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

from clorefleet.gateway.problem import Problem
from clorefleet.gateway.token import TokenCheck

OPEN_PATHS = frozenset({"/health"})
"""Need no token, and tell nothing."""
_NAMED_PORT = re.compile(r"(?P<name>\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(?::(?P<port>[0-9]{1,5}))?")
_HTTP_PORT = 80


def is_loopback(name: str) -> bool:
    """`localhost` or a loopback address in its plain spelling; no name is ever resolved for this."""
    if name.lower() == "localhost":
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Guard:
    """The checks of one gateway that listens on `port`.

    With `allow_remote` any literal address is a good `Host`: rebinding needs a name.
    """

    token: TokenCheck
    port: int
    allow_remote: bool = False

    def refusal(self, path: str, headers: Headers) -> Problem | None:
        """Why the request is refused, or None."""
        if not self._is_own_host(headers.getlist("host")):
            return Problem(421, "wrong_host", "This gateway answers only on its own address.")
        if not all(_is_local_origin(origin) for origin in headers.getlist("origin")):
            return Problem(403, "foreign_origin", "Requests from web pages elsewhere are refused.")
        if path not in OPEN_PATHS and not self._shows_token(headers.getlist("authorization")):
            return Problem(
                401, "invalid_api_key", "Send the gateway's token: Authorization: Bearer <gateway.token>."
            )
        return None

    def _is_own_host(self, hosts: Sequence[str]) -> bool:
        found = _NAMED_PORT.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None or int(found["port"] or _HTTP_PORT) != self.port:
            return False
        return is_loopback(found["name"]) or (self.allow_remote and _address(found["name"]) is not None)

    def _shows_token(self, shown: Sequence[str]) -> bool:
        return len(shown) == 1 and self.token.accepts(shown[0])


def _is_local_origin(origin: str) -> bool:
    scheme, separator, rest = origin.partition("://")
    found = _NAMED_PORT.fullmatch(rest)
    return (
        scheme in {"http", "https"} and bool(separator) and found is not None and is_loopback(found["name"])
    )
