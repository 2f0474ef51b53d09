"""Records of real runs are what the schema says, and the package reads nothing else of them."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, is_typeddict

import pytest
from helpers.tiny_runs import finish, launch, make_config, make_model_folder, make_texts, result

import hylorada
from hylorada.errors import DivergedError
from hylorada.records.described import Field, fields, flaws
from hylorada.records.metric_schema import MEASURED, Metric, metric_kind
from hylorada.records.run_files import LEFT
from hylorada.records.schema import (
    OPEN,
    VERSION,
    Integrity,
    Record,
    narrowed,
    record_flaws,
)
from hylorada.records.training_schema import SkippedLine, TimingLine, TrainingLine, ValidationLine
from hylorada.runner.evaluate import evaluate_run
from hylorada.runner.evaluate_adapter import evaluate_adapter
from hylorada.runner.run import run

SOURCE = Path(hylorada.__file__).parent
ROOT = Path(__file__).parents[2]


def settings(root: Path, **changes: Any) -> Any:
    """A run that measures everything that needs no other package."""
    few = {"enabled": True, "key_style": "hex", "examples": 2, "depths": [0.0, 0.5, 1.0]}
    return make_config(
        root,
        **{
            "length__max_length": 320,
            "train__max_steps": 2,
            "train__micro_batch_size": 1,
            "train__eval_every": 1,
            "eval__perplexity__conventions": ["blocks", "sliding", "word"],
            "eval__context_gain__enabled": True,
            "eval__context_gain__targets": 32,
            "eval__short_context__max_blocks": 2,
            **{f"eval__lost_in_middle__{key}": value for key, value in few.items()},
            **changes,
        },
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schema")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    run(settings(folder), folder / "trained")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def left(directory: Path) -> set[str]:
    """The files of a run, those of a folder that is described as one by its name."""
    found = set()
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        name = re.sub(r"^checkpoints/step-[0-9]+/.*", "checkpoints/step-N/", name)
        if path.is_file():
            found.add(name.replace(".lock-owner", ".lock"))
    return found


def assert_whole(directory: Path, status: str = "ok") -> dict[str, Any]:
    record = result(directory)
    assert record["status"] == status
    assert list(record_flaws(record, whole=True)) == []
    return record


def test_a_run_leaves_what_the_schema_says(root: Path) -> None:
    record = assert_whole(root / "trained")
    assert record["schema"] == VERSION
    assert {metric_kind(name) for name in record["metrics"]} == {
        MEASURED[name]
        for name in MEASURED
        if not name.startswith(("longbench", "ruler", "lim/accuracy_"))
    }
    assert left(root / "trained") == LEFT.keys() - {".hydra/", ".evaluation*", "earlier-N/"}
    gate = json.loads((root / "trained/integrity.json").read_text())
    assert list(flaws(gate, Integrity)) == []
    first, between, *_, final = lines(root / "trained/metrics.jsonl")
    assert list(flaws(first, TrainingLine)) == list(flaws(between, ValidationLine)) == []
    assert final.keys() == {"step", *record["metrics"]}
    for line in lines(root / "trained/timing.jsonl"):
        assert list(flaws(line, TimingLine)) == []


def test_a_baseline_leaves_it_too(root: Path) -> None:
    off = {f"method__{name}__enabled": "false" for name in ("position_bias", "landmark", "s2_attn")}
    off |= {f"method__train_{name}": "false" for name in ("embeddings", "norms")}
    off |= {"method__name": "baseline", "method__lora__enabled": False}
    run(settings(root, **off), root / "baseline")
    assert_whole(root / "baseline")


@pytest.mark.slow
def test_a_run_that_was_measured_again_leaves_it_too(root: Path) -> None:
    """Generated answers, too."""
    config = settings(root)
    config.eval.lost_in_middle.scorings = ["ranked", "generated"]
    config.eval.lost_in_middle.max_new_tokens = 2
    run(settings(root, seed=1), root / "again")
    evaluate_run(root / "again", config)
    record = assert_whole(root / "again")
    assert len(record["evaluations"]) == 1
    assert "lim/accuracy_generated@0.5" in record["metrics"]


def test_a_measured_adapter_leaves_it_too(root: Path) -> None:
    record = evaluate_adapter(root / "trained/adapter", settings(root))
    assert_whole(root / "outputs/main" / record["name"])


def test_a_run_that_fails_leaves_it_too(root: Path) -> None:
    with pytest.raises(DivergedError):
        run(make_config(root, train__lr=1e20), root / "d")
    assert_whole(root / "d", "diverged")
    assert list(flaws(lines(root / "d/metrics.jsonl")[-1], SkippedLine)) == []
    with pytest.raises(hylorada.errors.HyloradaError):
        run(settings(root, eval__lost_in_middle__items=2), root / "f")
    assert_whole(root / "f", "failed")


def test_a_run_that_is_interrupted_leaves_it_too(root: Path) -> None:
    process = launch(settings(root, train__max_steps=100_000), root / "i")
    while not (root / "i/metrics.jsonl").exists() and process.is_alive():
        process.join(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 128 + signal.SIGTERM
    assert_whole(root / "i", "interrupted")


# --- what is no record ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r | {"another": 1}, "field 'another' is not described"),
        (lambda r: {k: v for k, v in r.items() if k != "left_out"}, "no field 'left_out'"),
        (lambda r: r | {"seed": True}, "field 'seed' is bool"),
        (lambda r: r | {"length": 1.0}, "field 'length' is float"),
        (lambda r: r | {"status": "fine"}, "field 'status' is 'fine'"),
        (lambda r: r["training"].update(seconds="1") or r, "field 'training.seconds' is str"),
        (lambda r: r["metrics"]["eval/ppl"]["by_position"].append({}) or r, "by_position[8].start"),
        (lambda r: r["metrics"]["eval/ppl"].update(x=1) or r, "'metrics.eval/ppl.x' is not desc"),
        (lambda r: r["base"].update(extended=[]) or r, "field 'base.extended' is list"),
        (lambda r: r["config"].pop("eval") and r, "no field 'config.eval'"),
    ],
)
def test_what_differs_is_named(root: Path, change: Any, said: str) -> None:
    flaw = next(record_flaws(change(result(root / "trained")), whole=True))
    assert said in flaw


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["integrity"]["checks"].update(rows=True), "'integrity.checks.rows' is bool"),
        (lambda r: r["integrity"]["checks"].update(rows={}), "'integrity.checks.rows.ok'"),
        (lambda r: r["metrics"]["eval/ppl"]["by_document"].append(0), "is int"),
        (lambda r: r["metrics"]["eval/ppl"]["by_document"].append({}), ".name'"),
        (lambda r: r["provenance"]["dataset_sha256"].update(train=-1), "dataset_sha256.train' is"),
    ],
)
def test_a_record_without_its_hash_is_looked_into(root: Path, change: Any, said: str) -> None:
    record = result(root / "trained")
    del record["sha256"]  # as one that was changed by hand, or is from before there were hashes
    assert list(record_flaws(record)) == []
    change(record)
    assert said in next(record_flaws(record))


def test_a_new_measurement_needs_no_line_in_the_schema(root: Path) -> None:
    record = result(root / "trained")
    record["metrics"]["mine/mrr"] = {"value": 0.5, "queries": 7, "by_length": [{"words": 3}]}
    assert list(record_flaws(record, whole=True)) == []
    record["metrics"]["mine/mrr"] = {"queries": 7}
    assert list(record_flaws(record)) == ["no field 'metrics.mine/mrr.value'"]


def test_what_is_not_needed_refuses_no_record(root: Path) -> None:
    """A description that is too narrow must not make a finished run unreadable."""
    record = result(root / "trained")
    record["training"]["seconds"] = "many"
    assert list(record_flaws(record)) == []
    assert list(record_flaws(record, whole=True)) == ["field 'training.seconds' is str"]
    record["training"] = "much"
    assert list(record_flaws(record)) == ["field 'training' is str"]


def test_records_of_earlier_versions_are_read_and_of_later_ones_are_not(root: Path) -> None:
    record = result(root / "trained")
    for name in ("schema", "left_out", "position_range", "files", "sha256"):
        del record[name]
    assert list(record_flaws(record)) == []
    assert list(record_flaws(record | {"schema": 2})) == ["schema 2; this version reads 1"]


# --- what the package reads of it -----------------------------------------------------------------


def described(kind: Any) -> Any:
    """A kind of the schema behind None."""
    if isinstance(kind, UnionType):
        return next((k for k in get_args(kind) if k is not NoneType), None)
    return kind


def kind_of(node: ast.expr, names: dict[str, Any]) -> Any:
    """The kind of the schema that an expression gives; None if it is not known to be of it."""
    found = read(node, names)
    if found is not None:
        owner, key = found
        if get_origin(owner) is dict:
            of = get_args(owner)[1]
            return described(narrowed(key, of) if isinstance(key, str) else of)
        if is_typeddict(owner) and isinstance(key, str):
            field: Field | None = fields(owner).get(key)
            return described(field.kind) if field else None
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        return kind_of(node.values[0], names)
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and node.attr in ("record", "data"):
        return Record if node.attr == "record" or "data" in names else None
    return None


def read(node: ast.expr, names: dict[str, Any]) -> tuple[Any, Any] | None:
    """(kind, key) of ``kind[key]`` and ``kind.get(key)``."""
    if isinstance(node, ast.Subscript):
        owner, key = node.value, node.slice
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("get", "setdefault", "pop")
        and node.args
    ):
        owner, key = node.func.value, node.args[0]
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_part" and node.args[1:]:
        owner, key = node.args[0], node.args[1]  # of comparison.conditions: a part, or nothing
    else:
        return None
    kind = kind_of(owner, names)
    return kind and (kind, key.value if isinstance(key, ast.Constant) else None)


def reads(path: Path) -> Iterator[tuple[int, Any, str]]:
    """(line, kind, key) of everything that a file reads of a record by a name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    room = path.relative_to(SOURCE).parts[0]
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        names: dict[str, Any] = {"record": Record, "done": Record}
        if room in ("comparison", "report"):
            names = {"record": Record, "data": Record}
            if any(
                arg.arg == "record" and "Mapping" not in ast.unparse(arg.annotation or arg)
                for arg in function.args.args
            ):
                names.pop("record")  # the object around a record there
        elif room == "methods":
            continue
        for node in ast.walk(function):  # simple assignments, in their order
            if isinstance(node, ast.Assign):
                targets = node.targets[0]
                pairs = (
                    zip(targets.elts, node.value.elts, strict=True)
                    if isinstance(targets, ast.Tuple) and isinstance(node.value, ast.Tuple)
                    else [(targets, node.value)]
                )
                for target, value in pairs:
                    if isinstance(target, ast.Name) and (kind := kind_of(value, names)):
                        names[target.id] = kind
        for node in ast.walk(function):
            found = read(node, names) if isinstance(node, ast.expr) else None
            if found and is_typeddict(found[0]) and isinstance(found[1], str):
                yield node.lineno, *found


def test_the_package_reads_only_what_the_schema_has() -> None:
    found = [
        (path.relative_to(SOURCE).as_posix(), line, kind, key)
        for path in SOURCE.rglob("*.py")
        for line, kind, key in reads(path)
    ]
    rooms = {name.partition("/")[0] for name, *_ in found}
    assert {"records", "runner", "loading", "comparison", "report", "tracking"} <= rooms
    assert len(found) > 100
    unknown = [
        f"{name}:{line}: {kind.__name__} has no {key!r}"
        for name, line, kind, key in found
        if key not in fields(kind) and kind not in OPEN
    ]
    assert unknown == []


def test_a_read_of_something_else_would_be_noticed() -> None:
    tree = ast.parse('(record.get("provenance") or {}).get("base_modle_sha256")', mode="eval")
    assert isinstance(tree.body, ast.expr)
    owner, key = read(tree.body, {"record": Record}) or (None, None)
    assert owner is not None
    assert key not in fields(owner)


def test_the_document_is_what_the_schema_says() -> None:
    """`python scripts/records_document.py` writes it again."""
    script = ROOT / "scripts/records_document.py"
    printed = subprocess.run(
        [sys.executable, script, "--print"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == (ROOT / "docs/RECORDS.md").read_text()


def test_every_kind_of_metric_is_one() -> None:
    for kind in MEASURED.values():
        assert fields(Metric).keys() <= fields(kind).keys()
