"""Every option of every group composes to what it always did: the names of runs are a promise.

`presets.json` holds, for each option alone among the defaults, the name of its run, whose
fingerprint stands for all settings that count, and the other settings that differ from the
defaults'. A new option needs a line there; what a line says never changes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from hylorada import compose
from hylorada.command_line.hydra_internals import Hydra
from hylorada.command_line.overrides import rewrite
from hylorada.config import RunConfig, to_dict
from hylorada.config.rules import FACTS
from hylorada.settings.fingerprint import counted, run_name

PINNED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("presets.json").read_text())
LEAVES = [key for key in FACTS if not hasattr(attrgetter(key)(RunConfig()), "__dataclass_fields__")]
NEEDS = {"model=custom": ["model.path=a/b"]}


def options() -> list[str]:
    groups = sorted(p for p in compose.conf_dir().iterdir() if p.is_dir() and p.name != "hydra")
    return [f"{g.name}={file.stem}" for g in groups for file in sorted(g.glob("*.yaml"))]


@pytest.fixture(scope="module")
def hydra() -> Iterator[Hydra]:
    with compose.opened_hydra() as session:
        yield session


def pinned(config: RunConfig) -> dict[str, Any]:
    """The name of the run, and what differs from the defaults and does not count."""
    counts, usual = counted(to_dict(config)), RunConfig()
    aside = {
        key: value
        for key in LEAVES
        if (value := attrgetter(key)(config)) != attrgetter(key)(usual) and key not in counts
    }
    return {"run": run_name(config), **({"aside": aside} if aside else {})}


@pytest.mark.parametrize("option", options())
def test_an_option_composes_to_what_it_always_did(hydra: Hydra, option: str) -> None:
    config = compose.to_typed(compose.compose(hydra, rewrite([option, *NEEDS.get(option, [])])))
    now = pinned(config)
    assert PINNED.get(option, "no line in presets.json; add this one") == now


def test_no_option_has_gone() -> None:
    assert set(PINNED) - set(options()) == set()


def test_the_table_covers_all_settings_that_count() -> None:
    changed = RunConfig()
    changed.train.lr, changed.train.save_every = 1.0, 7
    changed.eval.context_gain.places = 3  # of what is off
    assert pinned(changed)["run"] != pinned(RunConfig())["run"]
    assert pinned(changed)["aside"] == {"train.save_every": 7, "eval.context_gain.places": 3}


@pytest.mark.parametrize(
    ("group", "lines", "expected"),
    [
        ("train", "defaults: [paper, _self_]\nlr: 1.0\n", {"lr": 1.0, "precision": "bf16"}),
        ("eval", "defaults: [quick, _self_]\nperplexity: {max_blocks: 3}\n",
         {"perplexity.max_blocks": 3, "perplexity.max_tokens": 0, "lost_in_middle.enabled": False}),
        ("method", "defaults: [lora, _self_]\nlora: {r: 3}\n",
         {"lora.r": 3, "lora.init": "kaiming"}),
    ],
)  # fmt: skip
def test_an_option_of_ones_own_may_inherit_from_each(
    hydra: Hydra, tmp_path: Path, group: str, lines: str, expected: dict[str, Any]
) -> None:
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(lines)
    words = [f"hydra.searchpath=['file://{tmp_path}']", f"{group}=mine"]
    part = getattr(compose.to_typed(compose.compose(hydra, words)), group)
    assert {key: attrgetter(key)(part) for key in expected} == expected


@pytest.mark.parametrize("option", ["train=paper", "eval=longbench"])
def test_an_option_that_names_few_keys_is_shown_with_all(hydra: Hydra, option: str) -> None:
    composed = compose.compose(hydra, [option])  # what --cfg job prints
    assert [key for key in LEAVES if _absent(composed, key)] == []


def _absent(node: Any, key: str) -> bool:
    *path, last = key.split(".")
    for name in path:
        node = node[name]
    return last not in node


OVERLAYS = compose.conf_dir() / "experiment"


def cells_of(overlay: str) -> set[tuple[tuple[str, str], ...]]:
    """The cells of an overlay, as it and those that it builds on write them."""
    axes: dict[str, str] = {}

    def read(name: str) -> None:
        tree = yaml.safe_load((OVERLAYS / f"{name}.yaml").read_text(encoding="utf-8"))
        for below in tree["defaults"]:
            if isinstance(below, dict) and "override /length" in below:
                axes["length"] = below["override /length"]
            elif isinstance(below, str) and below != "_self_":
                read(below)
        axes.update(((tree.get("hydra") or {}).get("sweeper") or {}).get("params") or {})

    read(overlay)
    values = {key: [v.strip() for v in str(text).split(",")] for key, text in axes.items()}
    return {
        tuple(sorted(zip(values, each, strict=True)))
        for each in itertools.product(*values.values())
    }


COSTS = {
    file.stem: found
    for file in sorted(OVERLAYS.glob("*.yaml"))
    if (
        found := re.search(r"Cost: (\d+) runs(?:[^;]*? beside those of ([^,]*))?", file.read_text())
    )
}


@pytest.mark.parametrize("overlay", COSTS)
def test_an_overlay_costs_as_many_runs_as_it_says(overlay: str) -> None:
    """The baseline trains nothing; what another overlay runs already is left out."""
    count, others = COSTS[overlay].groups()
    cells = cells_of(overlay)
    for other in (others or "").split(" and ") if others else []:
        cells -= cells_of(other)
    assert len([cell for cell in cells if ("method", "baseline") not in cell]) == int(count)
