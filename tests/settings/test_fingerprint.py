"""Which settings make a run another run: the names of directories are a promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import pytest

from hylorada import compose
from hylorada.command_line.hydra_internals import Hydra
from hylorada.command_line.overrides import known_keys, rewrite
from hylorada.config import RunConfig
from hylorada.config.rules import ASIDE_KEYS, OPEN_KEYS
from hylorada.settings.fingerprint import IMPLIED, fingerprint, run_dir, run_name


@pytest.fixture(scope="module")
def hydra() -> Iterator[Hydra]:
    with compose.opened_hydra() as session:
        yield session


def typed(hydra: Hydra, *words: str) -> RunConfig:
    return compose.to_typed(compose.compose(hydra, rewrite(words)))


def changed(key: str, value: Any) -> RunConfig:
    *path, last = key.split(".")
    result = RunConfig()
    setattr(attrgetter(".".join(path))(result) if path else result, last, value)
    return result


def leaves() -> list[str]:
    return [
        key for key in known_keys() if not dataclasses.is_dataclass(attrgetter(key)(RunConfig()))
    ]


def test_the_runs_of_the_demo_keep_their_directories(hydra: Hydra) -> None:
    """Pinned: whoever moves these moves every run that anybody has."""
    master = compose.compose(hydra, ["experiment=demo_4k"], multirun=True)
    assert [run_dir(cell.config) for cell in compose.cells(hydra, master)] == [
        "outputs/demo_4k/baseline-4k-seed0-031f2501b2",
        "outputs/demo_4k/lora-4k-seed0-532bdc8615",
        "outputs/demo_4k/hylorada-4k-seed0-5872e1f5c8",
    ]
    assert run_name(RunConfig()) == "hylorada-4k-seed0-44136fa355"  # of no difference at all


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("experiment", "mine"), ("group", "mine"), ("output_root", "elsewhere"),
        ("resume", "never"), ("track.kind", "off"), ("track.tags", ["a"]),
        ("train.save_every", 7), ("train.keep_checkpoints", 1), ("train.log_every", 5),
        ("dataset.cache_dir", "/elsewhere"), ("train.name", "mine"), ("eval.name", "mine"),
        ("length.micro_batch_size", 3), ("eval.harness.limit", 5),
        ("eval.context_gain.places", 3),
    ],
)  # fmt: skip
def test_a_setting_that_changes_no_number_is_no_other_run(key: str, value: Any) -> None:
    assert fingerprint(changed(key, value)) == fingerprint(RunConfig())


def test_every_other_setting_is_another_run() -> None:
    """All of them, each by itself; only what is switched off may be set without effect."""
    named = {}
    for key in leaves():
        value = attrgetter(key)(RunConfig())
        if any(key == name or key.startswith(f"{name}.") for name in ASIDE_KEYS):
            continue
        if key.startswith(("eval.context_gain.", "eval.harness.")) and "enabled" not in key:
            continue
        if key in OPEN_KEYS:
            named[key] = fingerprint(changed(key, {"peft_type": "IA3"}))
            continue
        other = not value if isinstance(value, bool) else (value * 2 + value[:1] or ["x"]) if (
            isinstance(value, list)
        ) else f"{value}x" if isinstance(value, str) else value + 1  # fmt: skip
        named[key] = fingerprint(changed(key, other))
    named[""] = fingerprint(RunConfig())
    assert len(set(named.values())) == len(named) > 80


@pytest.mark.parametrize(
    ("key", "spellings"),
    [
        ("dataset.path", ["a/b", "./a/b", "a//b", "a/b/", "a/./b", ".//a/b//"]),
        ("dataset.path", ["/a/b", "//a/b/"]),
        ("eval.lost_in_middle.path", ["a", "./a"]),
        ("model.path", ["./a/b", "./a/b/", ".//a/./b"]),
        ("train.lr", [1, 1.0]),
        ("eval.lost_in_middle.depths", [[0, 1], [0.0, 1.0]]),
    ],
)
def test_spellings_of_one_value_are_one_run(key: str, spellings: list[Any]) -> None:
    assert len({fingerprint(changed(key, value)) for value in spellings}) == 1


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("model.path", "org/a", "./org/a"),  # a repository, a folder
        ("dataset.path", "a/../b", "b"),  # a may be a link
        ("dataset.path", "a", "/a"),
        ("dataset.path", ".a", "a"),
    ],
)
def test_different_places_are_different_runs(key: str, one: str, other: str) -> None:
    assert fingerprint(changed(key, one)) != fingerprint(changed(key, other))


def test_every_key_says_what_goes_without_saying() -> None:
    """A new key needs a line in `IMPLIED`: with it no directory is renamed."""
    wanted = {
        key
        for key in leaves()
        if not any(key == name or key.startswith(f"{name}.") for name in ASIDE_KEYS)
    }
    assert set(IMPLIED) == wanted


def test_a_key_added_at_its_default_renames_nothing_and_a_changed_default_renames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wider = dataclasses.make_dataclass(
        "Wider", [("novel", int, dataclasses.field(default=3))], bases=(RunConfig,)
    )
    monkeypatch.setitem(IMPLIED, "novel", 3)
    assert fingerprint(wider(seed=5)) == fingerprint(RunConfig(seed=5))
    assert fingerprint(wider(seed=5, novel=4)) != fingerprint(RunConfig(seed=5))
    # Were its default 4 one day, no run of that day would take the name of one of today.
    later = dataclasses.make_dataclass(
        "Later", [("novel", int, dataclasses.field(default=4))], bases=(RunConfig,)
    )
    assert fingerprint(later()) == fingerprint(wider(novel=4)) != fingerprint(wider())


def test_the_group_is_the_folder(hydra: Hydra) -> None:
    plain, named = typed(hydra, "experiment=smoke"), typed(hydra, "experiment=smoke", "group=mine")
    assert run_dir(plain).startswith("outputs/smoke/")
    assert run_dir(named) == run_dir(plain).replace("/smoke/", "/mine/")
