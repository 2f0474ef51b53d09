"""A result.json that is no record: every command that reads one says so in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.records import nothing_measured

from hylorada import cli
from hylorada.config import LengthConfig, RunConfig
from hylorada.errors import DataError
from hylorada.records.result import finished_record, read_result, write_result
from hylorada.settings.fingerprint import run_dir

DAMAGED = {
    "brackets": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "a number for the settings": b'{"status":"ok","config":5}',
    "a status alone": b'{"status":"ok"}',
    "a list": b"[1]",
    "nothing": b"",
    "not UTF-8": b'{"status":"\xff\xfe"}',
    "a byte of nothing": b"\x00" * 4096,
    "half of one": json.dumps(nothing_measured(RunConfig())).encode()[:500],
}
OBJECTS = ("a number for the settings", "a status alone")


@pytest.fixture(params=DAMAGED, ids=lambda name: name.replace(" ", "-"))
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """What is wrong, and the run's directory."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_bytes(DAMAGED[request.param])
    return request.param, tmp_path / "run"


def one_line(capfd: pytest.CaptureFixture[str], command: str) -> str:
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"{command}: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("command", ["eval", "export"])
def test_a_command_for_finished_runs_says_that_it_is_damaged(
    damaged: tuple[str, Path], command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _, directory = damaged
    main = {"eval": cli.evaluate, "export": cli.export}[command]
    assert main([f"run={directory}"]) == 3
    line = one_line(capfd, f"hylorada-{command}")
    assert f"{directory / 'result.json'}: damaged" in line
    assert "restore it from a copy" in line


def test_load_run_says_so_too(damaged: tuple[str, Path]) -> None:
    from hylorada import load_run

    _, directory = damaged
    with pytest.raises(DataError, match=r"result\.json: damaged.*restore it from a copy") as caught:
        load_run(directory)
    assert "\n" not in str(caught.value)


def test_the_report_leaves_it_out_and_says_why(
    damaged: tuple[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    _, directory = damaged
    assert cli.report([str(directory)]) == 3
    line = one_line(capfd, "hylorada-report")
    assert f"{directory / 'result.json'}: damaged" in line


def test_a_run_starts_over_where_a_crash_left_no_object_and_is_refused_otherwise(
    damaged: tuple[str, Path],
) -> None:
    what, directory = damaged
    if what not in OBJECTS:
        assert read_result(directory) is None
    else:
        with pytest.raises(DataError, match=r"no record of a run.*resume=never"):
            read_result(directory)


def test_training_does_not_take_it_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []

    def done(config: RunConfig, directory: Path, inputs: Any) -> Any:
        seen.append(config)
        directory.mkdir(parents=True)
        (directory / "result.json").write_bytes(DAMAGED[OBJECTS[0]])
        from hylorada.runner.earlier_attempt import already_done

        return already_done(config, directory, inputs)

    monkeypatch.setattr("hylorada.commands.train.already_done", done)
    assert cli.train(["length=512"]) == 3
    assert "no record of a run" in one_line(capfd, "hylorada-train")
    (config,) = seen
    assert (Path(run_dir(config)) / "result.json").read_bytes() == DAMAGED[
        "a number for the settings"
    ]


# --- a record that is whole, and of no use here ---------------------------------------------------


def of_adapter() -> dict[str, Any]:
    record = nothing_measured(RunConfig(length=LengthConfig("512", 512, 1, 1)))
    record["config"]["method"] = {"name": "adapter-x", "adapter": "somewhere/x"}
    record["config"]["train"] = None
    return record


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: None, "run={}: no result.json here; give the directory of a run"),
        (
            lambda: nothing_measured(RunConfig()) | {"status": "diverged"},
            "not finished (status",
        ),
        (of_adapter, "only measured; use the adapter itself, adapter=somewhere/x"),
        (
            lambda: (
                nothing_measured(RunConfig())
                | {"files": {"adapter/adapter_config.json": {"bytes": 3, "sha256": "x"}}}
            ),
            "adapter/adapter_config.json: missing; restore it from a copy, or train it again",
        ),
    ],
)
def test_all_who_need_a_finished_run_refuse_alike(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Any, said: str
) -> None:
    from hylorada import load_run
    from hylorada.runner.evaluate import evaluate_run

    record = make()
    if record is not None:
        write_result(tmp_path, record)
    with pytest.raises(DataError) as caught:
        finished_record(tmp_path)
    expected = str(caught.value)
    assert said.format(tmp_path) in expected
    for call in (load_run, lambda path: evaluate_run(path, RunConfig())):
        with pytest.raises(DataError) as caught:
            call(tmp_path)
        assert str(caught.value) == expected
    for main in (cli.evaluate, cli.export):
        assert main([f"run={tmp_path}"]) == 3
        assert capfd.readouterr().err.endswith(f": error: {expected}\n")
