"""What counts as a secret, in which spelling, and what does not."""

from __future__ import annotations

import json

import pytest

from hylorada.config import RunConfig
from hylorada.process import redaction
from hylorada.process.redaction import matches, redacted, redacted_text, remember
from hylorada.settings.fingerprint import fingerprint

SECRETS = [
    "hf_CANARY00", "hf_abcdefghijklmnopqrst", "sk-proj-abcdefgh12345678",
    "wandb_v1_abcdefghijklmnop",
    "ghp_abcdefghijklmnop1234", "AKIAABCDEFGHIJKLMNOP", "glpat-abcdefghijklmnop",
    "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM",
]  # fmt: skip
HARMLESS = [
    "hf_hub_download", "huggingface_hub.errors.HFValidationError", "task-longbench-e-and-others",
    "5e628be450b7e67fb7ae6e201bd6d8f7056f7672", "openai-community/gpt2", "/a/b@c/d", "a:b@c",
    "TOKENIZERS_PARALLELISM=(true | false)", "step 7: loss 2.5", "max_new_tokens=100",
    "http://host:8080/org/name@main", "https://host/a?b=c", "key_style=uuid", "train.lr=1e-3",
    "keys: 12345678", "tokens=12345678", "sha256 " + "0123456789abcdef" * 4,
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "x={}", "['{}']", '{{"a": "{}"}}', "in {}: no", "({})"])
def test_tokens_of_known_forms(secret: str, around: str) -> None:
    assert redacted_text(around.format(secret)) == around.format("***")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pa55@host/x", "https://***@host/x"),
        ("https://token@host", "https://***@host"),
        ("http://me:p@ss@host:80/x", "http://***@host:80/x"),
        ("see s3://me:p/a/ss@host now", "see s3://***@host now"),
        ("https://host/x?a=1&api_key=abc&b=2", "https://host/x?a=1&api_key=***&b=2"),
        ("Authorization: Basic bWU6cGFzcw==", "Authorization: Basic ***"),
        ('{"Authorization": "Bearer abc.def-123"}', '{"Authorization": "Bearer ***"}'),
        ("curl -H 'X: bearer abcdefgh1'", "curl -H 'X: bearer ***'"),
        ("export MY_API_KEY=abcd", "export MY_API_KEY=***"),
        ('{"HF_TOKEN": "abcdef"}', '{"HF_TOKEN": "***"}'),
    ],
)
def test_accounts_and_assignments(text: str, shown: str) -> None:
    assert redacted_text(text) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted_text(text) == text


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("MY_TOKEN", "correcthorse", True),
        ("my_password", "battery-staple", True),
        ("APP_SECRET", "12345678", True),
        ("SERVICE_KEY", "Staple-99", True),
        ("CLIENT_SECRET_2", "/not/a/place+x==", True),
        ("MY_TOKEN", "short", False),
        ("TOKENIZERS_PARALLELISM", "somewhat", False),
        ("KEYBOARD_LAYOUT", "interleaved", False),
        ("SSH_KEY", __file__, False),  # the place of one
        ("PLAIN", "correcthorse", False),
        ("GIT_AUTHOR_NAME", "Someone Else", False),
    ],
)
def test_values_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, secret: bool
) -> None:
    monkeypatch.setenv(name, value)
    assert (redacted_text(f"a {value} b") == "a *** b") is secret
    assert (redacted_text(f"a {value} b") == f"a {value} b") is not secret


def test_every_spelling_of_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = 'it\'s "so"\\ é\nand more&more'
    monkeypatch.setenv("A_SECRET", secret)
    spellings = [
        secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret),
        secret.replace("'", "\\'"), "and more&more",
        "it%27s%20%22so%22%5C%20%C3%A9%0Aand%20more%26more",
    ]  # fmt: skip
    for spelling in spellings:
        assert "so" not in redacted_text(spelling)
        assert "more" not in redacted_text(spelling)


def test_the_password_of_a_url_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_ENDPOINT", "https://me:hunter%2B2hunter@host")
    for text in ("hunter%2B2hunter", "hunter+2hunter", "bWU6aHVudGVyKzJodW50ZXI="):
        assert redacted_text(f"said {text}.") == "said ***."


def test_what_the_settings_hold_is_known_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_remembered", set())
    key, commit = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"
    remember({"track": {"tags": ["a", key]}, "model": {"revision": commit, "path": f"/x/{commit}"}})
    remember({"track.token": "something-else", "hub": "https://me:pass+word@host"})
    assert redacted({"a": [f"x {key}", 1, None, 2.5], key: True}) == {
        "a": ["x ***", 1, None, 2.5], "***": True
    }  # fmt: skip
    assert redacted_text(f"{commit} something-else pass+word") == f"{commit} *** ***"


@pytest.mark.parametrize(
    ("shown", "value", "same"),
    [
        ("a *** b", "a secret b", True), ("a *** b", "a secret c", False), ("***", "", True),
        ("a.b", "axb", False), (["***", "b"], ["a", "b"], True), (["***"], ["a", "b"], False),
        (3, 3, True), (3, 4, False), ("***", None, False),
    ],
)  # fmt: skip
def test_a_redacted_setting_is_that_of_any_secret(shown: object, value: object, same: bool) -> None:
    assert matches(shown, value) is same


def test_a_fingerprint_tells_nothing_of_a_password() -> None:
    config, other = RunConfig(), RunConfig()
    config.dataset.hub_id, other.dataset.hub_id = "https://me:a1@host/x", "https://me:b2@host/x"
    assert fingerprint(config) == fingerprint(other) != fingerprint(RunConfig())
