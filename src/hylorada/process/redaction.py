"""Secrets reach no file and no screen: what they look like, and how they are taken out.

A secret is the value of an environment variable named like one, a string of a known token form, a
user and password in a URL, or what `remember` found in the settings. Everything that a command
writes passes here: the streams (`terminal`), the logs (`RedactingFormatter`), and each file of text
by its writer. The work itself is done with the true values.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

MARK = "***"
_SHORTEST = 8  # characters of a secret known by its value: shorter ones are words and numbers

_SURE_NAME = re.compile(r"TOKEN(?!IZER)|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL", re.IGNORECASE)
_LIKELY_NAME = re.compile(r"KEY|AUTH(?!OR)", re.IGNORECASE)  # also KEYBOARD, SSH_AUTH_SOCK
_SECRET_KEY = re.compile(
    r"(?:^|[._-])(?:token|api_?key|access_?key|secret|password|passwd)$", re.IGNORECASE
)
_FORMS = re.compile(
    r"""\b(?: hf_ (?: [A-Za-z0-9]{16,} | (?=\w*[A-Z0-9]) \w{8,} )
        | wandb_v\d_ \w{16,}
        | sk- [\w-]{16,}
        | gh[oprsu]_ \w{16,} | github_pat_ \w{16,} | glpat- [\w-]{16,} | xox[abeprs]- [\w-]{10,}
        | AKIA [A-Z0-9]{16} | AIza [\w-]{30,}
        | eyJ [\w-]{8,} \. [\w-]{8,} \. [\w-]*
        )""",
    re.VERBOSE,
)
_IN_URL = re.compile(r"""(?<=://)(?:[^\s/@:"'<>]*:(?!\d+/)[^\s"'<>]*|[^\s/@"'<>]*)@""")
_IN_QUERY = re.compile(
    r"""([?&][\w.-]*(?:token|key|secret|passw(?:or)?d|signature|credential)[\w.-]*=)[^&\s"'<>]+""",
    re.IGNORECASE,
)
_IN_HEADER = re.compile(
    r"""(\bbearer\s+|\bauthorization["']?\s*[:=]\s*["']?(?:\w+\s+)?)[\w.~+/=-]{8,}""", re.IGNORECASE
)
_ASSIGNED = re.compile(
    r"""(\b[A-Z0-9_]*(?:TOKEN(?!IZER)|SECRET|PASSW(?:OR)?D|API_?KEY|ACCESS_?KEY)[A-Z0-9_]*"""
    r"""['"]?\s*[=:]\s*['"]?)[^\s'",]{4,}"""
)
_WANDB_KEY = re.compile(r"\b[0-9a-f]{40}\b")  # a commit looks alike

_remembered: set[str] = set()


def redacted(value: Any) -> Any:
    """The value with the secrets in its strings replaced by ``***``; dicts and lists are copied."""
    known = _known()

    def clean(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {clean(k): clean(v) for k, v in item.items()}
        if isinstance(item, list | tuple):
            return [clean(v) for v in item]
        return _cleaned(item, known) if isinstance(item, str) else item

    return clean(value)


def redacted_text(text: str) -> str:
    """The text with its secrets replaced by ``***``."""
    return _cleaned(text, _known())


def without_accounts(text: str) -> str:
    """The text without tokens and accounts in URLs, whatever the environment holds."""
    return _IN_URL.sub(f"{MARK}@", _FORMS.sub(MARK, text))


def matches(shown: Any, value: Any) -> bool:
    """Whether a value may be what stands behind a redacted one; both may be lists."""
    if isinstance(shown, list) and isinstance(value, list):
        return len(shown) == len(value) and all(map(matches, shown, value))
    if not (isinstance(shown, str) and isinstance(value, str) and MARK in shown):
        return shown == value
    return re.fullmatch(".*".join(map(re.escape, shown.split(MARK))), value, re.DOTALL) is not None


def remember(settings: Mapping[str, Any]) -> None:
    """Know the secrets in these settings from now on, wherever they turn up without their context.

    Args:
        settings: a tree of values, or the words of a command line by their keys.
    """
    for key, text in _texts(settings, ""):
        _remembered.update(_of_urls(text))
        name = key.rpartition(".")[2]
        of_environment = name.isupper() and (_SURE_NAME.search(name) or _LIKELY_NAME.search(name))
        if (of_environment or _SECRET_KEY.search(key)) and len(text) >= _SHORTEST:
            _remembered.add(text)
        if "/" not in text and not key.endswith(("revision", "commit")):
            _remembered.update(_WANDB_KEY.findall(text))


class RedactingFormatter(logging.Formatter):
    """A formatter for what goes to a file: message and traceback without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines."""
        return redacted_text(super().format(record))


def _cleaned(text: str, known: tuple[str, ...]) -> str:
    for secret in known:
        if secret in text:
            text = text.replace(secret, MARK)
    text = without_accounts(text)
    if "=" in text or ":" in text or " " in text:
        for pattern in (_IN_QUERY, _IN_HEADER, _ASSIGNED):
            text = pattern.sub(rf"\g<1>{MARK}", text)
    return text


def _known() -> tuple[str, ...]:
    """Secrets known by their value, in every spelling, the longest first."""
    named = frozenset(
        (name, value)
        for name, value in os.environ.items()
        if "://" in value or _SURE_NAME.search(name) or _LIKELY_NAME.search(name)
    )
    return _spelled(named, frozenset(_remembered))


@functools.lru_cache(maxsize=8)
def _spelled(named: frozenset[tuple[str, str]], remembered: frozenset[str]) -> tuple[str, ...]:
    secrets = set(remembered)
    for name, value in named:
        secrets.update(_of_urls(value))
        # A file that holds a secret is none (Path.exists raises for what is too long for a name).
        if not os.path.exists(value) and (  # noqa: PTH110
            _SURE_NAME.search(name)
            or (_LIKELY_NAME.search(name) and not re.fullmatch("[a-z]{,15}", value))
        ):
            secrets.update((value, value.strip(), *value.splitlines()))
    spelled = {
        spelling
        for secret in secrets
        if len(secret) >= _SHORTEST and not secret.startswith("-----")
        for spelling in (
            secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1],
            repr(secret)[1:-1], secret.replace("'", "\\'"), secret.replace("'", "''"),
            quote(secret, errors="replace"), quote(secret, "", errors="replace"),
        )
    }  # fmt: skip
    return tuple(sorted(spelled, key=lambda text: (-len(text), text)))


def _of_urls(text: str) -> Iterator[str]:
    """The passwords in the text's URLs, as they stand there, decoded, and as a header has them."""
    for found in _IN_URL.findall(text):
        account = found.removesuffix("@")
        secret = account.rpartition(":")[2]
        yield from (secret, unquote(secret), account)
        yield base64.b64encode(unquote(account).encode(errors="replace")).decode()


def _texts(tree: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value, key)
    elif isinstance(tree, str):
        yield key, tree
