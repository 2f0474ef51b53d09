"""What a record says of a number that was measured: the fields of every metric, kind by kind.

A measurement of one's own needs no line here: what it adds to ``metrics`` is a `Metric` with any
further fields that say how it was made. `MEASURED` describes those of the measurements that ship.
"""

# No `from __future__ import annotations`: the types are read at run time.
from typing import Annotated, Any, NotRequired, TypedDict

from hylorada.records.described import About


class Metric(TypedDict):
    """One measured number. A measurement may add fields that say how it was measured."""

    value: Annotated[
        float | None,
        About("the number", null="it is not finite (a perplexity overflowed)", needed=True),
    ]
    low: NotRequired[
        Annotated[
            float | None,
            About("lower end of its 95 % interval", null="no interval", absent="no interval"),
        ]
    ]
    high: NotRequired[
        Annotated[
            float | None,
            About("upper end of its 95 % interval", null="no interval", absent="no interval"),
        ]
    ]


Metrics = dict[str, Metric]


class Slice(TypedDict):
    """Predictions made at positions [start, end) of the window."""

    start: Annotated[int, About("first position", "tokens", needed=True)]
    end: Annotated[int, About("position after the last", "tokens", needed=True)]
    sum_nll: Annotated[
        float | None, About("summed negative log-likelihood", "nats", "not finite", needed=True)
    ]
    tokens: Annotated[int, About("scored tokens", "tokens", needed=True)]
    ppl: Annotated[
        float | None,
        About("exp(sum_nll / tokens)", null="nothing was scored there, or it is not finite"),
    ]


class Document(TypedDict):
    """One document's share of a perplexity."""

    name: Annotated[str, About("name of the document", needed=True)]
    sum_nll: Annotated[
        float | None, About("summed negative log-likelihood", "nats", "not finite", needed=True)
    ]
    tokens: Annotated[int, About("scored tokens", "tokens", needed=True)]


class Perplexity(Metric):
    """`eval/ppl` (blocks), `eval/ppl_sliding`, `eval/ppl_word`, `eval/ppl_paper`."""

    convention: Annotated[str, About("`blocks`, `sliding`, `word` or `paper`")]
    window: Annotated[int, About("the most tokens of context, and of one forward pass", "tokens")]
    stride: Annotated[
        int | None,
        About("distance between sliding windows", "tokens", null="windows do not overlap"),
    ]
    split: Annotated[str, About("name of the split")]
    sum_nll: Annotated[float | None, About("summed negative log-likelihood", "nats", "not finite")]
    tokens: Annotated[int, About("scored tokens", "tokens")]
    scorable_tokens: Annotated[
        int, About("scorable tokens of the split: all but each document's first", "tokens")
    ]
    words: Annotated[int | None, About("words in the split", "words", null="a part was scored")]
    bytes: Annotated[int | None, About("bytes in the split", "bytes", null="a part was scored")]
    word_ppl: Annotated[
        float | None, About("exp(sum_nll / words)", null="a part was scored, or it is not finite")
    ]
    bits_per_byte: Annotated[
        float | None, About("sum_nll / ln 2 / bytes", "bits", null="a part was scored")
    ]
    by_position: Annotated[list[Slice], About("the same for equal slices of the window")]
    by_document: Annotated[list[Document], About("documents with scored tokens")]


class ShortContext(Perplexity):
    """`short_context/ppl`: by blocks, in a window in which the base needs no extension."""

    text_sha256: Annotated[str, About("sha256 of the split's text")]


_FEW_EXAMPLES = "fewer than 3 depths or examples"
_FEW_DOCUMENTS = "the shortest context, or fewer than 3 documents"


class Depth(TypedDict):
    """The prompts whose answer lies at one depth."""

    depth: Annotated[
        float, About("position of the answer: 0 at the beginning, 1 at the end", needed=True)
    ]
    prompts: Annotated[int, About("number of prompts", "prompts", needed=True)]
    accuracy: Annotated[float, About("share of right answers, 0 to 1", needed=True)]
    low: Annotated[float, About("lower end of its 95 % interval")]
    high: Annotated[float, About("upper end of its 95 % interval")]


class Retrieval(Metric):
    """`lim/accuracy`: share of right answers, 0 to 1; `lim/accuracy_generated`: when generated."""

    scoring: Annotated[str, About("`ranked` or `generated`")]
    chance: Annotated[float, About("accuracy of guessing")]
    window: Annotated[int, About("maximum length of a prompt with its answer", "tokens")]
    prompt_tokens: Annotated[list[int], About("length of the shortest and of the longest prompt")]
    by_depth: Annotated[list[Depth], About("accuracy at each depth")]
    by_example: NotRequired[
        Annotated[
            list[list[float]],
            About(
                "credit of each example, 0 to 1, at each depth in the order of `by_depth`; "
                "empty if some example was not asked at every depth",
                absent="older records",
            ),
        ]
    ]
    middle_gap: Annotated[float | None, About("as `lim/middle_gap`", null="fewer than 3 depths")]
    middle_gap_low: Annotated[float | None, About("its 95 % interval", null=_FEW_EXAMPLES)]
    middle_gap_high: Annotated[float | None, About("its 95 % interval", null=_FEW_EXAMPLES)]
    prompts: Annotated[int, About("number of prompts", "prompts")]
    form: Annotated[str, About("`kv`, `nq` or `passkey`")]
    source: Annotated[str, About("`generated`, or the file's name and the start of its sha256")]
    items: Annotated[int, About("pairs, documents or lines per prompt")]
    key_style: Annotated[str | None, About("`uuid` or `hex`", null="prompts from a file")]
    prompts_sha256: Annotated[str, About("sha256 of all prompts with answers and candidates")]
    note: Annotated[str, About("a remark on the number; often empty")]


class RetrievalAtDepth(Metric):
    """`lim/accuracy@<depth>`: accuracy where the answer lies at that depth."""

    prompts: Annotated[int, About("number of prompts", "prompts")]
    depth: Annotated[float, About("0 at the beginning, 1 at the end")]
    chance: Annotated[float, About("accuracy of guessing")]


class MiddleGap(Metric):
    """`lim/middle_gap`: accuracy at the two ends minus that between them."""


class Context(TypedDict):
    """The loss of the same tokens with one amount of context before them."""

    context: Annotated[int, About("context before the targets", "tokens", needed=True)]
    sum_nll: Annotated[float, About("summed loss of the targets", "nats", needed=True)]
    tokens: Annotated[int, About("number of targets", "tokens", needed=True)]
    gain: Annotated[
        float, About("reduction in nats per token relative to the shortest context", needed=True)
    ]
    gain_low: Annotated[float | None, About("its 95 % interval", null=_FEW_DOCUMENTS)]
    gain_high: Annotated[float | None, About("its 95 % interval", null=_FEW_DOCUMENTS)]
    ppl: Annotated[float | None, About("exp(sum_nll / tokens)", null="it is not finite")]


class DocumentGain(TypedDict):
    """What the longest context is worth over the shortest in one document."""

    name: Annotated[str, About("name of the document", needed=True)]
    places: Annotated[int, About("number of scored places", "places", needed=True)]
    gain: Annotated[float, About("mean over its places", "nats per token", needed=True)]


class ContextGain(Metric):
    """`context_gain/gain`: nats per token that the longest context is worth over the shortest."""

    context: Annotated[int, About("longest context", "tokens")]
    shortest_context: Annotated[int, About("shortest context", "tokens")]
    window: Annotated[int, About("window of the run", "tokens")]
    targets: Annotated[int, About("scored tokens per place", "tokens")]
    places: Annotated[int, About("number of places", "places")]
    split: Annotated[str, About("name of the split")]
    text_sha256: Annotated[str, About("sha256 of the split's text")]
    by_context: Annotated[list[Context], About("loss with each amount of context")]
    by_document: NotRequired[
        Annotated[
            list[DocumentGain],
            About("the gain in each document", absent="older records"),
        ]
    ]


class LossAtContext(Metric):
    """`context_gain/nll@<context>`: mean loss with that much context, in nats per token."""

    sum_nll: Annotated[float, About("summed loss of the targets", "nats")]
    tokens: Annotated[int, About("number of targets", "tokens")]
    context: Annotated[int, About("context before the targets", "tokens")]


class Benchmark(Metric):
    """`longbench/<task>`, `ruler/<task>` and their averages: the published score, 0 to 100."""

    examples: Annotated[int, About("number of examples")]
    cut: Annotated[int, About("prompts truncated to the window", "examples")]
    questions_sha256: Annotated[str, About("sha256 of all questions")]
    window: Annotated[int, About("maximum length of a prompt with its answer", "tokens")]
    limit: Annotated[int, About("examples per task; 0: all", "examples")]
    lm_eval: Annotated[str, About("version of lm-eval")]
    prompt_tokens: NotRequired[
        Annotated[
            list[int],
            About("length of the shortest and of the longest prompt", absent="an average"),
        ]
    ]
    answer_tokens: NotRequired[
        Annotated[int, About("maximum length of an answer", "tokens", absent="an average")]
    ]
    by_length: NotRequired[
        Annotated[
            list[dict[str, Any]],
            About(
                "score by the length of the text in words", absent="a task without length buckets"
            ),
        ]
    ]
    tasks: NotRequired[Annotated[list[str], About("tasks of an average", absent="a single task")]]


MEASURED: dict[str, type] = {
    "eval/ppl": Perplexity,
    "short_context/": ShortContext,
    "lim/accuracy": Retrieval,
    "lim/accuracy@": RetrievalAtDepth,
    "lim/accuracy_generated": Retrieval,
    "lim/accuracy_generated@": RetrievalAtDepth,
    "lim/middle_gap": MiddleGap,
    "context_gain/gain": ContextGain,
    "context_gain/nll@": LossAtContext,
    "longbench/": Benchmark,
    "ruler/": Benchmark,
}
"""Beginning of a metric's name -> its fields; the longest beginning counts, otherwise `Metric`."""


def metric_kind(name: str) -> Any:
    """The fields that a metric has, by its name."""
    known = [beginning for beginning in MEASURED if name.startswith(beginning)]
    return MEASURED[max(known, key=len)] if known else Metric
