"""The ways out, against a real mail server, a real web server and real programs."""

from __future__ import annotations

import json
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from clorefleet.domain.alert import (
    Alert,
    AlertKind,
    Command,
    Email,
    MailSecurity,
    SecretPlace,
    Webhook,
)
from clorefleet.domain.errors import ConfigError
from clorefleet.domain.identity import DeploymentId
from clorefleet.notify import channels
from clorefleet.notify.channels import NotSent, Sent, Unclear, as_mail, secret_at, send

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
ALERT = Alert("event:7", AlertKind.FAILURE, NOW, "Giving back server 7: no GPU.", DeploymentId("chat"))
ALL = frozenset(AlertKind)


# -- e-mail


class Mailbox:
    def __init__(self) -> None:
        self.messages: list = []
        self.users: list[str] = []
        self.answer = "250 OK"
        self.ciphers: list[str] = []
        """Of each message; "" for one that came unencrypted."""

    async def handle_DATA(self, server, session, envelope) -> str:
        cipher = server.transport.get_extra_info("cipher")
        self.ciphers.append("" if cipher is None else cipher[0])
        self.messages.append((envelope.rcpt_tos, message_from_bytes(envelope.content)))
        return self.answer

    def authenticate(self, server, session, envelope, mechanism, auth_data: LoginPassword) -> AuthResult:
        self.users.append(auth_data.login.decode())
        is_right = auth_data.password == b"right"
        return AuthResult(success=is_right, handled=is_right)


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    box = Mailbox()
    controller = Controller(
        box, hostname="127.0.0.1", port=free_port(), authenticator=box.authenticate, auth_require_tls=False
    )
    controller.start()
    yield box, controller.port
    controller.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def email(port: int, **more: object) -> Email:
    given = {"security": MailSecurity.NONE, "sender": "fleet@example.org", "recipients": ("me@example.org",)}
    return Email("mail", ALL, "127.0.0.1", port, **(given | more))


def test_a_mail_arrives_with_its_words_and_an_id_that_a_copy_would_share(mailbox):
    box, port = mailbox
    assert send(email(port, recipients=("a@example.org", "b@example.org")), ALERT) == Sent()
    [(recipients, message)] = box.messages
    assert recipients == ["a@example.org", "b@example.org"]
    assert message["Subject"] == "[clorefleet] failure: chat"
    assert "Giving back server 7: no GPU." in message.get_payload(decode=True).decode()
    assert message["Message-ID"] == as_mail(email(port), ALERT)["Message-ID"]


def test_user_and_password_are_shown_to_the_server(mailbox, monkeypatch):
    box, port = mailbox
    monkeypatch.setenv("MAIL_PASSWORD", "right")
    with_user = email(port, user="fleet", password=SecretPlace(env="MAIL_PASSWORD"))
    assert send(with_user, ALERT) == Sent() and box.users == ["fleet"]


def test_a_wrong_password_is_clear_and_not_tried_again(mailbox, monkeypatch):
    box, port = mailbox
    monkeypatch.setenv("MAIL_PASSWORD", "wrong-canary")
    outcome = send(email(port, user="fleet", password=SecretPlace(env="MAIL_PASSWORD")), ALERT)
    assert isinstance(outcome, NotSent) and not outcome.may_retry and "canary" not in outcome.why
    assert box.messages == []


@pytest.mark.parametrize(("user", "password"), [("fleet", "canary-ä"), ("flotte-ä", "right")])
def test_a_login_with_letters_that_cannot_be_sent_is_clear_and_not_tried_again(
    mailbox, monkeypatch, user: str, password: str
):
    box, port = mailbox
    monkeypatch.setenv("MAIL_PASSWORD", password)
    outcome = send(email(port, user=user, password=SecretPlace(env="MAIL_PASSWORD")), ALERT)
    assert isinstance(outcome, NotSent) and not outcome.may_retry
    assert "ASCII" in outcome.why and "canary" not in outcome.why and box.messages == []


@pytest.mark.parametrize(("answer", "may_retry"), [("451 try later", True), ("554 no", False)])
def test_a_server_that_says_no_is_clear(mailbox, answer: str, may_retry: bool):
    box, port = mailbox
    box.answer = answer
    outcome = send(email(port), ALERT)
    assert isinstance(outcome, NotSent) and outcome.may_retry is may_retry


def test_no_mail_server_is_tried_again():
    outcome = send(email(free_port()), ALERT)
    assert isinstance(outcome, NotSent) and outcome.may_retry


def test_a_server_without_encryption_gets_no_password_where_encryption_was_asked_for(mailbox, monkeypatch):
    box, port = mailbox
    monkeypatch.setenv("MAIL_PASSWORD", "right")
    asked = email(
        port, security=MailSecurity.STARTTLS, user="fleet", password=SecretPlace(env="MAIL_PASSWORD")
    )
    assert isinstance(send(asked, ALERT), NotSent)
    assert box.users == [] and box.messages == []


def test_a_connection_lost_after_the_mail_was_handed_over_is_unclear(mailbox, monkeypatch):
    _, port = mailbox

    def cut(self, *args, **kwargs):
        raise smtplib.SMTPServerDisconnected("cut")

    monkeypatch.setattr(smtplib.SMTP, "send_message", cut)
    assert isinstance(send(email(port), ALERT), Unclear)


# -- e-mail over TLS: a real server, and a certificate that is made for the test


def certificate(
    folder: Path, *, host: str = "localhost", until: timedelta = timedelta(days=1)
) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS, and the file that makes a client trust it: it is signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted, chain = folder / "trusted.pem", folder / "chain.pem"
    trusted.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(secret + trusted.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context, trusted


Serve = Callable[[ssl.SSLContext], tuple[Mailbox, Email]]


@pytest.fixture(params=[MailSecurity.STARTTLS, MailSecurity.TLS])
def serve(request: pytest.FixtureRequest, monkeypatch) -> Iterator[Serve]:
    """Starts a mail server that takes nothing unencrypted, and the channel that uses it with a password."""
    started: list[Controller] = []
    monkeypatch.setenv("MAIL_PASSWORD", "right")

    def start(context: ssl.SSLContext) -> tuple[Mailbox, Email]:
        box = Mailbox()
        way = (
            {"ssl_context": context, "auth_require_tls": False}  # it does not count TLS from the start
            if request.param is MailSecurity.TLS
            else {"tls_context": context, "require_starttls": True}
        )
        server = Controller(
            box, hostname="127.0.0.1", port=free_port(), authenticator=box.authenticate, **way
        )
        # Its own look whether it listens would speak TLS with the server's own context.
        server._trigger_server = lambda: socket.create_connection(("127.0.0.1", server.port)).close()
        server.start()
        started.append(server)
        password = SecretPlace(env="MAIL_PASSWORD")
        channel = email(server.port, security=request.param, user="fleet", password=password)
        return box, replace(channel, host="localhost")

    yield start
    for server in started:
        server.stop()


def test_mail_goes_encrypted_to_a_server_whose_certificate_is_trusted(
    serve: Serve, tmp_path: Path, monkeypatch
):
    context, trusted = certificate(tmp_path)
    box, channel = serve(context)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    assert send(channel, ALERT) == Sent()
    assert len(box.messages) == 1 and box.users == ["fleet"] and all(box.ciphers)


@pytest.mark.parametrize(
    ("made", "is_trusted", "why"),
    [
        ({}, False, "nobody signed it whom this machine trusts"),
        ({"host": "mail.example.org"}, True, "it is of another host"),
        ({"until": -timedelta(days=1)}, True, "it is not valid at this time"),
    ],
)
def test_a_certificate_that_does_not_hold_gets_neither_mail_nor_password(
    serve: Serve, tmp_path: Path, monkeypatch, made: dict, is_trusted: bool, why: str
):
    context, trusted = certificate(tmp_path, **made)
    box, channel = serve(context)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    outcome = send(channel, ALERT)
    assert isinstance(outcome, NotSent) and why in outcome.why
    assert box.messages == [] and box.users == []


# -- webhook


class Hook(HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict] = []
        self.status = 204
        self.is_cut = False
        self.is_dripping = False
        self.has_ended = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        if self.server.is_cut:
            self.connection.close()
            return
        if self.server.is_dripping:
            self._drip()
            return
        self.send_response(self.server.status)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()

    def _drip(self) -> None:
        """A header that never ends, a letter at a time: each comes well within any limit of one read."""
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self.server.has_ended.wait(0.02):
                self.wfile.write(b"a")
        except OSError:
            self.server.has_ended.set()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.has_ended.set()
    server.shutdown()
    server.server_close()


def webhook(server: Hook) -> Webhook:
    return Webhook("hook", ALL, f"http://127.0.0.1:{server.server_port}/token-canary")


def test_a_webhook_gets_the_alert_as_json_in_the_keys_that_chat_services_show(hook: Hook):
    assert send(webhook(hook), ALERT) == Sent()
    [body] = hook.bodies
    assert body["kind"] == "failure" and body["deployment_id"] == "chat" and body["key"] == "event:7"
    assert body["text"] == body["content"] == "[clorefleet] Giving back server 7: no GPU."


@pytest.mark.parametrize(
    ("status", "may_retry"), [(500, True), (503, True), (429, True), (404, False), (302, False)]
)
def test_an_answer_that_is_no_success_is_clear_and_redirects_are_not_followed(
    hook: Hook, status: int, may_retry: bool
):
    hook.status = status
    outcome = send(webhook(hook), ALERT)
    assert isinstance(outcome, NotSent) and outcome.may_retry is may_retry and len(hook.bodies) == 1
    assert "canary" not in outcome.why


def test_a_connection_cut_before_the_answer_is_unclear(hook: Hook):
    hook.is_cut = True
    outcome = send(webhook(hook), ALERT)
    assert isinstance(outcome, Unclear) and "canary" not in outcome.why


def test_an_answer_that_comes_by_drops_is_not_waited_for_without_bound(hook: Hook, monkeypatch):
    monkeypatch.setattr(channels, "ANSWER_S_MAX", 0.3)
    hook.is_dripping = True
    outcome = send(webhook(hook), ALERT)
    assert isinstance(outcome, Unclear) and "canary" not in outcome.why
    assert hook.has_ended.wait(20), "the connection was not cut"


def test_nobody_listening_is_tried_again():
    outcome = send(Webhook("hook", ALL, f"http://127.0.0.1:{free_port()}/token-canary"), ALERT)
    assert isinstance(outcome, NotSent) and outcome.may_retry and "canary" not in outcome.why


def test_an_address_from_the_environment_is_checked_like_one_in_the_file(monkeypatch):
    monkeypatch.setenv("HOOK", "http://example.org/token-canary")
    outcome = send(Webhook("hook", ALL, url_place=SecretPlace(env="HOOK")), ALERT)
    assert isinstance(outcome, NotSent) and not outcome.may_retry and "canary" not in outcome.why


# -- command


def test_a_command_gets_the_alert_on_its_standard_input_and_no_key_of_ours(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CLORE_API_KEY", "canary-key")
    out = tmp_path / "out"
    script = f"cat > {out}; env >> {out}"
    assert send(Command("tell", ALL, ("/bin/sh", "-c", script)), ALERT) == Sent()
    text = out.read_text("utf-8")
    assert json.loads(text.split("\n")[0])["key"] == "event:7" and "canary-key" not in text


def test_words_of_the_alert_reach_no_shell(tmp_path: Path):
    hostile = Alert("k", AlertKind.FAILURE, NOW, f"$(touch {tmp_path}/owned); `touch {tmp_path}/owned`")
    assert send(Command("tell", ALL, ("/bin/cat",)), hostile) == Sent()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("argv", "may_retry"), [(("/bin/false",), True), (("/nowhere/tell",), False), (("/etc/passwd",), False)]
)
def test_a_command_that_fails_is_clear(argv: tuple, may_retry: bool):
    outcome = send(Command("tell", ALL, argv), ALERT)
    assert isinstance(outcome, NotSent) and outcome.may_retry is may_retry


def test_a_command_that_hangs_is_ended_with_its_children(monkeypatch):
    monkeypatch.setattr(channels, "COMMAND_TIMEOUT_S", 0.3)
    assert isinstance(send(Command("tell", ALL, ("/bin/sh", "-c", "sleep 60 & sleep 60")), ALERT), Unclear)


# -- secrets


def test_a_secret_file_that_others_can_read_is_refused(tmp_path: Path):
    file = tmp_path / "password"
    file.write_text("s3cret-canary\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        secret_at(SecretPlace(file=str(file)))
    file.chmod(0o600)
    assert secret_at(SecretPlace(file=str(file))).reveal() == "s3cret-canary"


def test_a_missing_secret_is_told_by_the_name_of_its_place():
    with pytest.raises(ConfigError, match="NOT_THERE"):
        secret_at(SecretPlace(env="NOT_THERE"))
    outcome = send(email(1, user="u", password=SecretPlace(env="NOT_THERE")), ALERT)
    assert isinstance(outcome, NotSent) and not outcome.may_retry
