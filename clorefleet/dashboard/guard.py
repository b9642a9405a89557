"""Who may ask: pure checks of a request's headers, before anything else of it is looked at.

A web page in the user's browser can send requests to loopback. Three things tell such a request from ours:

- `Host` is the address that the user typed. A page whose own name was made to resolve to 127.0.0.1 (DNS
  rebinding) shows that name.
- `Origin` is the page that asks. Everything that changes something must show ours.
- `Sec-Fetch-Site` says how the page that asks relates to us. Ports do not count for cookies' `SameSite`, so
  that a page of another server on this machine would be sent our cookie; here it shows as `same-site`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HOST = "127.0.0.1"
SAFE_METHODS = frozenset({"GET", "HEAD"})
METHODS = SAFE_METHODS | {"POST"}
_OWN_SITES = frozenset({"same-origin", "none"})
"""`none` is an address that the user typed, a bookmark, or a link in another program."""

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: with that, browsers also send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""On every answer. `no-store` also keeps a page from the browser's disk after the session has ended."""


@dataclass(frozen=True, slots=True)
class Refused:
    status: int
    text: str


def refusal(method: str, headers: Mapping[str, Sequence[str]], port: int) -> Refused | None:
    """Why a request is refused before anybody asks for its cookie, or None.

    Args:
        headers: all values of each, names in lower case.
    """
    own = f"{HOST}:{port}"
    if method not in METHODS:
        return Refused(405, "Only GET and POST are answered here.")
    if list(headers.get("host", ())) != [own]:
        return Refused(421, f"This dashboard answers only at http://{own}.")
    origins = list(headers.get("origin", ()))
    if origins not in ([], [f"http://{own}"]):
        return Refused(403, "Requests from pages elsewhere are refused.")
    if any(site not in _OWN_SITES for site in headers.get("sec-fetch-site", ())):
        # A link that was clicked in a page (a chat, a terminal inside the browser) shows like that, too.
        return Refused(403, "Links in other pages are refused: type or paste the address yourself.")
    if method not in SAFE_METHODS and not origins:
        return Refused(403, "A request that changes something must say which page it comes from.")
    return None
