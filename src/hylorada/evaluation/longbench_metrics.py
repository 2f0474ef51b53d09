"""LongBench's official metrics for its 21 tasks (Bai et al., arXiv 2308.14508), reproduced.

Written from what the published scorer does, quirks included, since a number is only comparable if
it is made the same way: each is said where it is. They reproduce the published scores of published
predictions to the last printed digit. Chinese tasks need a word segmenter (`jieba`, in the extra
`longbench`); the rest is the standard library and numpy.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hylorada.errors import ConfigError, DataError

_CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟"  # noqa: RUF001
    "〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)
# The answer of these tasks is the first line; a model that goes on with the next example is cut.
FIRST_LINE_TASKS = ("trec", "triviaqa", "samsum", "lsht")


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the multiset of tokens."""
    same = sum((Counter(prediction) & Counter(answer)).values())
    if not same:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def qa_f1(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Token F1 of the normal forms."""
    return token_f1(normalize_answer(prediction).split(), normalize_answer(answer).split())


def qa_f1_zh(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Token F1 over Chinese words; a word of punctuation alone does not count."""

    def words(text: str) -> list[str]:
        dropped = set(string.punctuation + _CHINESE_PUNCTUATION)
        cleaned = (
            "".join("".join(c for c in word.lower() if c not in dropped).split())
            for word in _chinese_words(text)
        )
        return [word for word in cleaned if word]

    return token_f1(words(prediction), words(answer))


def rouge_l(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Summary-level ROUGE-L, F1 with equal weights, as the package `rouge` 1.0.1 computes it.

    Sentences end at a full stop and nowhere else. Words count once each: the score is the F1 of the
    set of words that lie on a longest common subsequence of some pair of sentences.
    """
    predicted, expected = _sentences(prediction), _sentences(answer)
    if not predicted or not expected:
        return 0.0
    found: set[str] = set()
    for sentence in expected:
        found |= _common_words(sentence, predicted)
    recall = len(found) / len({word for sentence in expected for word in sentence})
    precision = len(found) / len({word for sentence in predicted for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def rouge_l_zh(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """ROUGE-L over Chinese words."""
    return rouge_l(" ".join(_chinese_words(prediction)), " ".join(_chinese_words(answer)))


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """1 / number of classes named, if the right one is among them.

    A named class that is a proper part of the right one is taken out of the count; as published,
    the class that follows such a one is not looked at.
    """
    named = [name for name in classes if name in prediction]
    i = 0
    while i < len(named):
        if named[i] in answer and named[i] != answer:
            named.remove(named[i])
        i += 1  # also after a removal: the next one is passed over
    return 1 / len(named) if answer in named else 0.0


def _share_of_numbers(prediction: str, right: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def count(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Share of the numbers in the prediction that are the right one."""
    return _share_of_numbers(prediction, answer)


def retrieval(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """The same, for the number in "Paragraph 12" (or its Chinese form)."""
    found = re.search(r"(?:Paragraph |段落)(\d+)", answer)
    if found is None:
        raise DataError(f"longbench: the answer {answer!r} names no paragraph")
    return _share_of_numbers(prediction, found.group(1))


def code_similarity(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Similarity, in hundredths, of the first line that is no comment and no code fence."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((x for x in lines if not any(mark in x for mark in ("`", "#", "//"))), "")
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


Metric = Callable[[str, str, Sequence[str]], float]
METRICS: dict[str, Metric] = {
    "narrativeqa": qa_f1,
    "qasper": qa_f1,
    "multifieldqa_en": qa_f1,
    "multifieldqa_zh": qa_f1_zh,
    "hotpotqa": qa_f1,
    "2wikimqa": qa_f1,
    "musique": qa_f1,
    "dureader": rouge_l_zh,
    "gov_report": rouge_l,
    "qmsum": rouge_l,
    "multi_news": rouge_l,
    "vcsum": rouge_l_zh,
    "trec": classification,
    "triviaqa": qa_f1,
    "samsum": rouge_l,
    "lsht": classification,
    "passage_retrieval_en": retrieval,
    "passage_count": count,
    "passage_retrieval_zh": retrieval,
    "lcc": code_similarity,
    "repobench-p": code_similarity,
}


def score_row(
    task: str, prediction: str, answers: Sequence[str], classes: Sequence[str] | None = None
) -> float:
    """The best score over the references, 0 to 1.

    Args:
        task: a key of `METRICS`; LongBench-E's `<task>_e` is the same task.
        prediction: what the model said.
        answers: the references.
        classes: the classes to choose from, for the tasks that have them.

    Raises:
        ConfigError: an unknown task.
    """
    name = task.removesuffix("_e")
    if name not in METRICS:
        raise ConfigError(f"longbench: unknown task {task!r}; known are {', '.join(METRICS)}")
    if name in FIRST_LINE_TASKS:
        prediction = prediction.lstrip("\n").split("\n")[0]
    return max((METRICS[name](prediction, answer, classes or ()) for answer in answers), default=0)


def score_task(task: str, rows: Sequence[dict[str, Any]]) -> float:
    """The mean over the rows in percent, to two digits as published.

    Args:
        task: a key of `METRICS`.
        rows: with `pred`, `answers` and `all_classes`, as in the published files. As in the
            published scorer the classes of the last row hold for all.
    """
    if not rows:
        raise DataError(f"longbench: task {task} has no predictions")
    classes = rows[-1]["all_classes"]
    total = sum(score_row(task, row["pred"], row["answers"], classes) for row in rows)
    return round(100 * total / len(rows), 2)


@functools.cache
def _segmenter() -> Any:
    try:
        import jieba
    except ModuleNotFoundError as error:
        raise ConfigError(
            "longbench: the Chinese tasks need jieba; pip install 'hylorada[longbench]'"
        ) from error
    jieba.setLogLevel(logging.WARNING)
    return jieba


def _chinese_words(text: str) -> list[str]:
    return list(_segmenter().cut(text, cut_all=False))


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence; a sentence of spaces alone is one empty word, as published."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_words(expected: list[str], predicted: list[list[str]]) -> set[str]:
    """Words on the longest common subsequence of a sentence with each of several others.

    Which one of several longest is taken decides which words count: from the end, a match first,
    then a step back in the reference only if that is strictly better. All sentences share one table
    [I + 1, S, J + 1], filled row by row: t[i, s, j] is the length for i and j words.
    """
    ids = {word: number for number, word in enumerate(expected)}
    longest = max(map(len, predicted))
    words_SJ = np.full((len(predicted), longest), -1)
    for s, sentence in enumerate(predicted):
        words_SJ[s, : len(sentence)] = [ids.get(word, -1) for word in sentence]
    table_ISJ = np.zeros((len(expected) + 1, len(predicted), longest + 1), dtype=np.int32)
    for i, word in enumerate(expected, 1):
        before_SJ = table_ISJ[i - 1]
        matched_SJ = before_SJ[:, :-1] + (words_SJ == ids[word])
        np.maximum.accumulate(
            np.maximum(before_SJ[:, 1:], matched_SJ), axis=1, out=table_ISJ[i, :, 1:]
        )
    found = set()
    for s, sentence in enumerate(predicted):
        if not table_ISJ[-1, s, len(sentence)]:
            continue
        table_IJ = table_ISJ[:, s].tolist()
        i, j = len(expected), len(sentence)
        while i and j:
            if expected[i - 1] == sentence[j - 1]:
                found.add(expected[i - 1])
                i, j = i - 1, j - 1
            elif table_IJ[i - 1][j] > table_IJ[i][j - 1]:
                i -= 1
            else:
                j -= 1
    return found
