"""What goes wrong at the hub, as one line that names the reason and a way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hylorada.errors import DataError, DiskError, HyloradaError, chain, in_one_line
from hylorada.process.disk import disk_error


@contextmanager
def explained(what: str, revision: str, way: str) -> Iterator[None]:
    """Turn whatever the clients raise into one line that ends with a way out."""
    try:
        yield
    except HyloradaError:
        raise
    except Exception as error:  # the clients raise some twenty kinds
        if (known := cache_error(error)) is not None:
            raise known from error
        raise DataError(f"{what}: {_reason(error, revision)}; {way}") from error


def cache_error(error: BaseException) -> DiskError | None:
    """What it means that the hub's cache cannot be written, if that is what went wrong."""
    from huggingface_hub import constants

    for each in chain(error):
        named = Path(str(getattr(each, "filename", None) or constants.HF_HUB_CACHE))
        for cache in map(Path, (constants.HF_HUB_CACHE, constants.HF_HOME)):
            if named.is_relative_to(cache) or cache.is_relative_to(named):
                known = disk_error(each, cache, remedy="set HF_HOME to another place")
                if known is not None:
                    return known
    return None


def _reason(error: Exception, revision: str) -> str:
    from huggingface_hub import constants

    causes = list(chain(error))
    names = {type(e).__name__ for e in causes}
    if "OfflineModeIsEnabled" in names or constants.HF_HUB_OFFLINE:
        at = f" at {revision}" if revision else ""
        return f"not whole in the hub cache{at} ({constants.HF_HUB_CACHE}), HF_HUB_OFFLINE is set"
    if "GatedRepoError" in names or any("is a gated dataset" in str(e) for e in causes):
        return "gated: ask for access on its page and log in (hf auth login, or HF_TOKEN)"
    if "RevisionNotFoundError" in names:
        return f"the repository has no revision {revision}"
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return "no such repository, or a private one and no HF_TOKEN that may read it"
    status = next((s for s in map(_status, causes) if s), None)
    if status:
        return f"the hub {constants.ENDPOINT} answers {status}; try again later"
    if unreachable(error):
        detail = in_one_line(causes[-1], 300) or type(causes[-1]).__name__
        return f"the hub {constants.ENDPOINT} cannot be reached ({detail})"
    return f"cannot be loaded ({type(error).__name__}: {in_one_line(error, 300)})"


def unreachable(error: Exception) -> bool:
    """Whether the hub did not answer, or not now."""
    return any(
        isinstance(e, TimeoutError)
        or type(e).__name__ in _UNREACHABLE
        or (_status(e) or 0) in (429, 500, 502, 503, 504)
        for e in chain(error)
    )


_UNREACHABLE = {
    "ConnectError", "ConnectTimeout", "ConnectionError", "PoolTimeout", "ProxyError", "ReadError",
    "ReadTimeout", "RemoteProtocolError", "TimeoutException", "WriteError",
}  # fmt: skip


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None


def some(names: Any) -> str:
    """The first names of many, in words."""
    listed = sorted(names)
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "") or "nothing"
