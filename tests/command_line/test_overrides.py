"""What a user types, and what it means: nothing silently else, and a path as it stands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest

from hylorada import compose
from hylorada.command_line.hydra_internals import Hydra
from hylorada.command_line.other_trainers import _BY_NAME, _MEANT
from hylorada.command_line.overrides import (
    known_keys,
    quoted,
    rewrite,
    unknown_flag,
    unknown_key,
    unquoted,
)
from hylorada.config import RunConfig
from hylorada.config.rules import HUB_KEYS, LOCAL_KEYS
from hylorada.errors import ConfigError
from hylorada.settings.fingerprint import run_name

ODD = [
    "a=b", "~tilde", "a~", "(x)", "a(b)", "choice(a,b)", "it's", "'", '"', 'say "so"', "#1", "a #b",
    "[a]", "[a", "a]", "{a}", "{", "a,b", ",", "a:b", "C:\\x", "$HOME", "a$", "a&b", "a;b",
    "two  blanks", "путь", "目录", "😀", "é", "1e3", "007", "true", "2024", "-a", "a\\", "a\\'b",
    "${x}", "${seed}x", "${", "${oc.env:HOME}", "\\${x}", "a`b", "!", "*", "a|b>c<d", "%20", "@",
    "+", "a\nb",
]  # fmt: skip
PLACES = ["dataset.path", "output_root", "dataset.cache_dir", "eval.lost_in_middle.path",
          "eval.harness.longbench_path", "model.path"]  # fmt: skip


@pytest.fixture
def hydra() -> Iterator[Hydra]:
    with compose.opened_hydra() as session:
        yield session


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def typed(hydra: Hydra, *typed_words: str) -> RunConfig:
    return compose.to_typed(compose.compose(hydra, rewrite(typed_words)))


def grid(hydra: Hydra, *typed_words: str) -> list[RunConfig]:
    master = compose.compose(hydra, rewrite(typed_words, multirun=True), multirun=True)
    return [cell.config for cell in compose.cells(hydra, master)]


def test_the_places_are_all_that_the_tree_has() -> None:
    assert set(PLACES) | {"model.name"} == LOCAL_KEYS | HUB_KEYS


def test_any_path_means_itself_whether_it_is_there_or_not(hydra: Hydra) -> None:
    """All odd names at once, each in another key; once as files that exist, once not."""
    for there in (False, True):
        for number in range(0, len(ODD), len(PLACES)):
            given = dict(zip(PLACES, ODD[number:], strict=False))
            if not there:
                # These refer to a setting, or are several values, where no such file exists.
                given = {
                    key: name
                    for key, name in given.items()
                    if name not in ("${seed}x", "${oc.env:HOME}")
                    and not (key == "model.path" and "," in name)
                }
            for name in given.values():
                if there:
                    Path(name).touch()
            config = typed(hydra, *(f"{key}={name}" for key, name in given.items()))
            assert {key: attrgetter(key)(config) for key in given} == given


@pytest.mark.slow
def test_any_path_without_a_comma_means_itself_in_a_sweep(hydra: Hydra) -> None:
    names = ["a=b", "it's", "[a", "a:b", "#1", "😀", "007", "a\\", "${x}", "${oc.env:HOME}", "a b"]
    for name in names:
        Path(name).touch()
    configs = grid(hydra, f"dataset.path={','.join(names)}")
    assert [config.dataset.path for config in configs] == names


def test_a_comma_in_a_sweep_is_explained(hydra: Hydra) -> None:
    Path("a,b").touch()
    with pytest.raises(ConfigError, match=r"\"dataset\.path='a,b'\""):
        rewrite(["dataset.path=a,b"], multirun=True)
    assert [c.dataset.path for c in grid(hydra, "dataset.path='a,b'", "seed=0,1")] == ["a,b"] * 2
    Path("a").touch()
    Path("b").touch()
    assert [c.dataset.path for c in grid(hydra, "dataset.path=a,b")] == ["a", "b"]


def test_a_forgotten_m_is_not_taken_for_a_path(hydra: Hydra) -> None:
    Path("a").touch()
    for word in ("dataset.path=a,c", "model=tiny,gpt2", "model.path=a,c", "method=lora,dora"):
        with pytest.raises(ConfigError, match="has several values; add -m to run each"):
            typed(hydra, word)
    with pytest.raises(ConfigError, match=r"as in -m method=a,b$"):
        typed(hydra, "method=lora,dora")


def test_the_quotes_of_hydra_still_count(hydra: Hydra) -> None:
    assert typed(hydra, "output_root='a\\'b c'").output_root == "a'b c"
    assert typed(hydra, 'output_root="a b"').output_root == "a b"
    Path("'x'").touch()
    assert typed(hydra, "output_root='x'").output_root == "'x'"  # which is there


def test_a_tilde_is_the_home(hydra: Hydra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = typed(hydra, "dataset.path=~/texts/", "model=~/a b", "output_root=~")
    assert (config.dataset.path, config.output_root) == ("/home/me/texts/", "/home/me")
    assert (config.model.path, config.model.name) == ("/home/me/a b", "/home/me/a b")


@pytest.mark.slow
def test_any_folder_is_a_model(hydra: Hydra) -> None:
    for name in ("it's", "a,b", "${x}", "plain"):
        Path(name).mkdir()
        config = typed(hydra, f"model={name}")
        assert (config.model.path, config.model.name) == (f"./{name}", f"./{name}")
        assert typed(hydra, f"model=./{name}/").model.path == f"./{name}/"
    Path("gpt2").mkdir()
    assert typed(hydra, "model=gpt2").model.path == "openai-community/gpt2"
    models = grid(hydra, "model=tiny,./it's,org/name,plain")
    assert [c.model.path for c in models] == ["embedded", "./it's", "org/name", "./plain"]


def test_a_path_alone_does_not_bear_the_name_of_the_default(hydra: Hydra) -> None:
    for path in ("./a.gguf", "org/name"):
        config = typed(hydra, f"model.path={path}")
        assert (config.model.name, config.model.path) == (path, path)
    copy = typed(hydra, "model=gpt2", "model.path=./copy of gpt2")
    assert (copy.model.name, copy.model.path) == ("gpt2", "./copy of gpt2")
    assert typed(hydra, "model.path=./a", "model.name=b").model.name == "b"
    assert rewrite(rewrite(["model.path=./a"])) == rewrite(["model.path=./a"])
    models = grid(hydra, "model.path=./a,./b")
    assert [c.model.name for c in models] == ["./a", "./b"]


@pytest.mark.parametrize("name", [n for n in ODD if "\n" not in n])
def test_quoting_is_undone_by_hydra(name: str) -> None:
    assert unquoted(quoted(name)) == name
    word = f"dataset.path={name}"
    assert rewrite(rewrite([word])) == rewrite([word])


@pytest.mark.parametrize("name", ["it's [a], {b}", "目录", "a#b=c", "plain"])
def test_groups_of_a_folder_with_any_name(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    from hylorada import cli

    folder = Path(name) / "length"
    folder.mkdir(parents=True)
    (folder / "3000.yaml").write_text("defaults: [4k]\nname: mine\n")
    for words in (["length=3000", "--config-dir", name], [f"--config-dir={name}", "length=3000"]):
        assert cli.train([*words, "--cfg", "job", "-p", "length"]) == 0
        assert "name: mine" in capfd.readouterr().out


def test_nothing_is_read_from_the_environment(
    hydra: Hydra, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CANARY", "yellow-bird")
    (tmp_path / "track").mkdir()
    (tmp_path / "track" / "mine.yaml").write_text(
        "defaults: [offline]\ntags: ['${oc.env:CANARY}']\n"
    )
    for words in (
        ["track.tags=[${oc.env:CANARY}]"],
        ["output_root=${oc.env:CANARY}"],
        ["track.project=x${oc.decode:${oc.env:CANARY}}"],
        ["track.project=\\\\${oc.env:CANARY}"],
        ["track.entity=${now:%Y}"],
        ["track.entity=${${track.project}:CANARY}"],
        [f"hydra.searchpath=['file://{tmp_path}']", "track=mine"],
    ):
        with pytest.raises(ConfigError) as caught:
            pytest.fail(str(typed(hydra, *words).track))
        assert "may only name another setting" in str(caught.value)
        assert "bird" not in str(caught.value)
    assert typed(hydra, "output_root=runs/${length.name}").output_root == "runs/4k"


def test_a_record_s_settings_mean_themselves() -> None:
    config = compose.to_typed(
        {"dataset": {"path": "${x}", "tasks": ["${", "a"]}, "model": {"path": "${oc.env:HOME}"}}
    )
    assert (config.dataset.path, config.dataset.tasks) == ("${x}", ["${", "a"])
    assert config.model.path == "${oc.env:HOME}"


def test_texts_in_lists_need_no_quotes(hydra: Hydra) -> None:
    config = typed(hydra, "track.tags=[lr=3, run #1, 'a,b', 100%, 1e3, путь, it's]")
    assert config.track.tags == ["lr=3", "run #1", "a,b", "100%", "1e3", "путь", "it's"]


# --- groups ---


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize(
    "group",
    ["length", "method", "model", "dataset", "train", "eval", "track", "experiment", "launcher"],
)
def test_a_list_of_options_is_refused(group: str, multirun: bool) -> None:
    for sign in ("", "+", "++"):
        with pytest.raises(ConfigError) as caught:
            rewrite([f"{sign}{group}=[a, b]"], multirun=multirun)
        assert str(caught.value).endswith(f"add -m and write {group}=a,b")


def test_a_list_of_options_in_a_sweep_is_refused(hydra: Hydra) -> None:
    with pytest.raises(ConfigError, match="method takes one option at a time"):
        grid(hydra, "method=lora,[lora,dora]")


@pytest.mark.parametrize(
    "words", [[], ["experiment=smoke"], ["output_root=x", "group=y"], ["launcher=basic"]]
)
def test_m_needs_an_axis(hydra: Hydra, words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"there is none; write one, as in -m method=lora"):
        grid(hydra, *words)


def test_one_value_is_an_axis_too(hydra: Hydra) -> None:
    assert len(grid(hydra, "seed=3")) == 1


@pytest.mark.parametrize(
    ("length", "name", "tokens", "batch"),
    [
        ("512", "512", 512, 8), ("4k", "4k", 4096, 1), ("4096", "4k", 4096, 1),
        ("4K", "4k", 4096, 1), ("1024", "1k", 1024, 4), ("3000", "3000", 3000, 1),
        ("'3000'", "3000", 3000, 1), ("3k", "3k", 3072, 1), ("3K", "3k", 3072, 1),
        ("700", "700", 700, 8), ("800", "800", 800, 4), ("100", "100", 100, 8),
        ("128k", "128k", 131072, 1), ("32768", "32k", 32768, 1),
    ],
)  # fmt: skip
def test_any_length(hydra: Hydra, length: str, name: str, tokens: int, batch: int) -> None:
    config = typed(hydra, f"length={length}")
    assert (config.length.name, config.length.max_length) == (name, tokens)
    assert config.length.micro_batch_size == config.train.micro_batch_size == batch
    assert run_name(config).startswith(f"hylorada-{name}-seed0-")


def test_a_sweep_over_lists(hydra: Hydra) -> None:
    found = grid(hydra, "method.lora.target_modules=[c_attn],[mlp.c_fc,c_proj]", "length=512")
    assert [config.method.lora.target_modules for config in found] == [
        ["c_attn"],
        ["mlp.c_fc", "c_proj"],
    ]


def test_any_length_in_a_sweep(hydra: Hydra) -> None:
    configs = grid(hydra, "length=512,3000,3k,8k")
    found = [(c.length.name, c.length.max_length, c.train.micro_batch_size) for c in configs]
    assert found == [("512", 512, 8), ("3000", 3000, 1), ("3k", 3072, 1), ("8k", 8192, 1)]


@pytest.mark.parametrize(
    ("first", "second", "tokens", "name"),
    [
        ("length=100", "length=3000", 3000, "3000"), ("length=100", "length=512", 512, "512"),
        ("length=512", "length=100", 100, "100"),
    ],
)  # fmt: skip
def test_of_two_lengths_the_later_one_counts(
    hydra: Hydra, first: str, second: str, tokens: int, name: str
) -> None:
    config = typed(hydra, first, second)
    assert (config.length.max_length, config.length.name) == (tokens, name)


def test_of_two_models_the_later_one_counts(hydra: Hydra) -> None:
    config = typed(hydra, "model=./mine", "model=gpt2")
    assert (config.model.name, config.model.path) == ("gpt2", "openai-community/gpt2")
    assert typed(hydra, "model=gpt2", "model=./mine").model.path == "./mine"
    kept = typed(hydra, "length=100", "length.max_length=64")  # a setting counts beside its group
    assert kept.length.max_length == 64


# --- words of other trainers ---


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.learning_rate=1", "did you mean train.lr?"),
        ("learning_rate=1", "did you mean train.lr?"),
        ("training_args.learning-rate=1", "did you mean train.lr?"),
        ("bf16=true", "did you mean train.precision=bf16?"),
        ("train.bf16=False", "did you mean train.precision=fp32?"),
        ("fp16=true", "did you mean train.precision=fp16?"),
        ("lora_r=8", "did you mean method.lora.r?"),
        ("r=8", "did you mean method.lora.r?"),
        ("method.rank=8", "did you mean method.lora.r?"),
        ("epochs=3", "did you mean train.epochs, with train.max_steps=0?"),
        ("num_train_epochs=3", "did you mean train.epochs, with train.max_steps=0?"),
        ("batch_size=3", "did you mean train.micro_batch_size?"),
        ("gradient_accumulation_steps=3", "did you mean train.gradient_accumulation_steps?"),
        ("model_name_or_path=x", "did you mean model?"),
        ("base_model=x", "did you mean model?"),
        ("output_dir=x", "did you mean output_root, or group for the folder below it?"),
        ("dataset_name=x", "did you mean dataset, or dataset=local with dataset.path?"),
        ("max_seq_length=x", "did you mean length, as in length=4k or length=3000?"),
        ("cutoff_len=x", "did you mean length, as in length=4k or length=3000?"),
        ("wandb=false", "did you mean track=off?"),
        ("report_to=none", "did you mean track=off?"),
        ("wandb_project=x", "did you mean track.project?"),
        ("run_name=x", "did you mean group?"),
        ("optimizer=adamw_8bit", "another optimiser than AdamW is not offered here"),
        ("load_in_4bit=true", "did you mean model.quantization=nf4?"),
        ("load_in_8bit=true", "a base in 8 bits is not offered here"),
        ("hf_token=CANARY", "tokens are read from the environment: HF_TOKEN, WANDB_API_KEY"),
        ("deepspeed=x", "one run has one process here; launcher= runs the cells of a sweep"),
        ("zzzz=1", "unknown key zzzz"),
    ],
)
def test_words_of_other_trainers(word: str, said: str) -> None:
    for sign in ("", "+"):
        with pytest.raises(ConfigError) as caught:
            rewrite([f"{sign}{word}"])
        assert str(caught.value).startswith(f"unknown key {word.partition('=')[0]}")
        assert said in str(caught.value)
        assert "CANARY" not in str(caught.value)


def test_what_is_meant_is_there() -> None:
    """Each advice that names a key names one that exists, and no name is told twice."""
    keys, groups = set(known_keys()), {p.name for p in compose.conf_dir().iterdir()}
    for meant in _MEANT:
        first = meant.replace(",", " ").partition(" ")[0]
        key, equals, value = first.partition("=")
        if " " in meant and key not in keys | groups:
            continue  # a sentence
        assert key in keys | groups, meant
        if equals and key in groups:
            assert (compose.conf_dir() / key / f"{value}.yaml").is_file(), meant
    assert len(_BY_NAME) == sum(len(names.split()) for names in _MEANT.values())
    assert not set(_BY_NAME) & keys


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--multirn", "did you mean --multirun?"),
        ("--lr", "settings are written without dashes, as in train.lr=VALUE"),
        ("--learning-rate=1e-4", "as in train.lr=VALUE"),
        ("--model", "as in model=VALUE"),
        ("--max_steps", "as in train.max_steps=VALUE"),
        ("--bf16", "as in train.precision=bf16"),
        ("--output_dir=x", "as in output_root=VALUE"),
        ("--hf_token=CANARY", "tokens are read from the environment"),
        ("--zzz=CANARY", "unrecognized arguments: --zzz"),
    ],
)
def test_flags_of_other_trainers(word: str, said: str) -> None:
    line = unknown_flag(word, ["-m", "--multirun", "--cfg", "--config-dir", "--help"])
    assert line.startswith(f"unrecognized arguments: {word.partition('=')[0]}")
    assert said in line
    assert "CANARY" not in line


def test_a_value_is_never_shown(hydra: Hydra) -> None:
    for word in ("api_key=CANARY", "learning_rate=CANARY", "seed=[CANARY"):
        with pytest.raises(ConfigError) as caught:
            typed(hydra, word)
        assert "CANARY" not in str(caught.value)
    assert "CANARY" not in unknown_key("bf16", "CANARY")
    assert os.environ.get("CANARY") is None
