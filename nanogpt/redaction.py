"""Recognise secrets in texts: values of environment variables that are named like one, and well-known token forms.

One list of rules for all outputs: what is refused in a config and what is hidden in messages, logs, provenance.json,
crash reports and trackers. Values shorter than eight characters are not compared, since they occur in ordinary words.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "<hidden>"
MIN_LENGTH = 8  # characters of a value that is compared

SECRET_NAME = re.compile(
    r"key|token|secret|passw|passphrase|credential|cookie|webhook|bearer|connection_?string|private|jwt"
    r"|(?:^|_)(?:auth|authorization|pass|pwd|pat|pgpass|dsn|session|sessionid|login|otp|signature)(?:_|$|\d)",
    re.IGNORECASE,
)
ORDINARY_NAME = re.compile(
    r"^(?:OLD)?PWD$|TOKENIZ|TIKTOKEN|TOKENS(?:_|$)|KEYBOARD|KEYMAP"
    r"|^(?:XDG|DBUS|DESKTOP|GNOME|KDE|TERM|SSH|TMUX|GDM)_?.*SESSION|^DBUS_|SESSION_(?:MANAGER|TYPE|CLASS|DESKTOP)$"
    r"|_(?:DIR|DIRECTORY|FOLDER|PATH|FILE|HOME|ROOT|SOCK|CACHE)$",
    re.IGNORECASE,
)
"""Names that look like those of secrets but hold settings or paths."""
LOGIN_IN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://[^/\s:@]*:(?P<password>[^/\s@]+)@")
"""A scheme's length is bounded: without a bound the time to search a long word grows with its square."""

TOKEN_FORMS: dict[str, re.Pattern[str]] = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "a GitHub token": re.compile(r"\b(?:gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    "a GitLab token": re.compile(r"\bgl(?:pat|dt|rt|cbt|ptt|ft|soat|agent)-[\w-]{16,}"),
    "an API key": re.compile(
        r"\b(?:sk-(?:[a-z]+[0-9]*-)*[A-Za-z0-9_]{16,}|gsk_[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|r8_[A-Za-z0-9]{20,}"
        r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}|glsa_\w{20,}|pplx-[A-Za-z0-9]{20,}"
        r"|wandb_v1_\w{16,}|local-[0-9a-f]{40})"
    ),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}"),
    "a Slack token": re.compile(r"\bxox[a-z]-[\w-]{10,}|\bxapp-[\w-]{10,}|hooks\.slack\.com/services/\S+"),
    "a package registry's token": re.compile(r"\b(?:npm_[A-Za-z0-9]{20,}|pypi-[\w-]{20,}|dckr_pat_[\w-]{20,})"),
    "a Databricks token": re.compile(r"\bdapi[0-9a-f]{32}"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),
    "a private key": re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?:.|\n)*?(?:-----END [A-Z0-9 ]*KEY-----|\Z)"),
    "an authorization header": re.compile(r"\b[Bb]earer\s+[\w.~+/-]{16,}=*"),
    "a login in an address": LOGIN_IN_URL,
}


def is_secret_name(name: str) -> bool:
    """Return whether an environment variable of this name is taken for a secret."""
    return SECRET_NAME.search(name) is not None and ORDINARY_NAME.search(name) is None


def secret_values(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return {secret value: name of its variable}, longest first, including passwords in URLs."""
    found: dict[str, str] = {}
    for name, value in (os.environ if environment is None else environment).items():
        value = value.strip()
        if len(value) < MIN_LENGTH:
            continue
        if is_secret_name(name):
            found.setdefault(value, name)
        if "://" in value and (login := LOGIN_IN_URL.search(value)):
            found.setdefault(value, name)
            if len(login["password"]) >= MIN_LENGTH:
                found.setdefault(login["password"], name)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def find_secret(text: str, secrets: Mapping[str, str] | None = None) -> str | None:
    """Return a description of a secret in a text that does not show it, or None.

    `secrets` is what `secret_values` returns, for callers with many texts.
    """
    if len(text) < MIN_LENGTH:
        return None
    for value, name in (secret_values() if secrets is None else secrets).items():
        if value in text:
            return f"the value of the environment variable {name}"
    return next((what for what, form in TOKEN_FORMS.items() if form.search(text)), None)


def redact(text: str, secrets: Mapping[str, str] | None = None) -> str:
    """Return the text with `<hidden>` in place of every secret."""
    if len(text) < MIN_LENGTH:
        return text
    for value in secret_values() if secrets is None else secrets:
        text = text.replace(value, HIDDEN)
    for form in TOKEN_FORMS.values():
        text = form.sub(HIDDEN, text)
    return text


def redact_all(value: Any, secrets: Mapping[str, str] | None = None) -> Any:
    """Return nested dicts and lists with every string redacted."""
    secrets = secret_values() if secrets is None else secrets
    if isinstance(value, dict):
        return {redact(str(key), secrets): redact_all(item, secrets) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [redact_all(item, secrets) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return redact(value, secrets) if isinstance(value, str) else value
