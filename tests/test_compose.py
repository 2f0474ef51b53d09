"""Every YAML file becomes a valid RunConfig, and nothing else does."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from helpers.marks import LONG, SLOW, thinned

from hylorada import compose
from hylorada.command_line.hydra_internals import Hydra
from hylorada.command_line.overrides import known_keys, rewrite
from hylorada.command_line.suggest import nearest
from hylorada.config import RunConfig, to_dict
from hylorada.errors import ConfigError, DataError
from hylorada.settings import check_settings
from hylorada.settings.fingerprint import fingerprint, run_dir, run_name

LENGTHS = {"512": 512, "1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192, "16k": 16384, "32k": 32768}


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (compose.conf_dir() / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def hydra() -> Iterator[Hydra]:
    with compose.opened_hydra() as session:
        yield session


def typed(hydra: Hydra, *words: str) -> RunConfig:
    """Composed once for the same words: Hydra takes a tenth of a second each time."""
    if words not in _TYPED:
        _TYPED[words] = compose.to_typed(compose.compose(hydra, rewrite(words)))
    return copy.deepcopy(_TYPED[words])


_TYPED: dict[tuple[str, ...], RunConfig] = {}


def set_key(config: RunConfig, key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    part = attrgetter(".".join(parents))(config) if parents else config
    assert hasattr(part, leaf)
    setattr(part, leaf, value)


def grid(hydra: Hydra, *words: str) -> list[RunConfig]:
    master = compose.compose(hydra, rewrite(words), multirun=True)
    return [cell.config for cell in compose.cells(hydra, master)]


def test_the_defaults_in_yaml_are_those_of_the_dataclasses(hydra: Hydra) -> None:
    assert typed(hydra) == RunConfig()


def test_all_promised_options_exist() -> None:
    assert set(options("length")) == set(LENGTHS)
    single = {"position_bias", "landmark", "s2", "embeddings", "norms"}
    assert set(options("method")) == (
        {"baseline", "lora", "rslora", "dora", "longlora", "hylorada", "hylorada_leaky_landmark"}
        | {f"hylorada_no_{name}" for name in single}
        | {
            f"rslora_{name}"
            for name in {*single, "noise_floor", "placebo", "position_bias_landmark"}
        }
        | {"lora_embeddings_norms", "lora_norms", "hylorada_no_rslora", "pose"}
        | {"vera", "ia3", "loha"}
    )
    assert set(options("model")) == {
        "tiny", "gpt2", "gpt2-medium", "pythia-160m", "qwen2.5-0.5b", "llama-3.2-1b", "custom",
        "smollm2", "smollm2-hub",
    }  # fmt: skip


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_is_its_name_in_tokens_and_sets_the_batch_of_the_demo(
    hydra: Hydra, length: str
) -> None:
    config = typed(hydra, f"length={length}")
    assert config.length.name == length
    assert config.length.max_length == LENGTHS[length]
    tokens = config.train.micro_batch_size * config.train.gradient_accumulation_steps
    assert tokens * LENGTHS[length] == max(4096, LENGTHS[length])


@pytest.mark.slow
def test_each_method_is_valid_at_each_length(hydra: Hydra) -> None:
    refused = set()
    for method, length in itertools.product(options("method"), LENGTHS):
        # groups are independent but for the demo's batch, so each is composed once
        config = typed(hydra, f"method={method}")
        config.length = typed(hydra, f"length={length}").length
        assert config.method.name == method
        try:
            check_settings(config)
        except ConfigError as error:
            refused.add((method, length, str(error).partition(" is ")[0]))
    # shifted attention switched on by hand needs more than one group of 2048 tokens
    key = "method.s2_attn.group_size"
    assert refused == {("rslora_s2", short, key) for short in ("512", "1k", "2k")}


def components(config: RunConfig) -> dict[str, str]:
    method = config.method
    return {
        "position_bias": method.position_bias.enabled,
        "landmark": method.landmark.enabled,
        "s2": method.s2_attn.enabled,
        "embeddings": method.train_embeddings,
        "norms": method.train_norms,
    }


def test_ablation_rows_differ_in_exactly_one_component(hydra: Hydra) -> None:
    full, bare = typed(hydra, "method=hylorada"), typed(hydra, "method=rslora")
    assert set(components(full).values()) == {"auto"}
    assert set(components(bare).values()) == {"false"}
    for name in components(full):
        without, plus = (
            typed(hydra, f"method=hylorada_no_{name}"),
            typed(hydra, f"method=rslora_{name}"),
        )
        assert components(without) == components(full) | {name: "false"}
        assert components(plus) == components(bare) | {name: "true"}
        assert without.method.lora == full.method.lora == plus.method.lora == bare.method.lora


def test_every_method_extends_the_position_range_alike(hydra: Hydra) -> None:
    ranges = [typed(hydra, f"method={m}").method.position_range for m in options("method")]
    assert all(each == ranges[0] for each in ranges)


@pytest.mark.parametrize("group", ["model", "dataset", "train", "eval", "track"])
def test_every_option_of_a_group_is_valid(
    hydra: Hydra, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # as on a machine that fetched no model
    needs = {
        "model=custom": "model.path=a/b",
        "dataset=local": "dataset.path=.",
        "dataset=hub": "dataset.hub_id=a/b",
        "eval=paper": "dataset=wikitext2",
    }
    for option in options(group):
        word = f"{group}={option}"
        config = typed(hydra, word, *([needs[word]] if word in needs else []))
        if word == "model=smollm2":
            with pytest.raises(DataError, match="run: hylorada-fetch smollm2") as refusal:
                check_settings(config)
            assert "\n" not in str(refusal.value)
        else:
            check_settings(config)
        part = getattr(config, group)
        expected = "a/b" if option in ("custom", "hub") else option
        assert (part.kind if group == "track" else part.name) == expected


def valid(overlay: str, configs: list[RunConfig]) -> None:
    for config in configs:
        if config.model.name == "smollm2":
            config.model.path = "a/b"  # not fetched on every machine
        check_settings(config)
        assert config.experiment == overlay
    assert len({run_dir(config) for config in configs}) == len(configs)


@pytest.mark.parametrize("overlay", options("experiment"))
def test_every_experiment_overlay_gives_valid_runs(hydra: Hydra, overlay: str) -> None:
    """Those at both ends of its axes, which differ the most; each of them: slow."""
    lines = (compose.conf_dir() / "experiment" / f"{overlay}.yaml").read_text().splitlines()
    master = compose.compose(hydra, rewrite([f"experiment={overlay}"]), multirun=True)
    axes = {
        key: re.split(r",\s*", str(values).strip())
        for key, values in (master.hydra.sweeper.params or {}).items()
    }
    command = f"# hylorada-train {'-m ' if axes else ''}experiment={overlay}"
    assert any(line.split(" dataset.path=")[0] == command for line in lines[1:3])
    assert set(axes.get("method", [])) <= set(options("method"))
    ends = [
        typed(
            hydra,
            f"experiment={overlay}",
            *(f"{key}={values[end]}" for key, values in axes.items()),
        )
        for end in ((0, -1) if axes else (0,))
    ]
    valid(overlay, ends)


@pytest.mark.parametrize("overlay", thinned(options("experiment"), 3, often=SLOW, seldom=LONG))
def test_every_run_of_a_sweep_is_valid(hydra: Hydra, overlay: str) -> None:
    """Two methods, one seed: time."""
    master = compose.compose(hydra, rewrite([f"experiment={overlay}"]), multirun=True)
    if axes := master.hydra.sweeper.params:
        methods = re.split(r",\s*", axes.method.strip())
        ends = f"method={','.join(dict.fromkeys([methods[0], methods[-1]]))}"  # or the only one
        runs = grid(hydra, f"experiment={overlay}", "seed=0", ends)
        assert len(runs) > 1
        valid(overlay, runs)


@pytest.mark.parametrize("length", LENGTHS)
def test_everything_can_be_measured_at_each_length(hydra: Hydra, length: str) -> None:
    config = typed(hydra, "eval=full")
    config.length = typed(hydra, f"length={length}").length
    check_settings(config)
    assert config.eval.lost_in_middle.enabled
    assert config.eval.context_gain.enabled


def test_experiments_lie_flat() -> None:
    assert not [p for p in (compose.conf_dir() / "experiment").iterdir() if p.is_dir()]


def test_no_targets_and_no_packages_but_in_experiments() -> None:
    for file in compose.conf_dir().rglob("*.yaml"):
        text = file.read_text()
        assert "_target_" not in text
        assert ("@package" in text) == (file.parent.name == "experiment")


def test_a_sweep_list_of_bare_numbers_and_names(hydra: Hydra) -> None:
    runs = grid(hydra, "length=512,4k", "seed=0,1")
    assert len(runs) == 4
    assert {c.length.max_length for c in runs} == {512, 4096}
    assert len({run_name(c) for c in runs}) == 4


@pytest.mark.parametrize("length", ["512,2k", "'512','2k'", "'512',2k"])
def test_a_sweep_in_an_overlay_may_or_may_not_quote_its_lengths(
    hydra: Hydra, tmp_path: Path, length: str
) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\nexperiment: mine\n"
        f'hydra:\n  sweeper:\n    params:\n      length: "{length}"\n      seed: 3\n'
    )
    words = [f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"]
    runs = grid(hydra, *words)
    assert [c.length.max_length for c in runs] == [512, 2048]
    assert {c.seed for c in runs} == {3}


@pytest.mark.slow
def test_several_overlays_are_one_sweep_after_the_other(hydra: Hydra) -> None:
    def cells(words: str) -> list[RunConfig]:
        sweeps = compose.by_experiment(hydra, rewrite(words.split(), multirun=True))
        found = []
        for sweep in sweeps:
            master = compose.compose(hydra, sweep, multirun=True)
            alone = len(sweeps) == 1
            found += [cell.config for cell in compose.cells(hydra, master, alone=alone)]
        return found

    first, second = cells("experiment=demo_4k seed=0,1"), cells("experiment=retrieval_2k seed=0,1")
    assert cells("experiment=demo_4k,retrieval_2k seed=0,1") == [*first, *second]
    assert len(first) == len(second) == 6
    both = cells("experiment=smoke,demo_4k")
    assert [config.experiment for config in both] == ["smoke"] + 3 * ["demo_4k"]
    with pytest.raises(ConfigError, match="experiment=dmo: there is no such overlay"):
        cells("experiment=demo_4k,dmo")


def test_the_command_line_replaces_an_axis_of_an_overlay(hydra: Hydra) -> None:
    runs = grid(hydra, "experiment=demo_4k", "method=lora", "seed=7,8")
    assert [(c.method.name, c.seed) for c in runs] == [("lora", 7), ("lora", 8)]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("length=512", ["length='512'"]),
        ("length='512'", ["length='512'"]),
        ("length=512,2k,16k", ["length='512',2k,16k"]),
        ("length=choice(512,4k)", ["length=choice('512',4k)"]),
        ("length.max_length=512", ["length.max_length=512"]),
        ("model=gpt2", ["model=gpt2"]),
        ("model=org/name", ["model=custom", "model.path='org/name'"]),
        ("model=./a/b", ["model=custom", "model.path='./a/b'"]),
        ("model='/a b'", ["model=custom", "model.path='/a b'"]),
        ("model=gpt2,org/name", ["model=gpt2,org/name"]),
        ("launcher=slurm", ["hydra/launcher=slurm"]),
    ],
)
def test_words_are_rewritten_for_hydra(word: str, expected: list[str]) -> None:
    assert rewrite([word]) == expected
    assert rewrite(expected) == expected


def test_free_form_models_alone_and_in_a_sweep(hydra: Hydra) -> None:
    config = typed(hydra, "model=org/name")
    assert (config.model.name, config.model.path) == ("org/name", "org/name")
    runs = grid(hydra, "model=tiny,org/name,./folder")
    assert [c.model.path for c in runs] == ["embedded", "org/name", "./folder"]


@pytest.mark.parametrize(
    ("given", "stored"),
    [("true", "true"), ("on", "true"), ("Yes", "true"), ("false", "false"), ("off", "false"),
     ("no", "false"), ("auto", "auto"), ("'true'", "true")],
)  # fmt: skip
def test_switches_take_every_spelling(hydra: Hydra, given: str, stored: str) -> None:
    config = typed(hydra, f"method.landmark.enabled={given}", f"method.train_norms={given}")
    assert config.method.landmark.enabled == config.method.train_norms == stored


def test_a_plain_mapping_is_typed_as_strictly() -> None:
    config = compose.to_typed({"seed": 3, "method": {"train_norms": True}})
    assert (config.seed, config.method.train_norms) == (3, "true")
    with pytest.raises(ConfigError, match=r"unknown key train\.lrr; did you mean train\.lr\?"):
        compose.to_typed({"train": {"lrr": 1.0}})
    with pytest.raises(ConfigError, match="one value, not a group"):
        compose.to_typed({"seed": {"x": 1}})


def test_each_typed_config_is_fresh(hydra: Hydra) -> None:
    composed = compose.compose(hydra, [])
    compose.to_typed(composed).method.lora.target_modules.append("x")
    assert compose.to_typed(composed).method.lora.target_modules == ["auto"]


def test_a_file_of_prompts_that_is_not_there_is_missing_data(hydra: Hydra) -> None:
    config = typed(hydra, "eval=full", "eval.lost_in_middle.path=/no/such.jsonl")
    with pytest.raises(DataError, match=r"eval\.lost_in_middle\.path: there is no file /no/such"):
        check_settings(config)


def test_only_settings_that_change_the_numbers_change_the_fingerprint(hydra: Hydra) -> None:
    base = fingerprint(typed(hydra))
    for word in ("output_root=elsewhere", "track=off", "resume=never"):
        assert fingerprint(typed(hydra, word)) == base
    for word in ("seed=1", "length=8k", "method=lora"):
        assert fingerprint(typed(hydra, word)) != base


@pytest.mark.parametrize(
    ("word", "found"),
    [("method.lora.rr", "method.lora.r"), ("lr", "train.lr"), ("lenght", "length"),
     ("landmarks.enabled", "method.landmark.enabled"),
     ("max_lenght", "length.max_length"), ("zzz", "")],
)  # fmt: skip
def test_the_nearest_key(word: str, found: str) -> None:
    assert nearest(word, known_keys()) == found


@pytest.mark.parametrize(
    ("words", "peft"),
    [
        (["method=ia3"], {"peft_type": "IA3"}),
        (["method=vera", "method.peft.r=8"], {"peft_type": "VERA", "r": 8}),
        (
            ["method=vera", "method.peft.target_modules=[q_proj,v_proj]"],
            {"peft_type": "VERA", "r": 256, "target_modules": ["q_proj", "v_proj"]},
        ),
        (
            ["method=vera", "method.peft.target_modules=.*(a|b)$"],
            {"peft_type": "VERA", "r": 256, "target_modules": ".*(a|b)$"},
        ),
        (
            ["method=baseline", "method.name=mine", "method.peft={peft_type: OFT, r: 0}"],
            {"peft_type": "OFT", "r": 0},
        ),
        (["method=lora"], {}),
    ],
)
def test_settings_of_another_method_of_peft_may_be_typed(
    hydra: Hydra, words: list[str], peft: dict[str, Any]
) -> None:
    config = typed(hydra, *rewrite(words))
    check_settings(config)
    assert config.method.peft == peft
    assert compose.to_typed(to_dict(config)) == config  # as a record has it


def test_settings_of_another_method_of_peft_may_be_swept(hydra: Hydra) -> None:
    runs = grid(hydra, "method=vera", "method.peft.r=8,16")
    assert [config.method.peft["r"] for config in runs] == [8, 16]
    assert len({fingerprint(config) for config in runs}) == 2


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("", {"seed": -1}, "seed"),
    ("", {"device": "gpu"}, "device"),
    ("", {"resume": "maybe"}, "resume"),
    ("", {"output_root": ""}, "output_root"),
    ("", {"length.max_length": 1}, "length.max_length"),
    ("", {"method.name": "a b"}, "method.name"),
    ("", {"method.lora.r": 0}, "method.lora.r"),
    ("", {"train.task": "retrival"}, "did you mean retrieval"),
    ("train=retrieval", {"train.max_steps": 0, "train.max_tokens": 9}, "differ in scored tokens"),
    ("train=retrieval", {"dataset.packing": "reset"}, "packs no documents"),
    ("train=retrieval", {"train.retrieval.held_out": [0, 1]}, "depths has 0.25, which"),
    ("train=retrieval", {"train.retrieval.held_out": [1.5]}, "from 0 to 1"),
    ("train=retrieval", {"train.retrieval.key_style": "hexa"}, "did you mean hex"),
    ("train=retrieval", {"train.retrieval.key_style": "hex"}, "set both alike"),
    ("", {"train.retrieval.items": 9}, "no effect with train.task=text"),
    ("", {"eval.perplexity.conventions": ["paper"]}, "paper is the mean over WikiText's"),
    (
        "",
        {"eval.perplexity.conventions": ["word"], "eval.perplexity.max_blocks": 4},
        "word is a number of the whole split",
    ),
    ("", {"method.lora.lora_alpha": 0}, "method.lora.lora_alpha"),
    ("", {"method.lora.lora_dropout": 1}, "method.lora.lora_dropout"),
    ("", {"method.lora.init": "orthogonl"}, "did you mean orthogonal"),
    ("", {"method.lora.target_modules": []}, "method.lora.target_modules"),
    ("", {"method.lora.target_modules": ["q_proj", "q_proj"]}, "names q_proj 2 times"),
    ("", {"method.position_bias.buckets": 0}, "method.position_bias.buckets"),
    ("", {"method.position_bias.bucketing": "log"}, "did you mean log2"),
    ("", {"method.landmark.pooling": "mean"}, "method.landmark.pooling"),
    ("", {"method.s2_attn.group_size": 2047}, "even"),
    ("", {"method.s2_attn.group_size": -2}, "method.s2_attn.group_size"),
    ("", {"method.s2_attn.enabled": "true", "method.s2_attn.group_size": 4096}, "whole sequence"),
    ("method=longlora", {"length.max_length": 4100}, "length / 4"),
    ("", {"method.s2_attn.enabled": "false", "method.s2_attn.in_evaluation": True}, "no effect"),
    ("method=baseline", {"method.train_norms": "true"}, "nothing is attached"),
    ("", {"method.position_range.rope_factor": 0.5}, "rope_factor"),
    (
        "",
        {"method.position_range.rope_type": "none", "method.position_range.rope_factor": 2},
        "no effect",
    ),
    ("", {"model.revision": "main"}, "model.revision"),
    ("", {"model.attn_implementation": ""}, "model.attn_implementation"),
    ("model=custom", {}, "model.path is empty"),
    ("", {"dataset.kind": "wikitex"}, "did you mean wikitext"),
    ("", {"dataset.path": "."}, "dataset=local"),
    ("dataset=local", {}, "dataset.path"),
    ("dataset=wikitext2", {"dataset.hub_id": ""}, "dataset.hub_id"),
    ("", {"dataset.tasks": ["qasper"]}, "dataset.tasks"),
    ("dataset=longbench", {"dataset.tasks": ["qasper", "qasper"]}, "names qasper 2 times"),
    ("", {"dataset.packing": "all"}, "dataset.packing"),
    ("", {"dataset.text_column": ""}, "dataset.text_column"),
    ("", {"train.max_tokens": 5}, "exactly one"),
    ("", {"train.max_steps": 0}, "exactly one"),
    ("", {"train.epochs": -1}, "train.epochs"),
    ("", {"train.lr": 0}, "train.lr"),
    ("", {"train.lr": math.inf}, "train.lr"),
    ("", {"train.lr_scale.lora_B": 0}, "train.lr_scale.lora_B is 0; it must be above 0"),
    ("method=lora", {"train.lr_scale.landmark": 2}, "method.landmark.enabled=false: nothing of"),
    ("method=hylorada_no_norms", {"train.lr_scale.norms": 2}, "or method.train_norms to true"),
    ("method=vera", {"train.lr_scale.position_bias": 2}, "no effect with method.peft (VERA)"),
    ("", {"train.warmup_ratio": 1}, "train.warmup_ratio"),
    ("", {"train.min_lr_ratio": 1.5}, "train.min_lr_ratio"),
    ("", {"train.precision": "fp8"}, "train.precision"),
    ("", {"train.gradient_checkpointing_every": 2}, "gradient_checkpointing=false"),
    ("", {"train.gradient_checkpointing_offload": True}, "gradient_checkpointing=false"),
    ("", {"train.loss_chunk": -1}, "train.loss_chunk"),
    ("", {"train.compile": "all"}, "train.compile"),
    ("train=paper", {"train.compile": "layers"}, "exclude each other"),
    (
        "",
        {"train.compile": "layers", "method.s2_attn.largest_group": 4096},
        "train.compile=layers and method.s2_attn.largest_group exclude each other",
    ),
    ("eval=quick", {"eval.perplexity.conventions": []}, "eval measures nothing"),
    ("", {"eval.perplexity.conventions": ["blocks", "blocks"]}, "each once"),
    ("", {"eval.perplexity.conventions": ["block"]}, "did you mean blocks"),
    ("", {"eval.perplexity.split": "tset"}, "did you mean test"),
    ("", {"eval.perplexity.stride": 4097}, "eval.perplexity.stride"),
    ("", {"eval.perplexity.conventions": ["blocks"], "eval.perplexity.stride": 64}, "no effect"),
    ("eval=retrieval", {"eval.lost_in_middle.enabled": False}, "eval measures nothing"),
    ("eval=full", {"eval.lost_in_middle.form": "passkeys"}, "did you mean passkey"),
    ("eval=full", {"eval.lost_in_middle.key_style": "md5"}, "eval.lost_in_middle.key_style"),
    ("eval=full", {"eval.lost_in_middle.examples": 0}, "eval.lost_in_middle.examples"),
    ("eval=full", {"eval.lost_in_middle.depths": []}, "at least one"),
    ("eval=full", {"eval.lost_in_middle.depths": [0.5, 0.5]}, "each once"),
    ("eval=full", {"eval.lost_in_middle.depths": [0.0, 50.0]}, "from 0 to 1"),
    ("eval=full", {"eval.lost_in_middle.scorings": []}, "ranked, generated or both"),
    ("eval=full", {"eval.lost_in_middle.scorings": ["rank"]}, "did you mean ranked"),
    ("eval=full", {"eval.lost_in_middle.max_new_tokens": 9}, "without the generated scoring"),
    ("eval=full", {"eval.lost_in_middle.items": 1}, "2 or more"),
    ("eval=full", {"eval.lost_in_middle.items": -3}, "eval.lost_in_middle.items"),
    (
        "eval=full",
        {"eval.lost_in_middle.path": __file__, "eval.lost_in_middle.items": 75},
        "items has no effect with a path",
    ),
    (
        "eval=full",
        {"eval.lost_in_middle.form": "passkey", "eval.lost_in_middle.path": __file__},
        "no effect with form=passkey",
    ),
    (
        "eval=full",
        {"eval.lost_in_middle.form": "passkey", "eval.lost_in_middle.key_style": "hex"},
        "leave it at uuid",
    ),
    ("eval=full", {"eval.lost_in_middle.form": "nq"}, "published oracle file"),
    (
        "eval=full",
        {"eval.lost_in_middle.form": "nq", "eval.lost_in_middle.path": __file__},
        "documents of a prompt",
    ),
    (
        "eval=full",
        {
            "eval.lost_in_middle.form": "nq",
            "eval.lost_in_middle.path": __file__,
            "eval.lost_in_middle.items": 10,
        },
        "no candidates to rank",
    ),
    ("eval=full", {"eval.context_gain.targets": 0}, "eval.context_gain.targets"),
    ("eval=full", {"eval.context_gain.places": 0}, "eval.context_gain.places"),
    ("eval=full", {"eval.context_gain.contexts": [0, 64]}, "eval.context_gain.contexts"),
    ("eval=full", {"eval.context_gain.contexts": [4096, 8192]}, "1 fit the window of 4096"),
    ("", {"track.kind": "of"}, "did you mean off"),
    ("", {"integrity.enabled": False, "integrity.allow_leak": True}, "no effect"),
]


@pytest.mark.parametrize(
    ("group", "values", "said"), REFUSED, ids=[" ".join([g, *v]).strip() for g, v, _ in REFUSED]
)
def test_wrong_settings_are_refused_in_one_line(
    hydra: Hydra, group: str, values: dict[str, Any], said: str
) -> None:
    config = typed(hydra, *filter(None, [group]))
    for key, value in values.items():
        set_key(config, key, value)
    with pytest.raises(ConfigError) as caught:
        check_settings(config)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_learning_rates_of_groups_are_typed_and_carried_by_the_baseline(hydra: Hydra) -> None:
    for method in ("lora", "baseline", "vera"):
        config = typed(hydra, f"method={method}", "train=paper", "train.lr_scale.lora_B=16")
        check_settings(config)
        assert (config.train.lr_scale.lora_B, config.train.lr_scale.lora_A) == (16.0, 1.0)


def test_s2_by_the_adaptive_rule_is_never_refused_for_its_group(hydra: Hydra) -> None:
    for length in LENGTHS:
        check_settings(typed(hydra, f"length={length}"))


def test_a_missing_folder_is_missing_data_not_a_wrong_setting(hydra: Hydra) -> None:
    for words in (["model=./no/such"], ["dataset=local", "dataset.path=./no/such"]):
        with pytest.raises(DataError, match="no/such"):
            check_settings(typed(hydra, *words))


def test_every_number_in_the_tree_has_a_refused_value() -> None:
    """A range forgotten in `check_settings` shows here: minus one is wrong for every number."""
    forgotten = []
    for key in known_keys():
        config = RunConfig()
        value = attrgetter(key)(config)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        set_key(config, key, type(value)(-1))
        try:
            check_settings(config)
        except ConfigError as error:
            if key.rpartition(".")[2] in str(error):
                continue
        forgotten.append(key)
    assert forgotten == []


def test_every_field_of_the_tree_can_be_set_on_the_command_line(hydra: Hydra) -> None:
    composed = compose.compose(hydra, [])

    def missing(part: object, node: object, prefix: str) -> Iterator[str]:
        for item in dataclasses.fields(part):  # type: ignore[arg-type]
            value = getattr(part, item.name)
            if item.name not in node:  # type: ignore[operator]
                yield f"{prefix}{item.name}"
            elif dataclasses.is_dataclass(value):
                yield from missing(value, node[item.name], f"{prefix}{item.name}.")  # type: ignore[index]

    assert list(missing(RunConfig(), composed, "")) == []
