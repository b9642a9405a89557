"""Where files are: data inside the package, and a profile's own folders. Standard library only."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import quote

PACKAGE_DIR = Path(__file__).resolve().parent.parent
SQLITE = "sqlite:///"
"""How the address of a store in a file begins."""


def _bundled(wheel_name: str, checkout_name: str) -> Path:
    """A top-level folder of the project: inside the wheel when installed, else beside the package."""
    inside = PACKAGE_DIR / wheel_name
    return inside if inside.is_dir() else PACKAGE_DIR.parent / checkout_name


def recipes_dir() -> Path:
    return _bundled("_recipes", "recipes")


def migrations_dir() -> Path:
    return _bundled("_migrations", "migrations")


def example_fleet_file() -> Path:
    inside = PACKAGE_DIR / "_examples" / "fleet.toml"
    return inside if inside.is_file() else PACKAGE_DIR.parent / "fleet.toml"


def state_root() -> Path:
    """`$CLOREFLEET_HOME/state`, else the platform's state folder for users."""
    home = os.environ.get("CLOREFLEET_HOME")
    if home:
        return Path(home).expanduser().resolve() / "state"
    from platformdirs import user_state_path

    return user_state_path("clorefleet", appauthor=False)


def config_root() -> Path:
    home = os.environ.get("CLOREFLEET_HOME")
    if home:
        return Path(home).expanduser().resolve() / "config"
    from platformdirs import user_config_path

    return user_config_path("clorefleet", appauthor=False)


def cache_root() -> Path:
    home = os.environ.get("CLOREFLEET_HOME")
    if home:
        return Path(home).expanduser().resolve() / "cache"
    from platformdirs import user_cache_path

    return user_cache_path("clorefleet", appauthor=False)


def sqlite_url(file: Path) -> str:
    """The address of a store in a file, whose path may have letters that mean something in an address."""
    return SQLITE + quote(os.fsencode(file))


def make_private_dir(path: Path) -> Path:
    """Create `path` readable by its owner alone (0700), parents too where missing."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A file system that cannot be written refuses also what changes nothing.
    if stat.S_IMODE(path.stat().st_mode) != 0o700:
        path.chmod(0o700)
    return path


def write_private_file(path: Path, data: bytes) -> None:
    """Write `path` atomically with mode 0600: the file is never readable by others, not for a moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
