"""`clorefleet hosts`: block, unblock, and what plans then do."""

from __future__ import annotations


def test_a_blocked_server_is_left_out_until_it_is_unblocked(account):
    deploy = ("deploy", "smollm2-135m", "--budget", "16/day", "--dry-run", "--json")
    best = account(*deploy).json["plans"][0]["server"]["id"]
    assert account("hosts", "list").code == 0
    assert account("hosts", "block", str(best), "--reason", "slow \x1b[2Jdisk").code == 0
    [record] = account("hosts", "list", "--json").json
    assert (record["server_id"], record["is_left_out"]) == (best, True)
    assert "\x1b" not in record["state"] and "disk" in record["state"]
    plans = account(*deploy).json["plans"]
    assert best not in [each["server"]["id"] for each in plans]
    # `plan` rents nothing, and leaves out the same.
    shown = account("plan", "smollm2-135m", "--budget", "16/day", "--json").json
    assert best not in [each["server"]["id"] for each in shown["plans"]]
    assert best in shown["floors"]["excluded_servers"]
    said = account("plan", "smollm2-135m", "--budget", "16/day")
    assert "1 offers not taken: left out by you or by their record" in said.out + said.err
    assert account("hosts", "unblock", str(best)).code == 0
    assert account(*deploy).json["plans"][0]["server"]["id"] == best
    shown = account("hosts", "history", str(best))
    assert shown.code == 0 and "unblocked by you" in shown.out and "\x1b" not in shown.out


def test_a_server_that_nothing_is_known_of_says_so(account):
    run = account("hosts", "history", "424242")
    assert run.code == 2 and "hosts list" in run.err
    assert account("hosts", "block", "0").code == 2
    assert account("hosts", "block", "abc").code == 2
