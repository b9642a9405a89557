"""The ways out: webhook, e-mail, command. Each sends one alert and says whether it went, with a bounded wait.

`Unclear` is an outcome: the other side may have taken the alert, so that it is not sent again. No error
text of a library is passed on, since addresses with tokens in them could be part of it.
"""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from clorefleet.domain.alert import Alert, Channel, Command, Email, MailSecurity, SecretPlace, Webhook
from clorefleet.domain.errors import ConfigError
from clorefleet.domain.secret import Secret

TIMEOUT_S = 10
ANSWER_S_MAX = 20
"""For a webhook's whole answer, however it comes."""
TEXT_MAX_CHARS = 1_900
"""Of `text` and `content`: chat services refuse what is longer than some 2,000."""
COMMAND_TIMEOUT_S = 20
_SECRET_BYTES_MAX = 4096
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "TMPDIR")
"""What a command sees of our environment: never a key."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The other side took it."""


@dataclass(frozen=True, slots=True)
class NotSent:
    """It certainly did not go out."""

    why: str
    may_retry: bool = True


@dataclass(frozen=True, slots=True)
class Unclear:
    """It may have gone out."""

    why: str


Outcome = Sent | NotSent | Unclear


@dataclass(frozen=True, slots=True)
class Letter:
    """What goes out with an alert that is a report."""

    subject: str
    text: str
    document: Mapping[str, Any]
    """For webhooks and commands, as `report`."""
    attachment: str = ""
    """For mail; with a name and a subtype of `text`."""
    attachment_name: str = ""
    attachment_subtype: str = "plain"


def send(channel: Channel, alert: Alert, letter: Letter | None = None) -> Outcome:
    """Send one alert by one channel. Blocks for a bounded time."""
    try:
        match channel:
            case Webhook():
                return _post(channel, alert, letter)
            case Email():
                return _mail(channel, alert, letter)
            case Command():
                return _run(channel, alert, letter)
    except ConfigError as error:
        return NotSent(error.what, may_retry=False)


def as_document(alert: Alert, letter: Letter | None = None) -> dict[str, Any]:
    """What webhooks and commands get. `text` and `content` are the keys that common chat services show."""
    line = f"[clorefleet] {alert.text if letter is None else letter.text}"[:TEXT_MAX_CHARS]
    more = {} if letter is None else {"report": dict(letter.document)}
    return more | {
        "source": "clorefleet",
        "key": alert.key,
        "kind": alert.kind.value,
        "deployment_id": alert.deployment_id,
        "at": alert.at.isoformat(),
        "text": line,
        "content": line,
    }


def secret_at(place: SecretPlace) -> Secret:
    """
    Raises:
        ConfigError: it is not there, or a file of it is open to others.
    """
    if place.env:
        value = os.environ.get(place.env, "")
        if not value:
            raise ConfigError(f"The environment variable {place.env} is not set for the daemon.")
        return Secret(value)
    path = Path(place.file).expanduser()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as file:
            text = file.read(_SECRET_BYTES_MAX).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The secret in {place.file} cannot be read ({type(error).__name__}).") from error
    if mode & 0o077:
        raise ConfigError(f"Others on this machine can read {place.file}; type: chmod 600 {place.file}")
    return Secret(text)


# -- webhook


def _post(channel: Webhook, alert: Alert, letter: Letter | None) -> Outcome:
    import httpx

    from clorefleet.config.notify_file import parse_webhook_url
    from clorefleet.domain.errors import BadInput

    url = channel.url or secret_at(channel.url_place).reveal()
    try:
        parse_webhook_url(url)
    except BadInput as error:
        return NotSent(error.what, may_retry=False)
    document = as_document(alert, letter)
    try:
        with (
            _Deadline(ANSWER_S_MAX) as deadline,
            httpx.Client(timeout=TIMEOUT_S, follow_redirects=False) as client,
            client.stream("POST", url, json=document, extensions={"trace": deadline.see}) as answer,
        ):
            status = answer.status_code
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        return NotSent(f"no connection ({type(error).__name__})")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Unclear(f"no answer ({type(error).__name__})")
    if 200 <= status < 300:
        return Sent()
    return NotSent(f"the webhook answered {status}", may_retry=status == 429 or status >= 500)


class _Deadline:
    """Cuts a connection that has not answered by then. A client's own time limit is for each read: who
    answers one letter at a time never passes it."""

    def __init__(self, after_s: float) -> None:
        self._timer = threading.Timer(after_s, self._pass)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._has_passed = False

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def see(self, event: str, info: Mapping[str, Any]) -> None:
        """httpx tells of each step; TLS puts another socket in the place of the first."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        with self._lock:
            self._connection = info["return_value"].get_extra_info("socket")
            if self._has_passed:
                self._cut()

    def _pass(self) -> None:
        with self._lock:
            self._has_passed = True
            self._cut()

    def _cut(self) -> None:
        if self._connection is not None:
            with suppress(OSError):  # it is closed already
                # Not by the method of TLS's own socket, which its reader may be in.
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)


# -- e-mail


def _mail(channel: Email, alert: Alert, letter: Letter | None) -> Outcome:
    password = secret_at(channel.password) if channel.user else Secret("")
    if not (channel.user.isascii() and password.reveal().isascii()):
        # Python's SMTP client has no other letters for a login.
        why = "user or password has a letter beyond ASCII, which cannot be sent: choose another"
        return NotSent(why, may_retry=False)
    message = as_mail(channel, alert, letter)
    is_handed_over = False
    try:
        with _connected(channel) as server:
            if channel.user:
                server.login(channel.user, password.reveal())
            is_handed_over = True
            refused = server.send_message(message)
    except smtplib.SMTPAuthenticationError:
        return NotSent("the mail server refuses user and password", may_retry=False)
    except smtplib.SMTPRecipientsRefused:
        return NotSent("the mail server refuses all recipients", may_retry=False)
    except smtplib.SMTPResponseException as error:
        # An answer is clear, whatever it says; 4xx asks to come again.
        return NotSent(f"the mail server answered {error.smtp_code}", may_retry=error.smtp_code < 500)
    except ssl.SSLCertVerificationError as error:
        # Before a word of ours, so that neither user nor password were shown to it.
        return NotSent(f"the mail server's certificate is refused: {_why_refused(error)}")
    except (smtplib.SMTPException, OSError) as error:
        why = f"no mail server ({type(error).__name__})"
        return Unclear(why) if is_handed_over else NotSent(why)
    if refused:
        return Unclear(f"{len(refused)} of {len(channel.recipients)} recipients were refused")
    return Sent()


def _connected(channel: Email) -> smtplib.SMTP:
    if channel.security is MailSecurity.TLS:
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(channel.host, channel.port, timeout=TIMEOUT_S, context=context)
    server = smtplib.SMTP(channel.host, channel.port, timeout=TIMEOUT_S)
    if channel.security is MailSecurity.STARTTLS:
        try:
            server.starttls(context=ssl.create_default_context())
        except BaseException:
            server.close()
            raise
    return server


_OTHER_HOST = (62, 64)
_NOT_YET, _EXPIRED = 9, 10
"""OpenSSL's codes: X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH, _CERT_NOT_YET_VALID,
_CERT_HAS_EXPIRED."""


def _why_refused(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _OTHER_HOST:
        return "it is of another host"
    if error.verify_code in (_NOT_YET, _EXPIRED):
        return "it is not valid at this time"
    return "nobody signed it whom this machine trusts (SSL_CERT_FILE names more)"


def as_mail(channel: Email, alert: Alert, letter: Letter | None = None) -> EmailMessage:
    """The alert as a message. Its id follows from the alert's key, so that a copy can be recognised."""
    message = EmailMessage()
    message["From"] = channel.sender
    message["To"] = ", ".join(channel.recipients)
    subject = f"{alert.kind}: {alert.deployment_id or 'the fleet'}" if letter is None else letter.subject
    message["Subject"] = f"[clorefleet] {subject}"
    message["Date"] = format_datetime(alert.at)
    digest = sha256(f"{alert.key}|{alert.at.isoformat()}".encode()).hexdigest()[:32]
    message["Message-ID"] = f"<{digest}@clorefleet>"
    message["Auto-Submitted"] = "auto-generated"
    text = alert.text if letter is None else letter.text
    message.set_content(f"{text}\n\n{alert.at.isoformat()}\nclorefleet\n")
    if letter is not None and letter.attachment:
        message.add_attachment(
            letter.attachment, subtype=letter.attachment_subtype, filename=letter.attachment_name
        )
    return message


# -- command


def _run(channel: Command, alert: Alert, letter: Letter | None) -> Outcome:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        process = subprocess.Popen(
            list(channel.argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        return NotSent(f"it cannot be started ({error.strerror})", may_retry=False)
    try:
        process.communicate(
            json.dumps(as_document(alert, letter)).encode() + b"\n", timeout=COMMAND_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Unclear(f"it did not end within {COMMAND_TIMEOUT_S} s")
    if process.returncode == 0:
        return Sent()
    return NotSent(f"it ended with exit code {process.returncode}")
