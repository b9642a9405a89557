"""Reading what nodes say: bounded, tolerant, never hopeful."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clorefleet.domain.errors import WeightsFailed
from clorefleet.domain.identity import JobId, LeaseId
from clorefleet.domain.node import JobState
from clorefleet.domain.secret import Secret
from clorefleet.node.jobs import JobSpec, parse_report
from clorefleet.node.keys import (
    delete_keys,
    kept_keys,
    key_place,
    load_keys,
    make_keys,
    private_key_path,
    startup_command,
)
from clorefleet.node.weights import manifest_of
from tests.fleet.builders import plan

# -- jobs


MARK = "--clorefleet--"


@pytest.mark.parametrize(
    "state_line, state, code",
    [
        ("running", JobState.RUNNING, None),
        ("exit 0", JobState.SUCCEEDED, 0),
        ("exit 24", JobState.FAILED, 24),
        ("lost", JobState.LOST, None),
        ("exit", JobState.LOST, None),
        ("exit 0; rm -rf", JobState.LOST, None),
        ("EXIT 0", JobState.LOST, None),
        ("", JobState.LOST, None),
    ],
)
def test_only_a_clean_exit_code_counts_as_success(state_line: str, state: JobState, code: int | None):
    """F7."""
    report = parse_report(f"{state_line}\n{MARK}\n\n{MARK}\nlast line\n")
    assert (report.state, report.exit_code) == (state, code)


def test_an_absent_job_is_absent():
    assert parse_report("absent\n").state is JobState.ABSENT


def test_progress_and_log_of_a_hostile_node_are_inert():
    """G1, G4."""
    progress = '{"done": -5, "total": "all", "text": "\\u001b[2J' + "x" * 5000 + '"}'
    report = parse_report(f"running\n{MARK}\n{progress}\n{MARK}\n\x1b]52;c;AAAA\x07\n" + "y" * 9000)
    assert report.progress_done is None and report.progress_total is None
    assert len(report.progress_text) <= 121
    assert not any("\x1b" in line or "\x07" in line for line in report.log_tail)


@pytest.mark.parametrize("progress", ['{"done": 1%s, "total": 1}', '{"done": 1, "total": 1%s}'])
def test_a_number_of_bytes_that_nobody_has_is_no_progress(progress: str):
    """G1: as a fraction it would be no float any more, or no time."""
    report = parse_report(f"running\n{MARK}\n{progress % ('0' * 400)}\n{MARK}\n")
    assert None in (report.progress_done, report.progress_total)


def test_a_bomb_of_brackets_is_no_progress():
    """G7."""
    report = parse_report(f"running\n{MARK}\n{'[' * 2000}\n{MARK}\n")
    assert (report.state, report.progress_done) == (JobState.RUNNING, None)


def test_a_jobs_words_are_quoted_and_its_variables_named_strictly():
    spec = JobSpec(JobId("l1-launching-1"), ("run", "a b; rm -rf /", "$(id)"), {"TOKEN": "x'y"})
    assert spec.script().splitlines()[1:] == [
        "export TOKEN='x'\"'\"'y'",
        "exec run 'a b; rm -rf /' '$(id)'",
    ]
    with pytest.raises(ValueError, match="name a variable"):
        JobSpec(JobId("x"), ("run",), {"A;B": "1"}).script()


# -- keys


def test_keys_are_made_once_private_and_gone_when_deleted(tmp_path):
    lease_id = LeaseId("abc123")
    keys = make_keys(tmp_path, lease_id)
    assert make_keys(tmp_path, lease_id) == keys
    assert keys.public_key.startswith("ssh-ed25519 ")
    assert private_key_path(tmp_path, lease_id).stat().st_mode & 0o077 == 0
    assert make_keys(tmp_path, LeaseId("other")).public_key != keys.public_key
    delete_keys(tmp_path, lease_id)
    delete_keys(tmp_path, lease_id)
    assert load_keys(tmp_path, lease_id) is None


def test_a_key_folder_has_a_name_of_its_own_that_is_no_key(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert key_place(first) == key_place(first) != key_place(second)
    make_keys(first, LeaseId("l1"))
    assert kept_keys(first) == {"l1"} and kept_keys(second) == set()


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 99])
def test_a_lease_id_never_leaves_its_folder(tmp_path, name: str):
    with pytest.raises(ValueError):
        make_keys(tmp_path, LeaseId(name))


def test_all_that_an_order_is_given_is_its_own(tmp_path):
    one, other = (make_keys(tmp_path, LeaseId(name)) for name in ("one", "other"))
    assert one.public_key != one.host_public_key
    for field in ("public_key", "nonce", "host_public_key", "host_private_key", "password"):
        assert getattr(one, field) != getattr(other, field), field
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "keys").rglob("*")} == {0}


def test_a_lease_shows_no_secret_of_its_order(tmp_path):
    keys = make_keys(tmp_path, LeaseId("l1"))
    shown = f"{keys!r} {keys} {keys.credentials!r} {keys.credentials}"
    for secret in (keys.password, keys.host_private_key):
        assert secret.reveal() not in shown and repr(secret.reveal()) not in shown


def test_the_start_up_script_takes_only_a_nonce_and_a_host_key(tmp_path):
    good = make_keys(tmp_path, LeaseId("l1")).credentials
    script = startup_command(good)
    assert good.nonce in script and good.host_private_key.reveal() in script
    assert "&" not in script and script.isascii()
    assert good.ssh_password.reveal() not in script
    for bad in (replace(good, nonce="$(reboot)"), replace(good, host_private_key=Secret("KEY\nreboot\n"))):
        with pytest.raises(ValueError):
            startup_command(bad)


# -- manifests


SHA = "a" * 64
ENTRY = {"type": "file", "path": "m.gguf", "size": 10, "oid": "b" * 40, "lfs": {"oid": SHA, "size": 10}}


def test_a_manifest_has_the_wanted_files_with_their_digests():
    small = {"type": "file", "path": "readme.gguf", "size": 3, "oid": "c" * 40}
    manifest = manifest_of(plan().setup, "d" * 40, [ENTRY, small, {"type": "directory", "path": "x.gguf"}])
    assert [(file.path, file.sha256, file.git_sha1) for file in manifest.files] == [
        ("m.gguf", SHA, ""),
        ("readme.gguf", "", "c" * 40),
    ]
    assert manifest.total_bytes == 13


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../evil.gguf"},
        {"path": "/etc/evil.gguf"},
        {"path": "a//b.gguf"},
        {"path": "a\n.gguf"},
        {"lfs": {"oid": "short", "size": 10}},
        {"lfs": {"oid": SHA, "size": -1}},
        {"lfs": None, "oid": None},
    ],
)
def test_an_entry_that_cannot_be_trusted_refuses_the_whole_manifest(change: dict):
    with pytest.raises(WeightsFailed) as caught:
        manifest_of(plan().setup, "d" * 40, [ENTRY | change])
    assert caught.value.cause == "bad_manifest"


def test_a_repository_without_the_wanted_file_says_so():
    with pytest.raises(WeightsFailed) as caught:
        manifest_of(plan().setup, "d" * 40, [ENTRY | {"path": "other.bin"}])
    assert caught.value.cause == "not_found"
