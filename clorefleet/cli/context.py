"""The options that every command takes, and the profile they choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from clorefleet.config.profile import Profile


@dataclass(slots=True)
class GlobalOptions:
    """Filled by the command line's parser before the command runs."""

    sandbox: bool = False
    profile_name: str = ""
    as_json: bool = False
    debug: bool = False
    no_color: bool = False
    has_run: bool = False
    """A command was named: the profile's state may be looked at."""
    command: str = ""
    """Its name."""

    @property
    def flag(self) -> str:
        """What the user added to say which profile; see `Profile.flag`. Nothing is looked at."""
        if not (self.sandbox or self.profile_name):
            return ""  # as nearly always: nothing is imported for it
        from clorefleet.config.profile import SANDBOX, flag_of

        return flag_of(SANDBOX if self.sandbox else self.profile_name)

    def profile(self, *, needs_state: bool = True) -> Profile:
        """The chosen profile; its state folder exists afterwards, where it is needed."""
        from clorefleet.config.profile import DEFAULT, SANDBOX, find_profile
        from clorefleet.domain.errors import BadInput

        if self.sandbox and self.profile_name not in ("", SANDBOX):
            raise BadInput("--sandbox and --profile contradict each other.", remedy="Use one of the two.")
        name = SANDBOX if self.sandbox else self.profile_name or DEFAULT
        return find_profile(name, needs_state=needs_state)


options = GlobalOptions()
"""The options of this process: one command runs in it."""


def is_utf8(stream: TextIO) -> bool:
    """Whether every letter can be written to it; what has no encoding takes text as it is."""
    encoding = getattr(stream, "encoding", None)
    return encoding is None or encoding.lower().replace("-", "").replace("_", "") == "utf8"
