"""What goes wrong at the hub, as one line that names the reason and a way out."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hylorada.errors import DataError, DiskError, HyloradaError


@contextmanager
def explained(what: str, revision: str, way: str) -> Iterator[None]:
    """Turn whatever the clients raise into one line that ends with a way out."""
    from huggingface_hub import constants

    try:
        yield
    except HyloradaError:
        raise
    except Exception as error:  # the clients raise some twenty kinds
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskError(
                f"{what}: the hub cache {constants.HF_HUB_CACHE} is full; make room or set "
                "HF_HOME to another disk"
            ) from error
        raise DataError(f"{what}: {_reason(error, revision)}; {way}") from error


def _reason(error: Exception, revision: str) -> str:
    from huggingface_hub import constants

    chain = list(_chain(error))
    names = {type(e).__name__ for e in chain}
    if "OfflineModeIsEnabled" in names or constants.HF_HUB_OFFLINE:
        at = f" at {revision}" if revision else ""
        return f"not whole in the hub cache{at} ({constants.HF_HUB_CACHE}), HF_HUB_OFFLINE is set"
    if "GatedRepoError" in names or any("is a gated dataset" in str(e) for e in chain):
        return "gated: ask for access on its page and log in (hf auth login, or HF_TOKEN)"
    if "RevisionNotFoundError" in names:
        return f"the repository has no revision {revision}"
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return "no such repository, or a private one and no HF_TOKEN that may read it"
    status = next((s for s in map(_status, chain) if s), None)
    if status:
        return f"the hub {constants.ENDPOINT} answers {status}; try again later"
    if unreachable(error):
        detail = one_line(chain[-1]) or type(chain[-1]).__name__
        return f"the hub {constants.ENDPOINT} cannot be reached ({detail})"
    return f"cannot be loaded ({type(error).__name__}: {one_line(error)})"


def unreachable(error: Exception) -> bool:
    """Whether the hub did not answer, or not now."""
    chain = list(_chain(error))
    return any(
        isinstance(e, TimeoutError)
        or type(e).__name__ in _UNREACHABLE
        or (_status(e) or 0) in (429, 500, 502, 503, 504)
        for e in chain
    )


_UNREACHABLE = {
    "ConnectError", "ConnectTimeout", "ConnectionError", "PoolTimeout", "ProxyError", "ReadError",
    "ReadTimeout", "RemoteProtocolError", "TimeoutException", "WriteError",
}  # fmt: skip


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())[:300]


def some(names: Any) -> str:
    """The first names of many, in words."""
    listed = sorted(names)
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "") or "nothing"
