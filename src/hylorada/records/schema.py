"""The files of a run: every field with its type, unit, meaning, and when it is null.

`Record` is result.json, schema `VERSION`. A field that is added does not change the version; one
that goes, or comes to mean something else, does. docs/RECORDS.md is made from this file and
`metric_schema` by ``python scripts/records_document.py``.
"""

# No `from __future__ import annotations`: the types are read at run time.
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from hylorada.records.base_schema import BaseModel
from hylorada.records.described import About, flaws
from hylorada.records.metric_schema import Metric, Metrics, metric_kind
from hylorada.records.training_schema import Training

VERSION = 1
"""Of the schema; records that do not say theirs are of version 1."""


class Base(TypedDict):
    """The untouched base, measured as the run is; both empty if the run did not come that far."""

    extended: NotRequired[
        Annotated[
            Metrics,
            About(
                "in the run's window, its range extended, untrained",
                absent="not measured",
                needed=True,
            ),
        ]
    ]
    own_window: NotRequired[
        Annotated[
            Metrics,
            About(
                "the base as loaded, in its own window; empty if the run's window is no "
                "longer, or perplexity is not measured",
                absent="not measured",
                needed=True,
            ),
        ]
    ]


# The functional form: "from" is a word of Python.
PositionRange = TypedDict(
    "PositionRange",
    {
        "kind": Annotated[
            str, About("what was extended: `none`, `rope`, `learned` or `distances` (ALiBi)")
        ],
        "from": Annotated[int, About("the base's trained length", "tokens")],
        "to": NotRequired[
            Annotated[
                int,
                About("extended length", "tokens", absent="a measured adapter without extension"),
            ]
        ],
        "factor": NotRequired[
            Annotated[
                float | None, About("extension factor", null="no extension", absent="as `to`")
            ]
        ],
        "type": NotRequired[
            Annotated[
                str, About("RoPE scaling, or initialisation of learned positions", absent="as `to`")
            ]
        ],
    },
)


class Experts(TypedDict):
    """How much of a mixture of experts the adapter reaches."""

    share: Annotated[
        float, About("share of the decoder layers' parameters that belongs to experts, 0 to 1")
    ]
    adapted: Annotated[float, About("share of the experts' parameters that is adapted, 0 to 1")]
    note: Annotated[str, About("explanation in words")]


class Parameters(TypedDict):
    """Numbers of parameters."""

    total: Annotated[int, About("all parameters", "numbers")]
    trainable: Annotated[int, About("trainable parameters", "numbers")]
    by_group: Annotated[dict[str, int], About("trainable parameters by component", "numbers")]
    placebo: NotRequired[
        Annotated[
            list[str],
            About(
                "components that are trained and counted, but whose output is multiplied by 0",
                absent="`method.placebo=false`",
            ),
        ]
    ]
    experts: NotRequired[Annotated[Experts, About("for a mixture of experts", absent="no mixture")]]


class Check(TypedDict):
    """One check of the integrity gate."""

    ok: Annotated[bool, About("whether it passed or was skipped", needed=True)]
    value: Annotated[
        float | None,
        About("what was measured, in the unit that `detail` names", null="skipped, or no number"),
    ]
    limit: Annotated[float | None, About("limit for `value`", null="as `value`")]
    detail: Annotated[str, About("one sentence; for a failure also what to do")]
    skipped: Annotated[str, About("why it was skipped; empty if it ran")]


class Integrity(TypedDict):
    """What the gate found before training; also integrity.json."""

    ok: Annotated[bool, About("whether no check failed")]
    max_length: Annotated[int, About("length of a training sequence", "tokens")]
    probe_length: Annotated[int, About("length of the probe", "tokens")]
    parameters: Annotated[dict[str, int], About("trainable parameters by component", "numbers")]
    position_buckets: Annotated[
        dict[str, dict[str, int]],
        About("for each component with buckets, how many are reached, and how many exist"),
    ]
    probed: Annotated[
        dict[str, dict[str, Any]],
        About("what the checks ran on: `short` probe, and `in_place` as in training"),
    ]
    warnings: Annotated[list[str], About("what is not a failure but should be known")]
    checks: Annotated[dict[str, Check], About("checks by name, in the order in which they ran")]


class Machine(TypedDict):
    """Code, versions and hardware of a process."""

    git: Annotated[
        str | None, About("commit of the package, `-dirty` if changed", null="no checkout")
    ]
    versions: Annotated[dict[str, str], About("versions of Python and packages")]
    device: Annotated[str, About("`cpu`, `cuda:0`")]
    hardware: Annotated[str, About("name of the processor or accelerator")]
    threads: Annotated[int, About("number of torch threads", "threads")]
    time: Annotated[str, About("start time, ISO 8601, UTC")]


class Processes(TypedDict):
    """The processes of a run that had several; no number depends on them."""

    world: Annotated[int, About("number of processes", "processes")]
    hosts: Annotated[list[str], About("machines they ran on")]


class Provenance(Machine, BaseModel):
    """Where the numbers came from; a run that ended early has what it knew by then."""

    processes: NotRequired[
        Annotated[Processes, About("processes that shared the work", absent="a single process")]
    ]
    dataset: NotRequired[
        Annotated[dict[str, str], About("description of the text, by split", absent="ended early")]
    ]
    dataset_sha256: NotRequired[
        Annotated[dict[str, str], About("sha256 of the text, by split", absent="ended early")]
    ]
    documents_in_both: NotRequired[
        Annotated[
            int,
            About(
                "documents both trained on and measured",
                "documents",
                absent="trains on no text, or measures the train split",
            ),
        ]
    ]
    precision: NotRequired[Annotated[str, About("`fp32`, `bf16` or `fp16`", absent="ended early")]]
    tokenizer_sha256: NotRequired[
        Annotated[str, About("sha256 of the tokenizer", absent="ended early")]
    ]
    hardware_in_order: NotRequired[
        Annotated[
            list[dict[str, str]],
            About(
                "`device` and `precision` of each attempt (`resume_on=any`)",
                absent="the same for all attempts",
            ),
        ]
    ]
    inputs: NotRequired[
        Annotated[
            dict[str, dict[str, Any]],
            About(
                "inputs by name: a `hint` (sizes and times of files) and a `sha256`, or a "
                "`commit` on the hub; for the data set `texts`, sha256 by split",
                absent="ended early",
            ),
        ]
    ]


class FileHash(TypedDict):
    """A file that the run left."""

    bytes: Annotated[int, About("size; metrics.jsonl may have grown since", "bytes", needed=True)]
    sha256: Annotated[str, About("sha256 of these bytes", needed=True)]


class Candidate(TypedDict):
    """A combination of values that a choice was made among."""

    settings: Annotated[dict[str, Any], About("the values, by key")]
    loss: Annotated[
        float | None,
        About("mean over the seeds", "nats per token", null="training diverged, or not finished"),
    ]


class Chosen(TypedDict):
    """Why this run and no other one of its grid was measured (`hylorada-eval chosen=`)."""

    grid: Annotated[str, About("folder of the grid's runs, as typed")]
    settings: Annotated[dict[str, Any], About("chosen values, by key")]
    among: Annotated[list[Candidate], About("all candidates tried for this method")]
    split: Annotated[str, About("split whose loss was compared")]
    convention: Annotated[str, About("convention of that loss")]
    tokens: Annotated[int, About("number of scored tokens", "tokens")]
    seeds: Annotated[list[int], About("seeds over which it was averaged")]


class Evaluation(TypedDict):
    """A time that a finished run was measured again (`hylorada-eval run=` or `chosen=`)."""

    chosen: NotRequired[Annotated[Chosen, About("how it was chosen", absent="measured by `run=`")]]

    eval: Annotated[dict[str, Any], About("settings of each measurement")]
    metrics: Annotated[list[str], About("names of the metrics measured")]
    replaced: Annotated[Metrics, About("previous values in `metrics`")]
    replaced_base: Annotated[dict[str, Metrics], About("previous values in `base`")]
    text: Annotated[str, About("description of the text measured")]
    text_sha256: Annotated[str, About("sha256 of that text")]
    precision: Annotated[str, About("`fp32`, `bf16` or `fp16`")]
    weights: Annotated[str, About("precision of the frozen weights")]
    device: Annotated[str, About("`cpu` or `cuda`")]
    frozen_kernels: Annotated[bool, About("`train.frozen_kernels` at that time")]
    provenance: Annotated[Machine, About("code, versions and hardware at that time")]


class Settings(TypedDict):
    """The composed settings, as `hylorada-train --cfg job` prints them; units in config/."""

    method: Annotated[
        dict[str, Any],
        About(
            "the method; for an adapter that was only measured `adapter` (its folder), "
            "`adapter_sha256`, `adapter_config_sha256`, `peft_type` instead of its settings",
            needed=True,
        ),
    ]
    model: Annotated[dict[str, Any], About("the base", needed=True)]
    dataset: Annotated[dict[str, Any], About("the text", needed=True)]
    length: Annotated[dict[str, Any], About("the window and its batch", needed=True)]
    train: Annotated[
        dict[str, Any] | None,
        About("training", null="only an adapter was measured", needed=True),
    ]
    eval: Annotated[dict[str, Any], About("what was measured, under these settings", needed=True)]


Status = Literal["ok", "failed", "interrupted", "diverged", "running"]


class Record(TypedDict):
    """result.json: what a run was asked, what it measured, and how it ended."""

    schema: Annotated[int, About("version of this schema")]
    status: Annotated[
        Status,
        About(
            "outcome: `ok`, `failed`, `interrupted` by a signal, `diverged` (exit codes: "
            "USAGE.md); `running` is never written",
            needed=True,
        ),
    ]
    error: Annotated[str | None, About("the error message", null="the run is ok")]
    name: Annotated[str, About("name of the run and of its directory", needed=True)]
    fingerprint: Annotated[
        str, About("of the settings that can change a number: 10 hexadecimal digits", needed=True)
    ]
    method: Annotated[
        str, About("`method.name`; for a measured adapter `adapter-<folder>`", needed=True)
    ]
    length: Annotated[int, About("window of training and evaluation", "tokens", needed=True)]
    seed: Annotated[int, About("seed of the run", needed=True)]
    model: Annotated[str, About("`model.name`", needed=True)]
    dataset: Annotated[str, About("`dataset.name`", needed=True)]
    metrics: Annotated[
        Metrics,
        About(
            "metrics of the trained model, by name; for a baseline those of the extended base; "
            "empty if the run did not get that far",
            needed=True,
        ),
    ]
    base: Annotated[Base, About("metrics of the untouched base", needed=True)]
    left_out: Annotated[
        dict[str, str], About("components that the model does not support, with the reason")
    ]
    position_range: Annotated[
        PositionRange | None,
        About("how the position range was extended", null="the run did not get that far"),
    ]
    parameters: Annotated[
        Parameters | None, About("parameter counts", null="the run did not get that far")
    ]
    training: Annotated[
        Training | None,
        About(
            "training statistics",
            null="only an adapter was measured, or the run did not get that far",
        ),
    ]
    seconds: NotRequired[
        Annotated[
            dict[str, float],
            About("duration of each phase of the last attempt", "seconds", absent="ended early"),
        ]
    ]
    integrity: Annotated[
        Integrity | None,
        About(
            "findings of the integrity gate",
            null="`integrity.enabled=false`, only an adapter was measured, or not that far",
        ),
    ]
    config: Annotated[Settings, About("the settings", needed=True)]
    provenance: Annotated[Provenance, About("code, versions, hardware, weights, text")]
    files: NotRequired[
        Annotated[
            dict[str, FileHash],
            About(
                "files written by the run, by name: metrics.jsonl, integrity.json, adapter/...",
                absent="the run is not ok, or only an adapter was measured",
                needed=True,
            ),
        ]
    ]
    evaluations: NotRequired[
        Annotated[list[Evaluation], About("later measurements", absent="there were none")]
    ]
    sha256: Annotated[
        str, About("sha256 of all other fields, as JSON with sorted keys and no spaces")
    ]


# The functional form: names with a slash.
OPEN = (Metric, Settings)
"""What may have fields that are not described here."""


def narrowed(name: str, kind: Any) -> Any:
    """The kind of an entry of a dictionary: that of a metric by its name."""
    return metric_kind(name) if kind is Metric else kind


def record_flaws(record: Mapping[str, Any], *, whole: bool = False) -> Iterator[str]:
    """What keeps a value from being a record that this version reads, in words.

    Args:
        record: what a result.json holds.
        whole: whether it must be as this version writes it: no field missing or unknown.
    """
    if isinstance(record, dict) and record.get("schema", VERSION) != VERSION:
        yield f"schema {record['schema']!r}; this version reads {VERSION}"
        return
    deep = isinstance(record, dict) and "sha256" not in record  # nothing says that we wrote it
    yield from flaws(record, Record, whole=whole, deep=deep, narrow=narrowed, open_kinds=OPEN)
    if isinstance(record, dict) and record.get("status") == "ok" and not record.get("parameters"):
        yield "no field 'parameters', which a run that is ok has"
