"""The hosting side of the API for an account that hosts nothing: right shapes, right refusals."""

from __future__ import annotations

from clorefleet.sandbox.reply import Code, Reply, Wire, failure, ok, refusal

_NEW_FORM = {"name", "availability", "mrl", "bitcoin_on_demand", "bitcoin_spot"}
_OLD_FORM = {"name", "availability", "mrl", "on_demand", "spot"}
_MRL_HOURS = range(6, 3001)
_SERVERS_LIMIT = 100


def my_servers() -> Reply:
    return ok(servers=[], limit=_SERVERS_LIMIT)


def server_config(body: Wire) -> Reply:
    if not isinstance(body.get("server_name"), str):
        return failure(Code.INVALID_INPUT)
    return refusal("server_dont_exist")


def set_server_settings(body: Wire) -> Reply:
    if not (body.keys() >= _NEW_FORM or body.keys() >= _OLD_FORM):
        return refusal("not_all_parameters_present")
    mrl = body["mrl"]
    if isinstance(mrl, bool) or not isinstance(mrl, int) or mrl not in _MRL_HOURS:
        return refusal("invalid_mrl")
    if not isinstance(body["name"], str) or not isinstance(body["availability"], bool):
        return refusal("invalid_input")
    return refusal("server_dont_exist")
