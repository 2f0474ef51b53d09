"""What the gate found: one `Check` each, together an `IntegrityReport`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from hylorada.errors import IntegrityError, in_one_line


@dataclass
class Check:
    """The outcome of one check.

    Attributes:
        name: which one.
        ok: passed, or skipped.
        value: what was measured, in the unit that ``detail`` names; None if skipped.
        limit: what it was held against.
        detail: one sentence that names the component and, for a failure, what to do.
        skipped: why the check does not apply to this model; empty if it ran.
        warnings: what is no fault, but must be known.
    """

    name: str
    ok: bool
    value: float | None = None
    limit: float | None = None
    detail: str = ""
    skipped: str = ""
    warnings: list[str] = field(default_factory=list)


def skipped(name: str, reason: str) -> Check:
    """A check that does not apply."""
    return Check(name, True, skipped=reason)


def outcome(name: str, ask: Callable[[], Check]) -> Check:
    """What a check finds; a component that cannot even run has failed it."""
    try:
        result = ask()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = in_one_line(error)
        return Check(name, False, detail=f"cannot run ({type(error).__name__}: {reason})")
    assert result.name == name
    return result


@dataclass
class IntegrityReport:
    """All checks of one model.

    Attributes:
        checks: by name, in the order they ran.
        max_length: tokens the model is meant for.
        probe_length: tokens of the probe sequence.
        parameters: trainable values by component.
        position_buckets: per component with buckets, how many a text of max_length reaches, of how
            many.
        probed: on what the checks ran: tokens, rows, S2 group, precision and kernels of the short
            probe, and of the one in training's own conditions if there was one.
    """

    max_length: int
    probe_length: int
    checks: dict[str, Check] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    position_buckets: dict[str, dict[str, int]] = field(default_factory=dict)
    probed: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """One sentence for each thing that is no fault, but must be known."""
        return [text for check in self.checks.values() for text in check.warnings]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok for check in self.checks.values())

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [name for name, check in self.checks.items() if not check.ok]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for integrity.json and the record of a run."""
        return {
            "ok": self.ok,
            "max_length": self.max_length,
            "probe_length": self.probe_length,
            "parameters": dict(self.parameters),
            "position_buckets": {k: dict(v) for k, v in self.position_buckets.items()},
            "probed": {k: dict(v) for k, v in self.probed.items()},
            "warnings": self.warnings,
            "checks": {
                name: {
                    "ok": check.ok,
                    "value": check.value,
                    "limit": check.limit,
                    "detail": check.detail,
                    "skipped": check.skipped,
                }
                for name, check in self.checks.items()
            },
        }

    def raise_if_failed(self) -> None:
        """Stop a run whose model is not what its settings say.

        Raises:
            IntegrityError: one line with the first failure, and the names of the others.
        """
        names = self.failed
        if names:
            others = f" (also failed: {', '.join(names[1:])})" if names[1:] else ""
            raise IntegrityError(f"integrity.{names[0]}: {self.checks[names[0]].detail}{others}")
