"""Whether what is measured was also trained on: whole documents that stand in two splits."""

from __future__ import annotations

import hashlib

import numpy as np

from hylorada.data.token_corpus import TokenCorpus

_SHORTEST = 16  # tokens; shorter texts are equal by chance


def shared_documents(trained: TokenCorpus, measured: TokenCorpus) -> list[str]:
    """Names of the documents of a split whose tokens are those of a document of another.

    Only documents of equal length are compared, so that a large corpus is not read for it.
    """
    wanted = _lengths(measured)
    candidates = np.flatnonzero(np.isin(_lengths(trained), wanted[wanted >= _SHORTEST]))
    known = {_digest(trained.document_tokens(int(i))) for i in candidates}
    return [
        measured.documents[i].name
        for i in np.flatnonzero(wanted >= _SHORTEST).tolist()
        if _digest(measured.document_tokens(i)) in known
    ]


def _lengths(corpus: TokenCorpus) -> np.ndarray:
    return np.diff(corpus.ends, prepend=0)


def _digest(tokens: np.ndarray) -> bytes:
    return hashlib.sha256(tokens.astype("<u4").tobytes()).digest()
