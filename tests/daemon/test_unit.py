"""The systemd unit: what it starts, what it must not hold, and that systemd itself accepts it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clorefleet.daemon.unit import unit_name, unit_text

AWKWARD = '/home/me/my "fleet"/100%/$HOME\\bin'


def text(python: str = sys.executable, home: str = "/srv/fleet") -> str:
    return unit_text(
        "default",
        python,
        environment=[("CLOREFLEET_HOME", home)],
        environment_file=Path("/srv/fleet/daemon.env"),
    )


def test_it_starts_this_interpreters_daemon_and_starts_it_again_when_it_ends():
    lines = text("/usr/bin/python3").split("\n")
    assert "ExecStart=/usr/bin/python3 -m clorefleet.daemon --profile default --log-to stderr" in lines
    assert "Restart=always" in lines and "Environment=CLOREFLEET_HOME=/srv/fleet" in lines
    assert "EnvironmentFile=-/srv/fleet/daemon.env" in lines


def test_characters_that_mean_something_to_systemd_are_quoted():
    made = text(home=AWKWARD)
    assert 'Environment="CLOREFLEET_HOME=/home/me/my \\"fleet\\"/100%%/$HOME\\\\bin"' in made


def test_a_line_break_cannot_smuggle_in_a_setting():
    with pytest.raises(ValueError, match="control"):
        text(home="/x\nExecStartPre=/bin/evil")


def test_each_profile_has_a_unit_of_its_own():
    assert unit_name("default") == "clorefleet.service" and unit_name("work") == "clorefleet-work.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("home", ["/srv/fleet", AWKWARD])
def test_systemd_accepts_it(tmp_path: Path, home: str):
    unit = tmp_path / "clorefleet.service"
    unit.write_text(text(home=home), "utf-8")
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--user", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        env={"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    about_ours = [line for line in run.stderr.splitlines() if "clorefleet.service" in line]
    assert about_ours == []
