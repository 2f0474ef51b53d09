"""A field says what it is, and every rule about fields follows from what it says."""

from __future__ import annotations

import copy
import dataclasses
import runpy
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from hylorada.commands.evaluate import _of_finished_run
from hylorada.comparison.arms import setting
from hylorada.comparison.collect import Record
from hylorada.config import RunConfig, fields, to_dict
from hylorada.config.rules import FACTS, OPEN_KEYS, choices
from hylorada.errors import ConfigError, DataError
from hylorada.runner.earlier_attempt import check_continuation
from hylorada.settings import checks
from hylorada.settings.fingerprint import fingerprint

ROOT = Path(__file__).parents[1]
BASE = RunConfig()
BASE.eval.context_gain.enabled = BASE.eval.harness.enabled = True  # what is off does not count
BASE.train.task = "retrieval"
LEAVES = [key for key in FACTS if not dataclasses.is_dataclass(attrgetter(key)(BASE))]


def changed(key: str, value: Any = None) -> RunConfig:
    """The base with another value of one setting."""
    config = copy.deepcopy(BASE)
    *path, last = key.split(".")
    part = attrgetter(".".join(path))(config) if path else config
    setattr(part, last, other(key) if value is None else value)
    return config


def other(key: str) -> Any:
    value = attrgetter(key)(BASE)
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return (value * 2)[1:] + value[:1] if len(value) > 1 else [*value, *value, "x"]
    if isinstance(value, dict):
        return {**value, "x": "y"}
    if FACTS[key].choices:
        return next(choice for choice in FACTS[key].choices if choice != value)
    return f"{value}x" if isinstance(value, str) else value + 1


def test_the_document_of_the_settings_is_made_from_them():
    """`python scripts/settings_document.py` writes it again."""
    made = runpy.run_path(str(ROOT / "scripts/settings_document.py"))["document"]()
    assert (ROOT / "docs/SETTINGS.md").read_text(encoding="utf-8") == made
    assert all(f"`{key}` (" in made for key, facts in FACTS.items() if facts.unit or facts.means)


def test_every_field_says_what_it_is() -> None:
    """A unit and a range, or choices, or a meaning in words; the default is among what may be."""
    silent = []
    for key in LEAVES:
        facts, value = FACTS[key], attrgetter(key)(RunConfig())
        if isinstance(value, bool):
            said = bool(facts.means) or key.endswith("enabled")
        elif isinstance(value, int | float) or (
            isinstance(value, list) and value and not isinstance(value[0], str)
        ):
            said = bool(facts.unit) and facts.bounded
        else:
            said = bool(facts.choices or facts.means)
        if not said:
            silent.append(key)
    assert silent == []
    checks.fields(RunConfig())
    assert len(LEAVES) > 100


@pytest.mark.parametrize("key", [key for key in LEAVES if FACTS[key].bounded])
def test_what_lies_beyond_a_range_is_refused(key: str) -> None:
    facts, several = FACTS[key], isinstance(attrgetter(key)(BASE), list)
    inside = [limit for limit in (facts.least, facts.most) if limit is not None]
    beyond = [limit for limit in (facts.above, facts.below) if limit is not None and not (
        facts.zero and limit == 0)] + [float("nan"), float("inf"), -1]  # fmt: skip
    beyond += [facts.least - 1] if facts.least and not (facts.zero and facts.least == 1) else []
    beyond += [] if facts.most is None else [facts.most + 1]
    for value in [*inside, *([0] if facts.zero else [])]:
        checks.fields(changed(key, [value] if several else value))
    for value in beyond:
        with pytest.raises(ConfigError, match=rf"{key} is .*; it must be "):
            checks.fields(changed(key, [value] if several else value))


@pytest.mark.parametrize("key", [key for key in LEAVES if FACTS[key].choices])
def test_what_is_no_choice_is_refused(key: str) -> None:
    several = isinstance(attrgetter(key)(BASE), list)
    for value in FACTS[key].choices:
        checks.fields(changed(key, [value] if several else value))
    with pytest.raises(ConfigError, match=rf"{key} is 'nonsense'; choose "):
        checks.fields(changed(key, ["nonsense"] if several else "nonsense"))


def test_what_changes_nothing_is_outside_of_the_fingerprint_and_no_obstacle_to_resume(
    tmp_path: Path,
) -> None:
    state = {"identity": {"config": to_dict(BASE), "inputs": {}}}
    for key in LEAVES:
        config, aside = changed(key), FACTS[key].changes in ("nothing", "beside")
        assert (fingerprint(config) == fingerprint(BASE)) == aside, key
        if aside:
            check_continuation(state, config, tmp_path)
        else:
            inner = rf"{key}\.\w+" if key in OPEN_KEYS else key
            with pytest.raises(ConfigError, match=rf"other settings \({inner} was "):
                check_continuation(state, config, tmp_path)


def test_only_what_changes_numbers_is_compared() -> None:
    def compared(config: RunConfig) -> dict[str, Any]:
        data = {"config": to_dict(config), "model": "m", "dataset": "d", "length": 1}
        return setting(Record(Path(), data))

    product = {"train.micro_batch_size", "train.gradient_accumulation_steps"}
    for key in set(LEAVES) - product:
        same = compared(changed(key)) == compared(BASE)
        assert same == (FACTS[key].changes != "numbers"), key
    split = changed("train.micro_batch_size", 4)
    other_split = changed("train.gradient_accumulation_steps", 4)
    assert compared(split) == compared(other_split) != compared(BASE)


def test_only_what_is_so_marked_may_differ_when_a_run_is_measured_again(tmp_path: Path) -> None:
    for key in FACTS:
        error = DataError if FACTS[key].remeasured else ConfigError  # no record is there
        with pytest.raises(error):
            _of_finished_run(tmp_path, BASE, [key])


def test_what_is_said_of_a_part_holds_within() -> None:
    assert FACTS["track.tags"].changes == FACTS["track"].changes == "nothing"
    assert FACTS["method.lora.r"].changes == "arm"
    assert FACTS["method.name"].changes == "nothing"  # says otherwise
    assert FACTS["eval.perplexity.split"].remeasured
    assert choices("train.precision") == ("auto", "fp32", "bf16", "fp16")
    assert fields.topmost(["a", "a.b", "c.d", "c.d.e"]) == ("a", "c.d")


def test_a_field_without_facts_is_no_field_of_the_config() -> None:
    bare = dataclasses.make_dataclass("Bare", [("novel", int, dataclasses.field(default=3))])
    with pytest.raises(KeyError):
        fields.described(bare())
