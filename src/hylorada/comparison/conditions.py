"""What changes the numbers of a run and is not among its settings.

`device=auto` is a CPU here and a GPU there, a path holds another text than last week, a package was
upgraded, steps were skipped. Of two runs that differ in what is in `apart`, none is compared with
the other; those that differ in what is in `beside` stand in one table, each in its own row and
named by it. What a record does not say (it failed before, or is older) differs from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hylorada.settings.measurements import declared

Known = dict[str, str]
"""What is known of a run, in words -> its value."""

_PACKAGES = ("hylorada", "torch", "transformers", "peft")
_MEASURED = " measured on"
SKIPPED = "skipped"

Run = TypeVar("Run")


def apart(record: Mapping[str, Any]) -> Known:
    """What must be equal in a comparison: the machine's arithmetic, the base, the text."""
    provenance, training = _part(record, "provenance"), _part(record, "training")
    config = _part(record, "config")
    train, ev = config.get("train") or {}, config.get("eval") or {}
    device = training.get("device") or str(provenance.get("device") or "").partition(":")[0]
    precision = training.get("precision") or provenance.get("precision")
    hashes = provenance.get("dataset_sha256") or {}
    split = (ev.get("perplexity") or {}).get("split", "test")
    transformers = (provenance.get("versions") or {}).get("transformers")
    found = {
        "device": device,
        "precision": precision,
        "frozen weights": provenance.get("base_model_dtype"),
        "base weights": _short(provenance.get("base_model_sha256")),
        # Another transformers may complete the same config.json otherwise.
        f"base settings, transformers {transformers}": _short(
            provenance.get("base_model_config_sha256")
        ),
        "tokenizer": _short(provenance.get("tokenizer_sha256")),
        "training text": _short(hashes.get("train")) if train.get("task") != "retrieval" else None,
        f"text of {split}": _short(hashes.get(f"{split}, evaluated") or hashes.get(split)),
    }
    for each in declared():
        if any(name.startswith(each.metrics) for name in record.get("metrics") or {}):
            found[f"{each.title}{_MEASURED}"] = _measured(record, each.metrics, device, precision)
    return {name: str(value) for name, value in found.items() if value}


def beside(record: Mapping[str, Any]) -> Known:
    """What must be equal in an arm, whose seeds are averaged: versions, and steps that count.

    A run that did not come to its end has no number that could be averaged.
    """
    if record.get("status") != "ok":
        return {}
    versions = _part(record, "provenance").get("versions") or {}
    found = {name: str(versions[name]) for name in _PACKAGES if versions.get(name)}
    training = _part(record, "training")
    if training.get("skipped_steps") is not None:
        found[SKIPPED] = str(training["skipped_steps"])
    return found


def said(record: Mapping[str, Any]) -> Known:
    """What is only told: numbers change by rounding at most, speed and memory by more."""
    provenance = _part(record, "provenance")
    found = {"hardware": provenance.get("hardware"), "code": provenance.get("git")}
    evaluations = record.get("evaluations") or []
    if evaluations:
        versions = _part(evaluations[-1], "provenance").get("versions") or {}
        found |= {f"{name} of a later measurement": versions.get(name) for name in _PACKAGES}
    return {name: str(value) for name, value in found.items() if value}


def parted(runs: Sequence[Run], known: Callable[[Run], Known]) -> list[list[Run]]:
    """Runs in parts within which nothing that is known differs, each in the order given.

    A run of which less is known goes to the first part that it fits.
    """
    parts: list[tuple[Known, list[int]]] = []
    facts = [known(run) for run in runs]
    for i in sorted(range(len(runs)), key=lambda i: -len(facts[i])):
        for shared, members in parts:
            if all(shared.get(name, value) == value for name, value in facts[i].items()):
                shared |= facts[i]
                members.append(i)
                break
        else:
            parts.append((dict(facts[i]), [i]))
    return [[runs[i] for i in sorted(m)] for m in sorted((sorted(m) for _, m in parts))]


def differing(knowns: Sequence[Known]) -> list[str]:
    """The names of what differs between parts, as far as it is known of each.

    Where device or precision differ, it goes without saying that measurements do, too.
    """
    names = [
        name
        for name in dict.fromkeys(name for known in knowns for name in known)
        if len({known[name] for known in knowns if name in known}) > 1
    ]
    if {"device", "precision"} & set(names):
        names = [name for name in names if not name.endswith(_MEASURED)]
    return names


def together(knowns: Sequence[Known]) -> Known:
    """What is known of the members of one part."""
    return {name: value for known in knowns for name, value in known.items()}


def _measured(
    record: Mapping[str, Any], names: tuple[str, ...], device: Any, precision: Any
) -> str:
    """Where numbers of a kind come from: the run itself, or the last evaluation that made some."""
    for entry in reversed(record.get("evaluations") or []):
        if any(name.startswith(names) for name in entry.get("metrics") or []):
            device, precision = entry.get("device"), entry.get("precision")
            break
    return f"{device} in {precision}" if device and precision else ""


def _part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    return record.get(name) or {}


def _short(sha256: str | None) -> str | None:
    return sha256 and sha256[:8]
