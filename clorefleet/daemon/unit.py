"""The systemd user unit of a profile's daemon, as text, and where it belongs. Nothing here runs anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_TEMPLATE = """\
# Written by `clorefleet daemon install`. It runs as you, with no rights that you do not have.
# The API key is read from config.toml or from the environment file below (mode 0600), never from here.
[Unit]
Description=clorefleet: keeps and guards rented GPU servers (profile {profile})
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
{environment}EnvironmentFile=-{environment_file}
Restart=always
RestartSec=5
# SIGTERM lets the effect in hand finish; being killed afterwards loses nothing.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec=60
UMask=0077
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


def unit_name(profile_name: str) -> str:
    return "clorefleet.service" if profile_name == "default" else f"clorefleet-{profile_name}.service"


def unit_path(profile_name: str) -> Path:
    """`$XDG_CONFIG_HOME/systemd/user`, where systemd looks for a user's own units."""
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "systemd" / "user" / unit_name(profile_name)


def unit_text(
    profile_name: str, python: str, *, environment: Sequence[tuple[str, str]], environment_file: Path
) -> str:
    """
    Args:
        python: the interpreter that clorefleet is installed in.
        environment: variables that name places, never secrets.
        environment_file: may hold `CLORE_API_KEY=...`; need not exist.
    """
    words = [python, "-m", "clorefleet.daemon", "--profile", profile_name, "--log-to", "stderr"]
    return _TEMPLATE.format(
        profile=_escaped(profile_name),
        command=" ".join(_quoted(word).replace("$", "$$") for word in words),
        environment="".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in environment),
        environment_file=_escaped(str(environment_file)),
    )


def _escaped(text: str) -> str:
    """`%` begins a specifier in a unit."""
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word of a command line or an assignment, as systemd.syntax(7) reads it.

    Raises:
        ValueError: a line break would begin another setting.
    """
    if any(ord(char) < 32 for char in word):
        raise ValueError("control characters do not belong into a unit")
    escaped = _escaped(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if set(word) & set(" \"'\\;$") else escaped
