"""What a user sets on this machine: `config.toml` in the configuration folder, and the environment.

The API key comes from `CLORE_API_KEY` or the file; a key in a file that others can read is refused, and so is
a password of the store.

    # config.toml
    api_key = "..."                            # or the environment variable CLORE_API_KEY
    api_url = "https://api.clore.ai/v1"        # or CLORE_API_URL
    hub_url = "https://huggingface.co"         # or HF_ENDPOINT
    store_url = "postgresql+psycopg://..."     # default: SQLite in the state folder
    log_format = "text"                        # of the daemon: text, or json for one object per line
    hub_token_for = ["org/name"]               # gated repositories that the hub's token may be used for
    hub_token = "hf_..."                       # or HF_TOKEN; never used without the line above
    relay_mbit_s = 50                          # of this machine's line for weights between servers; 0: never

A hub token is shown to the rented machine that downloads with it: make one that reads these repositories
alone and runs out soon. It is used for no other repository, and not at all in the sandbox.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clorefleet.config.places import config_root
from clorefleet.domain.errors import ConfigError
from clorefleet.domain.secret import HubAccess, Secret

DEFAULT_API_URL = "https://api.clore.ai/v1"
DEFAULT_HUB_URL = "https://huggingface.co"
_LISTS = ("hub_token_for",)
_NUMBERS = ("relay_mbit_s",)
_KNOWN = ("api_key", "api_url", "hub_url", "store_url", "log_format", "hub_token", *_LISTS, *_NUMBERS)
_LOG_FORMATS = ("text", "json")
PASSWORD_KEYS = ("password", "sslpassword")
"""Where the address of a PostgreSQL store may hold a password beside the usual place."""
_PASSWORD = re.compile(r"[^/]*//[^:/]*:[^@]+@")
DEFAULT_RELAY_MBIT_S = 50
"""Less than most home lines, and more than a hub that limits its rate [assumed]."""


@dataclass(frozen=True, slots=True)
class Settings:
    api_key: Secret | None
    api_url: str
    hub_url: str
    store_url: str
    hub_access: HubAccess
    relay_mbit_s: int
    file: Path
    log_format: str = "text"


def load_settings() -> Settings:
    """Read the file and the environment, the environment winning.

    Raises:
        ConfigError: the file is not TOML, names an unknown key, or holds a secret and is open to others.
    """
    file = config_root() / "config.toml"
    values = _read(file) if file.exists() else {}
    key = os.environ.get("CLORE_API_KEY") or values.get("api_key", "")
    token = os.environ.get("HF_TOKEN") or values.get("hub_token", "")
    return Settings(
        api_key=Secret(key.strip()) if key.strip() else None,
        api_url=(os.environ.get("CLORE_API_URL") or values.get("api_url", DEFAULT_API_URL)).rstrip("/"),
        hub_url=(os.environ.get("HF_ENDPOINT") or values.get("hub_url", DEFAULT_HUB_URL)).rstrip("/"),
        store_url=values.get("store_url", ""),
        hub_access=HubAccess(Secret(token.strip()), frozenset(values.get("hub_token_for", ()))),
        relay_mbit_s=values.get("relay_mbit_s", DEFAULT_RELAY_MBIT_S),
        file=file,
        log_format=_log_format(file, values.get("log_format", "text")),
    )


def _log_format(file: Path, value: str) -> str:
    if value not in _LOG_FORMATS:
        raise ConfigError(
            f"{file}: log_format cannot be “{value[:20]}”.", remedy=f"Use {' or '.join(_LOG_FORMATS)}."
        )
    return value


def _read(file: Path) -> dict[str, Any]:
    """Settings by name, each of its type."""
    import tomllib

    try:
        text = file.read_text("utf-8")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}", remedy="Correct the file and try again.") from error
    for name, value in values.items():
        if name not in _KNOWN:
            from difflib import get_close_matches

            near = get_close_matches(name, _KNOWN, n=1)
            hint = f"Did you mean “{near[0]}”? " if near else ""
            raise ConfigError(
                f"{file}: there is no setting “{name}”.", remedy=f"{hint}Settings: {', '.join(_KNOWN)}."
            )
        if name in _LISTS:
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise ConfigError(f"{file}: {name} must be a list.", remedy=f'Write {name} = ["org/name"].')
        elif name in _NUMBERS:
            if type(value) is not int or value < 0:
                raise ConfigError(f"{file}: {name} must be a whole number.", remedy=f"Write {name} = 50.")
        elif not isinstance(value, str):
            raise ConfigError(f"{file}: {name} must be text.", remedy=f'Write {name} = "...".')
    if values.get("api_key") and stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise ConfigError(
            f"{file} holds your API key and others on this machine can read it.",
            remedy=f"Type: chmod 600 {file}",
            money="Nothing was asked of the market. If others had access, make a new key on clore.ai.",
        )
    if values.get("hub_token") and stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise ConfigError(
            f"{file} holds your hub token and others on this machine can read it.",
            remedy=f"Type: chmod 600 {file}",
            money="Nothing was rented. If others had access, revoke the token on the hub.",
        )
    if _has_password(values.get("store_url", "")) and stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise ConfigError(
            f"{file} holds the store's password and others on this machine can read it.",
            remedy=f"Type: chmod 600 {file} (or put the password into ~/.pgpass).",
            money="Nothing was asked of the market. If others had access, change the password on the server.",
        )
    return values


def _has_password(store_url: str) -> bool:
    from urllib.parse import parse_qsl

    query = parse_qsl(store_url.partition("?")[2])
    return bool(_PASSWORD.match(store_url)) or any(key in PASSWORD_KEYS for key, _ in query)
