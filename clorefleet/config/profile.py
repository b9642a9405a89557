"""A profile: which market, whose key, which state. `--sandbox` is the profile that needs no account.

Each profile has its own state folder (0700) with its store, its daemon and its order keys, so that the
sandbox and the real market never meet.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from clorefleet.config.places import make_private_dir, sqlite_url, state_root
from clorefleet.config.settings import (
    DEFAULT_API_URL,
    DEFAULT_HUB_URL,
    DEFAULT_RELAY_MBIT_S,
    load_settings,
)
from clorefleet.domain.errors import BadInput, NoApiKey, SandboxError
from clorefleet.domain.secret import NO_HUB_ACCESS, HubAccess, Secret

if TYPE_CHECKING:
    from clorefleet.clock import Clock
    from clorefleet.sandbox.process import SandboxInfo

SANDBOX = "sandbox"
DEFAULT = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
NO_KEY_REMEDY = (
    "Make one on clore.ai and `export CLORE_API_KEY=...`, or put api_key in config.toml (mode 0600). "
    "To try clorefleet without an account, add --sandbox."
)


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    state_dir: Path

    @property
    def is_sandbox(self) -> bool:
        return self.name == SANDBOX

    @property
    def sandbox_dir(self) -> Path:
        return self.state_dir / "server"

    @property
    def flag(self) -> str:
        """What to add to a command so that it means this profile: "", ` --sandbox` or ` --profile x`."""
        return flag_of(self.name)


def flag_of(name: str) -> str:
    """`Profile.flag` of a name that may be no profile's."""
    if name == SANDBOX:
        return " --sandbox"
    return "" if name == DEFAULT else f" --profile {name}"


@dataclass(frozen=True, slots=True)
class Connection:
    """A profile's way to its market, hub and store, with the key."""

    profile: Profile
    market_url: str
    hub_url: str
    store_url: str
    api_key: Secret
    clock: Clock
    time_factor: float = 1.0
    """How much faster than real time the market bills; only a sandbox differs from 1."""
    hub_access: HubAccess = NO_HUB_ACCESS
    """None in the sandbox, whose hub is simulated."""
    relay_mbit_s: int = DEFAULT_RELAY_MBIT_S

    @property
    def allows_loopback_nodes(self) -> bool:
        """Only the sandbox rents on this machine; a real order that points here is an attack."""
        return self.profile.is_sandbox


def find_profile(name: str, *, needs_state: bool = True) -> Profile:
    """
    Args:
        needs_state: false for what ends orders with nothing but the key: its state folder may be missing.

    Raises:
        BadInput: for a name that could leave the state folder.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"“{name[:40]}” cannot be a profile's name.",
            remedy="Use lower-case letters, digits, - and _, at most 32.",
        )
    state_dir = state_root() / name
    try:
        make_private_dir(state_dir)
    except OSError:
        if needs_state:
            raise
    return Profile(name, state_dir)


def store_url(profile: Profile) -> str:
    """Where the profile's store is; a configured server serves all profiles but the sandbox."""
    configured = "" if profile.is_sandbox else load_settings().store_url
    return configured or _own_store_url(profile)


def _own_store_url(profile: Profile) -> str:
    return sqlite_url(profile.state_dir / "clorefleet.db")


def connect(profile: Profile, *, needs_key: bool = True) -> Connection:
    """Resolve a profile; for the sandbox this starts its server if none runs.

    Raises:
        NoApiKey: a real market and no key.
        SandboxError: the sandbox's server does not start.
    """
    if profile.is_sandbox:
        return _connect_sandbox(profile)
    from clorefleet.clock import SystemClock

    settings = load_settings()
    if settings.api_key is None and needs_key:
        raise NoApiKey(NO_KEY_REMEDY)
    return Connection(
        profile=profile,
        market_url=settings.api_url or DEFAULT_API_URL,
        hub_url=settings.hub_url,
        store_url=store_url(profile),
        api_key=settings.api_key or Secret(""),
        clock=SystemClock(),
        hub_access=settings.hub_access,
        relay_mbit_s=settings.relay_mbit_s,
    )


def connect_by_environment(profile: Profile) -> Connection | None:
    """The way to the market and this profile's own store where `config.toml` cannot be used: for ending what
    bills, which waits for no file to be mended. None without a key in the environment."""
    from clorefleet.clock import SystemClock

    key = os.environ.get("CLORE_API_KEY", "").strip()
    if profile.is_sandbox or not key:
        return None
    return Connection(
        profile=profile,
        market_url=(os.environ.get("CLORE_API_URL") or DEFAULT_API_URL).rstrip("/"),
        hub_url=DEFAULT_HUB_URL,
        store_url=_own_store_url(profile),
        api_key=Secret(key),
        clock=SystemClock(),
    )


def _connect_sandbox(profile: Profile) -> Connection:
    from clorefleet.sandbox import process

    check_sandbox_parts()
    info = process.ensure_running(profile.sandbox_dir)
    return Connection(
        profile=profile,
        market_url=info.market_url,
        hub_url=info.hub_url,
        store_url=store_url(profile),
        api_key=Secret(info.api_key),
        clock=_sandbox_clock(info),
        time_factor=info.time_factor,
    )


def check_sandbox_parts() -> None:
    """
    Raises:
        SandboxError: the packages that only the sandbox needs are not installed.
    """
    missing = [name for name in ("asyncssh", "xllamacpp", "gguf") if find_spec(name) is None]
    if missing:
        raise SandboxError(
            f"The sandbox needs packages that are not installed: {', '.join(missing)}.",
            remedy='Type: pip install "clorefleet[sandbox]"',
            money="Nothing was started.",
        )


def clock_of(profile: Profile) -> Clock:
    """The profile's time without starting anything. A stopped sandbox has no time of its own."""
    from clorefleet.clock import SystemClock

    if profile.is_sandbox:
        from clorefleet.sandbox import process

        info = process.find(profile.sandbox_dir)
        if info is not None:
            return _sandbox_clock(info)
    return SystemClock()


def _sandbox_clock(info: SandboxInfo) -> Clock:
    from clorefleet.clock import OffsetClock

    return OffsetClock(info.clock.base_unix_s, info.clock.real_unix_s, info.clock.factor)
