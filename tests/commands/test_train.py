"""The commands, from the words typed to the exit code. The runner is a stand-in: no torch here."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.records import nothing_measured
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from hylorada import cli, compose
from hylorada.config import RunConfig
from hylorada.errors import ConfigError, DivergedError, HyloradaError, Interrupted
from hylorada.settings.fingerprint import run_dir

HEAVY = ("torch", "transformers", "peft", "datasets", "wandb", "matplotlib")


class Runner:
    """Stands for hylorada.runner.run: writes a record, or does what a test asks for."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []
        self.act: Callable[[RunConfig], None] = lambda config: None
        self.refuse: Callable[[RunConfig], HyloradaError | None] = lambda config: None

    def run(self, config: RunConfig, directory: Path, *, held: bool) -> None:
        assert held  # nobody else runs there
        self.configs.append(config)
        assert directory.resolve() == Path(run_dir(config)).resolve()
        self.act(config)
        (directory / "result.json").write_text(json.dumps(nothing_measured(config)))

    def refused_cells(self, cells: dict[str, RunConfig], here: bool) -> dict[str, HyloradaError]:
        assert here
        refused = {place: self.refuse(config) for place, config in cells.items()}
        return {place: error for place, error in refused.items() if error is not None}


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Runner]:
    fake = Runner()
    module = types.ModuleType("hylorada.runner.run")
    module.run = fake.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hylorada.runner.run", module)
    checks = types.ModuleType("hylorada.runner.preflight")
    checks.refused_cells = fake.refused_cells  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hylorada.runner.preflight", checks)
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield fake
    root.handlers[:], root.level = handlers, level


ERRORS = [
    ("foo", "cannot read 'foo'; write key=value"),
    ("foo=[1", "unknown key foo"),
    ("lora", "cannot read 'lora'; write key=value, as in method=lora"),
    ("seed=[1", "cannot read the value of seed; put text with signs in two pairs of quotes"),
    ("methd=lora", "unknown key methd; did you mean method?"),
    ("lr=1e-3", "unknown key lr; did you mean train.lr?"),
    ("method.lora.rnak=3", "unknown key method.lora.rnak; did you mean method.lora."),
    ("+method.rnak=3", "unknown key method.rnak; did you mean method."),
    (
        "method=lroa",
        "method=lroa: there is no such option; did you mean lora? There are: baseline,",
    ),
    ("length=5kk", "or any number of tokens, as in length=3000 or length=3k"),
    ("length=x12", "did you mean 512? There are: 512, 1k, 2k, 4k, 8k, 16k, 32k"),
    ("experiment=smok", "did you mean smoke?"),
    ("model=distilgpt2", "model=custom model.path=distilgpt2"),
    ("train.lr=abc", "train.lr is 'abc'; it must be a number"),
    ("train.lr=null", "train.lr is null; it must be a number"),
    ("seed=1.5", "seed is 1.5; it must be a whole number"),
    ("foo.bar=1", "unknown key foo.bar; hylorada-train --cfg job prints all there are"),
    ("length=-5", "length=-5: it must be a whole number of tokens, as in length=3000"),
    ("length=1e3", "length=1e3: it must be a whole number of tokens"),
    ("length=4096.0", "length=4096.0: it must be a whole number of tokens"),
    ("length=0.5k", "length=0.5k: it must be a whole number of tokens"),
    (f"length={10**20}", "length.max_length is 100000000000000000000; it must be from 2 to"),
    (f"train.max_steps={10**20}", "it must be 9007199254740992 or less"),
    (f"method.lora.r={10**20}", "it must be from 1 to 65536"),
    ("threads=100000", "threads is 100000; it must be from 1 to 1024, or 0 for torch's choice"),
    ("train.lr=inf", "train.lr is inf; it must be a finite number, above 0"),
    ("model.attn_implementation=flash", "choose sdpa, eager, flash_attention_2"),
    ("model.attn_implementation=own/kernel", "choose sdpa, eager, flash_attention_2"),
    ("dataset.revision=abc", "dataset.revision has no effect with dataset.kind=stdlib"),
    ("dataset.text_column=abc", "dataset.text_column has no effect with dataset.kind=stdlib"),
    ("dataset=local dataset.path=/ dataset.hub_id=a/b", "dataset=hub for text of the hub"),
    ("launcher=submitit_local", "launcher=submitit_local has no effect on one run; add -m"),
    ("method.lora.enabled=maybe", "method.lora.enabled is 'maybe'; it must be true or false"),
    ("method.landmark.enabled=maybe", "choose true, false or auto"),
    ("method.lora.target_modules=c_attn", "it must be a list, as in [a,b]"),
    ("method.lora=5", "method.lora is a group of settings"),
    ("train=5", "a group takes the name of an option"),
    ("length=512,2k", "length has several values; add -m"),
    ("experiment=table_short", "experiment=table_short is a sweep; add -m"),
    ("+seed=3", "seed exists already; leave out the +"),
    ("~train", "cannot be removed"),
    ("train.lr=${nope}", "'nope' not found"),
    ("hydra.foo=1", "unknown key hydra.foo"),
    ("hydra.run.dir=x", "output_root"),
    ("launcher=slrm", "launcher=slrm: there is no such option; did you mean slurm?"),
    ("train.max_steps=0", "exactly one of train.epochs, train.max_steps, train.max_tokens"),
    ("train.lr_scheduler=constant train.min_lr_ratio=0.1", "train.min_lr_ratio=0.1 has no effect"),
    ("method=vera method.peft.rr=4", "peft's VeraConfig has no such key; did you mean r?"),
    ("method=baseline method.adapter_seed=1", "method.adapter_seed=1 has no effect"),
    ("length=512 method=rslora_s2", "set a smaller group_size"),
    ("--multirn", "unrecognized arguments: --multirn"),
    ("--cfg jb", "choose from"),
    ("--cfg job -p methd", "did you mean method?"),
    ("--resolve", "belong to --cfg"),
    ("dry_run=yes", "dry_run=yes: use true, elsewhere"),
    ("--dry-run", "hylorada-train plans with dry_run=true"),
    ("dryrun=true", "hylorada-train plans with dry_run=true"),
    ("dry_run=true --cfg job", "dry_run=true has no effect with --cfg"),
    ("--config-dir /no/such", "/no/such"),
    ("-m method=lora,hylorda", "hylorda: there is no such option; did you mean hylorada?"),
    ("-m seed=0,x", "seed is 'x'; it must be a whole number"),
    ("-m seed=0,1 hydra.sweeper.max_batch_size=2", "max_batch_size"),
    ("-m seed=interval(0,3)", "list its values"),
]


@pytest.mark.parametrize(("words", "said"), ERRORS, ids=[words for words, _ in ERRORS])
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    runner: Runner, capfd: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    assert cli.train(words.split(" ")) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("hylorada-train: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not runner.configs
    assert list(Path().iterdir()) == []  # nothing half-written


def test_missing_data_is_exit_code_3(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("no model\n")
    for word, said in (
        ("model=./no/such", "there is no folder no/such"),
        ("model=none.gguf", "there is no GGUF file none.gguf"),
        ("model=./text.txt", "text.txt is a file; give the folder that save_pretrained wrote"),
    ):
        assert cli.train([word]) == 3
        assert said in capfd.readouterr().err


def test_the_value_of_an_unknown_key_is_never_shown(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    for word in ("wandb.api_key=canary", "+track.token=canary", "api_key=[canary"):
        assert cli.train([word]) == 2
    assert "canary" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("preset", ["processes", "slurm"])
def test_a_launcher_that_is_not_installed_says_what_to_install(
    runner: Runner, capfd: pytest.CaptureFixture[str], preset: str
) -> None:
    plugin, extra = {"processes": ("joblib", "joblib"), "slurm": ("submitit_slurm", "slurm")}[
        preset
    ]
    if f"{plugin}.yaml" in ConfigStore.instance().list("hydra/launcher"):
        with compose.opened_hydra() as hydra:
            composed = compose.compose(hydra, [f"hydra/launcher={preset}"])
        assert composed.hydra.launcher._target_.endswith("Launcher")
    else:
        assert cli.train([f"launcher={preset}"]) == 2
        assert f"pip install 'hylorada[{extra}]'" in capfd.readouterr().err


def test_a_run_lies_in_its_directory_with_its_settings(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.train(["length=512", "method=lora", "seed=7"]) == 0
    (config,) = runner.configs
    assert (config.length.max_length, config.method.name, config.seed) == (512, "lora", 7)
    out, _ = capfd.readouterr()
    assert out == f"{run_dir(config)}\n"
    directory = Path(out.strip())
    assert directory.name.startswith("lora-512-seed7-")
    assert "seed: 7" in (directory / ".hydra" / "config.yaml").read_text()
    assert (directory / ".hydra" / "overrides.yaml").read_text() == (
        "- length='512'\n- method=lora\n- seed=7\n"
    )
    assert (directory / "run.log").is_file()
    assert sorted(p.name for p in Path().iterdir()) == ["outputs"]


def test_a_finished_run_is_not_run_again(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=smoke"]
    assert [cli.train(words), cli.train(words)] == [0, 0]
    assert len(runner.configs) == 1
    assert "nothing to run" in capfd.readouterr().err
    assert cli.train([*words, "resume=never"]) == 0
    assert len(runner.configs) == 2


def test_a_sweep_runs_each_cell_once_and_says_so(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", "length=512,4k", "seed=0,1"]
    assert cli.train(words) == 0
    directories = [run_dir(config) for config in runner.configs]
    assert len(set(directories)) == 4
    out, err = capfd.readouterr()
    assert out.splitlines() == directories
    assert "4 cells: 4 run, 0 done already, 0 failed" in err
    assert cli.train(words) == 0
    assert len(runner.configs) == 4
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == sorted(directories)
    assert "4 cells: 0 run, 4 done already, 0 failed" in err


def test_a_failing_cell_stops_no_other(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(config: RunConfig) -> None:
        if config.seed == 1:
            raise DivergedError("train/loss is nan at step 3;\nlower train.lr")
        if config.seed == 2:
            raise KeyError("oops")

    runner.act = fail
    assert cli.train(["-m", "seed=0,1,2"]) == 4
    assert [config.seed for config in runner.configs] == [0, 1, 2]
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 1
    assert "3 cells: 1 run, 0 done already, 2 failed" in err
    diverged, bug = err.splitlines()[-2:]
    assert diverged.startswith("hylorada-train: error: hylorada-4k-seed1-")
    assert diverged.endswith("train/loss is nan at step 3; lower train.lr")
    assert "KeyError: 'oops'" in bug
    assert "run.log" in bug
    assert "Traceback" not in err
    for config, name in zip(runner.configs[1:], ("DivergedError", "KeyError"), strict=True):
        log = Path(run_dir(config), "run.log").read_text()
        assert "Traceback" in log
        assert name in log


# Each reason and each order at least once; all pairs of them are slow ones.
ORDERS = ("bad,good", "good,bad", "bad,worse,good", "good,bad,other")
WHYS = ("file", "long", "log", "settings")


@pytest.mark.parametrize(
    ("why", "order"),
    [
        pytest.param(why, order, marks=pytest.mark.slow if i != j else [])
        for i, why in enumerate(WHYS)
        for j, order in enumerate((ORDERS[2], ORDERS[0], ORDERS[1], ORDERS[3]))
    ],
)
def test_a_cell_without_a_place_stops_no_other(
    runner: Runner, capfd: pytest.CaptureFixture[str], order: str, why: str
) -> None:
    bad = {"file": "taken", "long": "x" * 300, "log": "l", "settings": "s"}[why]
    with compose.opened_hydra() as hydra:
        ours = compose.to_typed(compose.compose(hydra, [f"output_root={bad}"]))
    Path("taken").write_text("")
    if why == "log":
        Path(run_dir(ours), "run.log").mkdir(parents=True)
    elif why == "settings":
        Path(run_dir(ours)).mkdir(parents=True)
        Path(run_dir(ours), ".hydra").write_text("")
    roots = order.replace("bad", bad).replace(
        "worse", f"{bad}/deeper" if why == "file" else "other"
    )
    count = 1 + (why == "file" and "worse" in order)
    assert cli.train(["-m", f"output_root={roots}"]) == 6
    good = [config.output_root for config in runner.configs]
    assert sorted(good) == sorted(set(roots.split(",")) - {bad, f"{bad}/deeper"})
    out, err = capfd.readouterr()
    assert out.splitlines() == [run_dir(config) for config in runner.configs]
    assert f"{len(good)} run, 0 done already, {count} failed" in err
    assert "Traceback" not in err
    last = err.splitlines()[-count]
    assert last.startswith("hylorada-train: error: hylorada-4k-seed0-")
    assert "cannot be written" in last


def test_a_library_that_asks_to_exit_stops_no_other(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    def leave(config: RunConfig) -> None:
        if config.seed == 0:
            raise SystemExit(1)

    runner.act = leave
    assert cli.train(["-m", "seed=0,1"]) == 1
    assert [config.seed for config in runner.configs] == [0, 1]
    err = capfd.readouterr().err
    assert "2 cells: 1 run, 0 done already, 1 failed" in err
    assert "SystemExit" in err
    assert "SystemExit" in Path(run_dir(runner.configs[0]), "run.log").read_text()
    assert cli.train(["seed=0"]) == 1


def test_a_cell_that_is_refused_stops_no_other(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.train(["-m", "length=512,4k", "method=rslora_s2"]) == 2
    assert [config.length.name for config in runner.configs] == ["4k"]
    assert "2 cells: 1 run, 0 done already, 1 failed" in capfd.readouterr().err


def test_cells_that_their_model_refuses_are_told_before_the_first_one_runs(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def refuse(config: RunConfig) -> ConfigError | None:
        return ConfigError("method: no such module") if config.seed == 2 else None

    runner.refuse = refuse
    runner.act = lambda config: said.append(capfd.readouterr().err)
    assert cli.train(["-m", "seed=0,1,2"]) == 2
    assert [config.seed for config in runner.configs] == [0, 1]
    assert "seed2" in said[0]
    assert "method: no such module" in said[0]
    assert "3 cells: 2 run, 0 done already, 1 failed" in capfd.readouterr().err


def test_an_interrupted_cell_ends_the_sweep(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(config: RunConfig) -> None:
        raise Interrupted(15, "saved at step 3")

    runner.act = interrupt
    assert cli.train(["-m", "seed=0,1"]) == 143
    assert len(runner.configs) == 1
    assert capfd.readouterr().err.endswith("hylorada-train: error: saved at step 3\n")
    assert GlobalHydra.instance().hydra is None


def test_a_failing_run_returns_its_code(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(config: RunConfig) -> None:
        raise DivergedError("three in a row")

    runner.act = fail
    assert cli.train([]) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "hylorada-train: error: three in a row\n"


def test_a_place_that_cannot_be_written_is_exit_code_6(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("")
    assert cli.train(["output_root=file"]) == 6
    err = capfd.readouterr().err
    assert err.startswith("hylorada-train: error: file/main/")
    assert err.endswith(": cannot be written (Not a directory); choose another output_root\n")


def test_what_another_process_runs_is_refused_and_not_written_to(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    with compose.opened_hydra() as hydra:
        directory = Path(run_dir(compose.to_typed(compose.compose(hydra, []))))
    code = (
        "import sys; from pathlib import Path\n"
        "from hylorada.process.disk import exclusive\n"
        f"with exclusive(Path({str(directory)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        (directory / "run.log").write_text("its own line\n")
        before = files_of(directory)
        assert cli.train([]) == 6
        assert cli.train(["-m", "seed=0,1"]) == 6  # the other cell runs
        assert files_of(directory) == before
        other.communicate("")
    said = capfd.readouterr().err.splitlines()[0]
    assert f"{directory}: in use by a live run (process {other.pid} on " in said
    assert [config.seed for config in runner.configs] == [1]
    assert cli.train([]) == 0
    assert (directory / "run.log").read_text().startswith("its own line\n")


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_a_name_with_a_quote_survives_hydra(runner: Runner) -> None:
    assert cli.train(["output_root='a\\'b c'"]) == 0
    assert runner.configs[0].output_root == "a'b c"
    assert Path("a'b c/main").is_dir()


def test_groups_of_a_folder_of_ones_own(
    runner: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own" / "eval"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults: [default]\nname: mine\n")
    assert cli.train(["--config-dir", "own", "eval=mine"]) == 0
    assert runner.configs[0].eval.name == "mine"
    capfd.readouterr()
    assert cli.train(["--help", "--config-dir", "own"]) == 0
    assert "longbench, mine, paper" in capfd.readouterr().out


def test_cells_that_are_one_run_run_once(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.train(["-m", "train.save_every=5,10", "output_root=o,./o/"]) == 0
    assert len(runner.configs) == 1  # o and ./o/ are one place
    err = capfd.readouterr().err
    assert "3 cells are the same run as another" in err
    assert "1 cell: 1 run" in err


def test_flags_may_stand_anywhere(runner: Runner) -> None:
    assert cli.train(["seed=0,1", "-m", "method=lora"]) == 0
    assert len(runner.configs) == 2


def test_printing_the_settings(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.train(["length=512", "--cfg", "job", "-p", "length"]) == 0
    assert "max_length: 512" in capfd.readouterr().out
    assert not runner.configs


def in_a_fresh_process(words: list[str]) -> tuple[int, str, str, list[str]]:
    """Exit code, both outputs, and which heavy packages were imported."""
    code = (
        "import sys\n"
        "from hylorada import cli\n"
        f"code = cli.train({words!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    *lines, last = done.stdout.splitlines()
    return done.returncode, "\n".join(lines), done.stderr, json.loads(last.replace("'", '"'))


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["--cfg", "job"], 0), (["-m", "method=lroa"], 2)]
)
def test_nothing_heavy_is_imported_before_a_run_starts(words: list[str], code: int) -> None:
    returned, out, err, imported = in_a_fresh_process(words)
    assert returned == code
    assert imported == []
    if words == ["--help"]:
        assert "hylorada-train -m length=512,2k,4k,8k method=lora,longlora,hylorada" in out
        for group in ("length", "method", "model", "dataset", "train", "eval", "track"):
            assert f"\n  {group} " in out
        assert "rslora_position_bias" in out
        assert max(map(len, out.splitlines())) <= 100
    assert (err == "") == (code == 0)


# --- hylorada-eval --------------------------------------------------------------------------------


Calls = list[tuple[str, str, RunConfig]]


@pytest.fixture
def evaluator(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """A finished run in `done/`, and a stand-in that notes what it is asked to measure."""
    calls: Calls = []
    for kind, name in (("run", "evaluate"), ("adapter", "evaluate_adapter")):
        module = types.ModuleType(f"hylorada.runner.{name}")
        note = lambda place, config, kind=kind: calls.append((kind, place, config))  # noqa: E731
        setattr(module, f"evaluate_{kind}", note)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    config = RunConfig(seed=5)
    config.eval.perplexity.max_blocks = 7
    Path("done").mkdir()
    Path("done/result.json").write_text(json.dumps(nothing_measured(config)))
    package = logging.getLogger("hylorada")
    handlers = package.handlers[:]
    yield calls
    package.handlers[:] = handlers


def test_a_finished_run_keeps_its_settings_but_for_those_of_the_measurement(
    evaluator: Calls,
) -> None:
    assert cli.evaluate(["run=done"]) == 0
    assert cli.evaluate(["run=done", "eval=retrieval", "device=cpu", "track=off"]) == 0
    assert cli.evaluate(["run=done", "eval.context_gain.enabled=true"]) == 0
    same, group, key = (config for _, _, config in evaluator)
    assert (same.seed, same.eval.perplexity.max_blocks) == (5, 7)
    assert (group.seed, group.eval.name, group.track.kind) == (5, "retrieval", "off")
    assert group.eval.lost_in_middle.enabled
    assert (key.eval.perplexity.max_blocks, key.eval.context_gain.enabled) == (7, True)
    assert {(kind, place) for kind, place, _ in evaluator} == {("run", "done")}


def test_an_adapter_is_measured_as_the_words_say(evaluator: Calls) -> None:
    assert cli.evaluate(["adapter=./a", "model=gpt2", "length=2k", "eval=full"]) == 0
    ((kind, place, config),) = evaluator
    assert (kind, place, config.length.max_length) == ("adapter", "./a", 2048)
    assert config.eval.name == "full"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("", 2, "run=DIRECTORY, chosen=FOLDER or adapter=FOLDER"),
        ("run=done adapter=x", 2, "run=DIRECTORY, chosen=FOLDER or adapter=FOLDER"),
        ("run=", 2, "run=DIRECTORY, chosen=FOLDER or adapter=FOLDER"),
        ("run=done train.lr=1", 2, "train.lr: a finished run keeps its settings"),
        ("run=done length=2k", 2, "length: a finished run keeps its settings"),
        ("run=done eval=retrival", 2, "did you mean retrieval?"),
        ("run=done eval.lost_in_middle.depth=1", 2, "did you mean eval.lost_in_middle.depths?"),
        ("run=done eval.perplexity.stride=-1", 2, "eval.perplexity.stride"),
        ("run=done --resolve", 2, "unrecognized arguments: --resolve"),
        ("run=none", 3, "run=none: there is no such directory"),
        ("run=.", 3, "run=.: no result.json here"),
        ("chosen=none select=train.lr", 3, "there is no folder none; name one that runs lie in"),
        ("chosen=done", 2, "select: name the settings to choose, as in train.lr"),
        (
            "chosen=done select=nope",
            2,
            "select: there is no setting nope to choose; hylorada-train",
        ),
        ("adapter=x", 2, "needs its base"),
    ],
)
def test_a_mistake_in_what_to_measure_is_one_line(
    evaluator: Calls, capfd: pytest.CaptureFixture[str], words: str, code: int, said: str
) -> None:
    assert cli.evaluate(words.split()) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("hylorada-eval: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not evaluator


def test_a_measurement_of_a_folder_of_ones_own(
    evaluator: Calls, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("own/eval").mkdir(parents=True)
    Path("own/eval/mine.yaml").write_text("defaults: [quick]\nname: mine\n")
    assert cli.evaluate(["run=done", "eval=mine"]) == 2
    assert cli.evaluate(["--config-dir", "own", "run=done", "eval=mine"]) == 0
    assert cli.evaluate(["run=done", "eval=mine", "--config-dir=own"]) == 0
    assert [config.eval.name for _, _, config in evaluator] == ["mine", "mine"]
    capfd.readouterr()
    assert cli.evaluate(["--config-dir", "own", "--help"]) == 0
    assert "longbench, mine, paper" in capfd.readouterr().out
    assert cli.evaluate(["run=done", "--config-dir", "none"]) == 2
    assert cli.evaluate(["run=done", "--config-dir"]) == 2
    assert "--config-dir: name a folder" in capfd.readouterr().err


def test_help_names_the_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.evaluate(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "default, full, longbench, paper, quick, retrieval" in shown
    assert max(map(len, shown.splitlines())) <= 100
