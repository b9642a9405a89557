"""Reading the body of `create_order`: what is invalid (code 2) and what the service chokes on (code 1).

Bodies are parsed with decimals kept as text, so a price is compared as it was written.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

from clorefleet.sandbox.coins import COINS
from clorefleet.sandbox.orders import OrderKind, OrderRequest

IMAGE_MAX_CHARS = 512
COMMAND_MAX_BYTES = 65_536
"""[assumed]: no length of `command` is documented."""
ENV_JSON_MAX_CHARS = 12_288
ENV_KEY_MAX_CHARS = 128
ENV_VALUE_MAX_CHARS = 1536
"""Gigaspot's documented limits, taken for all orders."""
PORTS_MAX = 32
_NUMBER_MAX = Decimal(10**9)
_DECIMALS_MAX = 20
_IMAGE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._/:@-]*")
_SSH_KEY = re.compile(r"(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\r\n]*)?")


class InvalidBody(Exception):
    """Code 2. The text is for the sandbox's own log: the real service does not say what is wrong."""


class IndigestibleBody(Exception):
    """Code 1: input on which the real service fails with a database error."""


def parse_object(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body or b"{}", parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise InvalidBody("not JSON") from error
    if not isinstance(parsed, dict):
        raise InvalidBody("not a JSON object")
    return parsed


def parse_create(body: dict[str, Any]) -> OrderRequest:
    """The valid request, or raise `InvalidBody` or `IndigestibleBody`. Unknown fields are ignored."""
    kind = body.get("type")
    if kind not in tuple(OrderKind):
        raise InvalidBody("type is on-demand or spot")
    if body.get("currency") not in COINS:
        raise InvalidBody("unknown currency")
    image = _text(body, "image", IMAGE_MAX_CHARS)
    if not image or not _IMAGE.fullmatch(image):
        raise InvalidBody("image is not a repository name")
    bid = _number(body, "spotprice")
    if kind == OrderKind.SPOT and (bid is None or bid <= 0):
        raise InvalidBody("a spot order needs a spotprice")
    ssh_key = _text(body, "ssh_key", 16_384)
    if ssh_key and not _SSH_KEY.fullmatch(ssh_key.strip()):
        raise InvalidBody("ssh_key is not one public key")
    request = OrderRequest(
        server_id=_integer(body, "renting_server"),
        kind=OrderKind(kind),
        currency=body["currency"],
        image=image,
        bid_per_day=bid if kind == OrderKind.SPOT else None,
        required_price=_number(body, "required_price"),
        ports=_ports(body.get("ports")),
        env=_env(body.get("env")),
        ssh_password=_text(body, "ssh_password", 256),
        ssh_key=ssh_key,
        jupyter_token=_text(body, "jupyter_token", 256),
        command=_text(body, "command", COMMAND_MAX_BYTES),
        has_ssh_entrypoint=bool(body.get("autossh_entrypoint")),
    )
    for value in request.env.values():
        if "&" in value or not value.isascii():
            raise IndigestibleBody("an env value that the service cannot store")
    return request


def _integer(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidBody(f"{name} is not an integer")
    return value


def _number(body: dict[str, Any], name: str) -> Decimal | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise InvalidBody(f"{name} is not a number")
    number = Decimal(value)
    if not 0 <= number <= _NUMBER_MAX or -int(number.as_tuple().exponent) > _DECIMALS_MAX:
        raise InvalidBody(f"{name} is not a price")
    return number


def _text(body: dict[str, Any], name: str, max_chars: int) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > max_chars or "\x00" in value:
        raise InvalidBody(f"{name} is not a text of at most {max_chars} characters")
    return value


def _ports(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > PORTS_MAX:
        raise InvalidBody("ports is an object of a few ports")
    for port, protocol in value.items():
        if not port.isdigit() or not 1 <= int(port) <= 65_535 or protocol not in ("tcp", "http"):
            raise InvalidBody("ports maps a port number to tcp or http")
    if sum(protocol == "http" for protocol in value.values()) > 1:
        raise InvalidBody("at most one http port")
    return dict(value)


def _env(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(json.dumps(value)) > ENV_JSON_MAX_CHARS:
        raise InvalidBody("env is an object of bounded size")
    for name, text in value.items():
        if not isinstance(text, str) or len(text) > ENV_VALUE_MAX_CHARS or len(name) > ENV_KEY_MAX_CHARS:
            raise InvalidBody("env maps names to texts")
    return dict(value)
