"""What training leaves: its part of result.json, lines of metrics.jsonl and timing.jsonl."""

# No `from __future__ import annotations`: the types are read at run time.
from typing import Annotated, NotRequired, TypedDict

from hylorada.records.described import About


class Split(TypedDict):
    """What crossed between the parts of sequences that several processes shared."""

    sequences: Annotated[int, About("that training went through in parts", "sequences")]
    sent: Annotated[
        dict[str, int],
        About(
            "by all processes together, as each counted it where it sends: `halo`, `keys and "
            "values`, `carry`, and the gradients of each",
            "bytes",
        ),
    ]
    formula: Annotated[
        dict[str, int],
        About(
            "the same by `methods/sequence_split.py::bytes_of_a_step`, sequence for sequence",
            "bytes",
        ),
    ]


class Training(TypedDict):
    """What training did; zeros in a run that trains nothing (baseline)."""

    steps: Annotated[int, About("optimizer steps, skipped ones too", "steps")]
    skipped_steps: Annotated[int, About("that moved no weights: not finite, or a spike", "steps")]
    tokens: Annotated[int, About("scored, in steps that moved the weights", "tokens")]
    retrieval_steps: NotRequired[
        Annotated[
            int,
            About(
                "of these, on retrieval examples in the place of text",
                "steps",
                absent="without `train.mix`",
            ),
        ]
    ]
    seconds: Annotated[float, About("in steps, over all attempts", "seconds")]
    ended_by: NotRequired[
        Annotated[
            str | None,
            About(
                "what came to its end: `seconds`, `steps` (of epochs, steps or tokens), or "
                "`patience` (`train.patience` evaluations were no better)",
                null="stopped before",
                absent="without `train.max_seconds` and `train.patience`, and where nothing trains",
            ),
        ]
    ]
    best_step: NotRequired[
        Annotated[
            int | None,
            About(
                "the step whose weights the adapter has, of lowest validation loss",
                "steps",
                null="no evaluation gave a finite number, so it has the last ones",
                absent="without `train.keep_best`",
            ),
        ]
    ]
    best_validation_ppl: NotRequired[
        Annotated[
            float | None,
            About(
                "perplexity of the validation split at `best_step`, `blocks`",
                null="as `best_step`",
                absent="without `train.keep_best`",
            ),
        ]
    ]
    tokens_per_second: Annotated[float | None, About("tokens / seconds", null="nothing trained")]
    final_loss: Annotated[
        float | None, About("of the last step", "nats per token", null="nothing trained")
    ]
    peak_memory_bytes: Annotated[
        int | None, About("the most in use at once", "bytes", null="nothing trained")
    ]
    peak_memory_of: Annotated[
        str, About("whose memory: `host`, of the process, or `device`, allocated on a GPU")
    ]
    peak_memory_reserved_bytes: NotRequired[
        Annotated[
            int,
            About(
                "that torch took of the GPU for it, in the last attempt", "bytes", absent="on a CPU"
            ),
        ]
    ]
    micro_batch_size: NotRequired[
        Annotated[
            int,
            About(
                "of a forward pass at the end, halved whenever memory ran out",
                "sequences",
                absent="it is that of the settings",
            ),
        ]
    ]
    split: NotRequired[
        Annotated[
            Split,
            About(
                "sequences split over processes, in the last attempt",
                absent="`sequence_ranks=1`, or training did not come to its end",
            ),
        ]
    ]
    precision: Annotated[str, About("`fp32`, or `bf16` or `fp16` (autocast)")]
    device: Annotated[str, About("`cpu` or `cuda`")]


# What every line of a step that moved the weights has.
_Rate = Annotated[float, About("learning rate of the step, before train.lr_scale")]
_Norm = Annotated[float, About("of all gradients, before clipping")]
_Tokens = Annotated[int, About("scored so far", "tokens")]
TrainingLine = TypedDict(
    "TrainingLine",
    {
        "step": Annotated[int, About("from 1", "steps")],
        "train/loss": Annotated[float, About("mean of the step", "nats per token")],
        "train/lr": _Rate,
        "train/grad_norm": _Norm,
        "train/tokens": _Tokens,
    },
)
RetrievalLine = TypedDict(
    "RetrievalLine",
    {
        "step": Annotated[int, About("from 1", "steps")],
        "train/retrieval_loss": Annotated[
            float, About("mean of a step on retrieval examples (`train.mix`)", "nats per token")
        ],
        "train/lr": _Rate,
        "train/grad_norm": _Norm,
        "train/tokens": _Tokens,
    },
)
SkippedLine = TypedDict(
    "SkippedLine",
    {
        "step": Annotated[int, About("from 1", "steps")],
        "train/skipped": Annotated[
            str, About("why no weight moved: what was not finite, or a spike")
        ],
    },
)
ValidationLine = TypedDict(
    "ValidationLine",
    {
        "step": Annotated[int, About("after which it was measured", "steps")],
        "validation/ppl": Annotated[float, About("perplexity of the validation split, `blocks`")],
    },
)


class TimingLine(TypedDict):
    """A line of timing.jsonl: what differs from one attempt to the next."""

    step: Annotated[int, About("from 1", "steps")]
    seconds: Annotated[float, About("of this step", "seconds")]
    tokens: Annotated[int, About("scored in this step", "tokens")]
    peak_memory_bytes: Annotated[int, About("the most so far", "bytes")]
