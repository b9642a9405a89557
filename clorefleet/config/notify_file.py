"""The `[notify]` part of `fleet.toml`. Secrets are named, never written there: by environment variable or
file."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from clorefleet.config.toml_file import Section, nearest
from clorefleet.domain.alert import (
    AlertKind,
    Channel,
    Command,
    Email,
    MailSecurity,
    NotifyPolicy,
    SecretPlace,
    Webhook,
)
from clorefleet.domain.errors import BadInput

CHANNELS_MAX = 20
_RECIPIENTS_MAX = 20
_ARGUMENTS_MAX = 32
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ADDRESS = re.compile(r"[^\s@<>,;:\"()\[\]\\\x00-\x1f\x7f]{1,64}@[A-Za-z0-9.-]{1,255}")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {MailSecurity.STARTTLS: 587, MailSecurity.TLS: 465, MailSecurity.NONE: 25}


def read_notify(section: Section) -> NotifyPolicy:
    """Complaints go to the file of `section`."""
    kinds = _kinds(section, frozenset(AlertKind))
    percents = _percents(section)
    channels: list[Channel] = []
    for index, each in enumerate(section.sections("webhook")):
        channels.append(_webhook(each, f"webhook {index + 1}", kinds))
    for index, each in enumerate(section.sections("email")):
        channels.append(_email(each, f"email {index + 1}", kinds))
    for index, each in enumerate(section.sections("command")):
        channels.append(_command(each, f"command {index + 1}", kinds))
    if len(channels) > CHANNELS_MAX:
        section.complain("webhook", f"there are more than {CHANNELS_MAX} ways to tell you")
    names = [each.name for each in channels]
    for name in sorted({name for name in names if names.count(name) > 1}):
        section.complain("webhook", f"two of them are called “{name[:40]}”", at_value=False)
    section.done()
    return NotifyPolicy(tuple(channels), percents)


def _kinds(section: Section, default: frozenset[AlertKind]) -> frozenset[AlertKind]:
    found = frozenset(section.words("on", _kind))
    return found if section.has("on") else default


def _kind(word: str) -> AlertKind:
    known = [each.value for each in AlertKind if each is not AlertKind.REPORT]
    if word not in known:
        near = nearest(word, known)
        raise BadInput(
            f"“{word[:30]}” is nothing to be told about.",
            remedy=f"Did you mean “{near}”?" if near else f"Use {', '.join(known)}.",
        )
    return AlertKind(word)


def _percents(section: Section) -> tuple[int, ...]:
    found = []
    for index, value in enumerate(section.take("budget_percents", list) or []):
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100:
            found.append(value)
        else:
            section.complain_at(("budget_percents", index), "a share of a budget is a whole number, 1 to 100")
    return tuple(sorted(set(found))) or NotifyPolicy().budget_percents


def _secret(section: Section, key: str) -> SecretPlace:
    """`KEY_env` or `KEY_file`."""
    env = section.parsed(f"{key}_env", _env_name) or ""
    file = section.text(f"{key}_file")
    if env and file:
        section.complain(f"{key}_file", f"{key}_env names the secret already")
    return SecretPlace(env, file)


def _env_name(text: str) -> str:
    if not _ENV_NAME.fullmatch(text):
        raise BadInput(
            f"“{text[:40]}” is not the name of an environment variable.",
            remedy="Write its name here and the secret into the variable, never the secret itself.",
        )
    return text


def _webhook(section: Section, name: str, kinds: frozenset[AlertKind]) -> Webhook:
    found = Webhook(
        name=section.text("name", name)[:40],
        kinds=_kinds(section, kinds),
        url=section.parsed("url", parse_webhook_url) or "",
        url_place=_secret(section, "url"),
    )
    if section.has("url") == found.url_place.is_given:
        section.needs_one("url", "url_env", "url_file")
    section.done()
    return found


def parse_webhook_url(text: str) -> str:
    """
    Raises:
        BadInput: not HTTPS, unless it points to this machine itself; or a user name inside.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    is_local = host in _LOOPBACK
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and is_local)):
        raise BadInput(
            "This is not an address for a webhook.", remedy="Use https://...; http only to localhost."
        )
    if parts.username or parts.password:
        raise BadInput("A webhook's address holds no user and password.", remedy="Use url_env or url_file.")
    return text


def _email(section: Section, name: str, kinds: frozenset[AlertKind]) -> Email:
    section.needs("host", "the SMTP server")
    section.needs("from", "the sender's address")
    section.needs("to", "a list of addresses")
    host = section.text("host")
    security = section.choice("security", MailSecurity, MailSecurity.STARTTLS)
    if security is MailSecurity.NONE and host not in _LOOPBACK:
        section.complain("security", "mail goes unencrypted only to this machine itself (localhost)")
    recipients = section.words("to", _address)
    if len(recipients) > _RECIPIENTS_MAX:
        section.complain("to", f"at most {_RECIPIENTS_MAX} addresses")
    found = Email(
        name=section.text("name", name)[:40],
        kinds=_kinds(section, kinds),
        host=host,
        port=section.whole("port", _PORTS[security], least=1, most=65_535),
        security=security,
        sender=section.parsed("from", _address) or "",
        recipients=recipients,
        user=section.text("user"),
        password=_secret(section, "password"),
    )
    if section.has("password"):
        section.complain(
            "password", "a password does not belong into this file; use password_env or password_file"
        )
    if bool(found.user) != found.password.is_given:
        section.complain("user", "user and one of password_env, password_file go together")
    section.done()
    return found


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise BadInput(f"“{text[:60]}” is not an e-mail address.", remedy="Write name@example.org.")
    return text


def _command(section: Section, name: str, kinds: frozenset[AlertKind]) -> Command:
    section.needs("argv", 'the program and its arguments: ["/usr/local/bin/tell", "--urgent"]')
    argv = section.words("argv", _argument)
    if section.has("argv") and (not argv or len(argv) > _ARGUMENTS_MAX):
        section.complain("argv", f"a program and at most {_ARGUMENTS_MAX - 1} arguments")
    elif argv and not argv[0].startswith("/"):
        section.complain("argv", "write the program's full path: a daemon has another PATH than you")
    found = Command(section.text("name", name)[:40], _kinds(section, kinds), argv)
    section.done()
    return found


def _argument(text: str) -> str:
    if "\0" in text or len(text) > 1000:
        raise BadInput("An argument has no NUL and at most 1000 characters.")
    return text
