"""What training leaves: its part of result.json, lines of metrics.jsonl and timing.jsonl."""

# No `from __future__ import annotations`: the types are read at run time.
from typing import Annotated, NotRequired, TypedDict

from hylorada.records.described import About


class Split(TypedDict):
    """Communication between processes that shared training sequences."""

    sequences: Annotated[int, About("sequences that were split", "sequences")]
    sent: Annotated[
        dict[str, int],
        About(
            "bytes sent by all processes together, as counted when sending: `halo`, `keys and "
            "values`, `carry`, and the gradients of each",
            "bytes",
        ),
    ]
    formula: Annotated[
        dict[str, int],
        About(
            "the same according to `methods/sequence_split.py::bytes_of_a_step`",
            "bytes",
        ),
    ]


class Training(TypedDict):
    """What training did; zeros in a run that trains nothing (baseline)."""

    steps: Annotated[int, About("optimizer steps, including skipped ones", "steps")]
    skipped_steps: Annotated[
        int, About("steps without update: non-finite, or a loss spike", "steps")
    ]
    tokens: Annotated[int, About("scored tokens in steps that were not skipped", "tokens")]
    retrieval_steps: NotRequired[
        Annotated[
            int,
            About(
                "steps on retrieval examples instead of text",
                "steps",
                absent="without `train.mix`",
            ),
        ]
    ]
    seconds: Annotated[float, About("time in steps, over all attempts", "seconds")]
    ended_by: NotRequired[
        Annotated[
            str | None,
            About(
                "what ended training: `seconds`, `steps` (by epochs, steps or tokens), or "
                "`patience` (`train.patience` evaluations without improvement)",
                null="interrupted",
                absent="without `train.max_seconds` and `train.patience`, and where nothing trains",
            ),
        ]
    ]
    best_step: NotRequired[
        Annotated[
            int | None,
            About(
                "the step with the lowest validation loss, whose weights were saved",
                "steps",
                null="no evaluation was finite, so the last weights were saved",
                absent="without `train.keep_best`",
            ),
        ]
    ]
    best_validation_ppl: NotRequired[
        Annotated[
            float | None,
            About(
                "validation perplexity (`blocks`) at `best_step`",
                null="as `best_step`",
                absent="without `train.keep_best`",
            ),
        ]
    ]
    tokens_per_second: Annotated[float | None, About("tokens / seconds", null="nothing trained")]
    final_loss: Annotated[
        float | None, About("loss of the last step", "nats per token", null="nothing trained")
    ]
    peak_memory_bytes: Annotated[int | None, About("peak memory", "bytes", null="nothing trained")]
    peak_memory_of: Annotated[
        str, About("which memory: `host`, of the process, or `device`, allocated on a GPU")
    ]
    peak_memory_reserved_bytes: NotRequired[
        Annotated[
            int,
            About("GPU memory reserved by torch, in the last attempt", "bytes", absent="on a CPU"),
        ]
    ]
    micro_batch_size: NotRequired[
        Annotated[
            int,
            About(
                "final micro-batch size, after halving when memory ran out",
                "sequences",
                absent="as set",
            ),
        ]
    ]
    split: NotRequired[
        Annotated[
            Split,
            About(
                "communication for split sequences, in the last attempt",
                absent="`sequence_ranks=1`, or training did not finish",
            ),
        ]
    ]
    precision: Annotated[str, About("`fp32`, or `bf16` or `fp16` (autocast)")]
    device: Annotated[str, About("`cpu` or `cuda`")]


# What every line of a step that moved the weights has.
_Rate = Annotated[float, About("learning rate of the step, before train.lr_scale")]
_Norm = Annotated[float, About("norm of all gradients, before clipping")]
_Tokens = Annotated[int, About("tokens scored so far", "tokens")]
TrainingLine = TypedDict(
    "TrainingLine",
    {
        "step": Annotated[int, About("step, counted from 1", "steps")],
        "train/loss": Annotated[float, About("mean loss of the step", "nats per token")],
        "train/lr": _Rate,
        "train/grad_norm": _Norm,
        "train/tokens": _Tokens,
    },
)
RetrievalLine = TypedDict(
    "RetrievalLine",
    {
        "step": Annotated[int, About("step, counted from 1", "steps")],
        "train/retrieval_loss": Annotated[
            float,
            About("mean loss of a step on retrieval examples (`train.mix`)", "nats per token"),
        ],
        "train/lr": _Rate,
        "train/grad_norm": _Norm,
        "train/tokens": _Tokens,
    },
)
SkippedLine = TypedDict(
    "SkippedLine",
    {
        "step": Annotated[int, About("step, counted from 1", "steps")],
        "train/skipped": Annotated[
            str, About("why the step was skipped: what was not finite, or a loss spike")
        ],
    },
)
ValidationLine = TypedDict(
    "ValidationLine",
    {
        "step": Annotated[int, About("step after which it was measured", "steps")],
        "validation/ppl": Annotated[float, About("validation perplexity (`blocks`)")],
    },
)


class TimingLine(TypedDict):
    """A line of timing.jsonl: what differs from one attempt to the next."""

    step: Annotated[int, About("step, counted from 1", "steps")]
    seconds: Annotated[float, About("duration of this step", "seconds")]
    tokens: Annotated[int, About("tokens scored in this step", "tokens")]
    peak_memory_bytes: Annotated[int, About("peak memory so far", "bytes")]
