"""The processes of one run, and what they tell each other.

Each has a rank. The first one (rank 0) writes and decides; what it decides, or the error that it
ends with, reaches all. With one process nothing is sent, and the same code runs.

What is decided and measured travels as JSON, never pickled. It goes between hosts (gloo); sums of
tensors on GPUs go between these (NCCL).
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hylorada import errors
from hylorada.errors import ConfigError, HyloradaError, Interrupted, PeerError, in_one_line
from hylorada.process.device import refuse_too_many
from hylorada.process.place import Place, place
from hylorada.process.signals import Stop

TIMEOUT = datetime.timedelta(minutes=10)
"""That a process waits for the others: longer than anything one of them does alone."""
_ERROR = "error"  # where a process that ends says why
_WAIT = 5.0  # seconds, for the reason of another one's end

Item = TypeVar("Item")


class Ranks:
    """This process among those of its run.

    Attributes:
        place: which one it is.
        stop: whether a signal has come; processes agree on it where they meet.
        hosts: of all processes, by rank.
        per_sequence: how many neighbours share each sequence (`split_sequences`).
        alike: whether all run the model equally often, since each has but a part of it.
    """

    def __init__(self, at: Place | None = None, store: Any = None) -> None:
        """See `joined`, which makes it; without arguments: a process alone."""
        self.place = at or Place()
        self.stop: Stop | None = None
        self.per_sequence, self.alike = 1, False
        self._group: Any = None
        self._store = store
        self.hosts: list[str] = [socket.gethostname()]
        if self.world > 1:
            self.hosts = [each["host"] for each in self._gathered({"host": self.hosts[0]})]

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self.place.rank

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.place.world

    @property
    def is_first(self) -> bool:
        """Whether this process writes and decides."""
        return self.place.is_first

    def share(self, count: int) -> range:
        """Which of ``count`` things are this process's: neighbours; the first ranks take one more.

        Those that share each sequence have the same ones.

        Args:
            count: may be less than there are processes; some then have none.
        """
        number = self.rank // self.per_sequence
        each, more = divmod(count, self.groups)
        first = number * each + min(number, more)
        return range(first, first + each + (number < more))

    @property
    def groups(self) -> int:
        """How many sequences are worked on at a time."""
        return self.world // self.per_sequence

    @property
    def independent(self) -> bool:
        """Whether nobody waits for this process inside of a forward or backward pass."""
        return self.per_sequence == 1 and not self.alike

    def split_sequences(self, processes: int) -> Any:
        """Have neighbours share each sequence from now on.

        Args:
            processes: in a group; a divisor of all.

        Returns:
            the group of this process (torch.distributed).
        """
        if self.per_sequence != processes:
            self.per_sequence = processes
            firsts = range(0, self.world, processes)
            members = [list(range(first, first + processes)) for first in firsts]
            groups = [dist.new_group(ranks, timeout=TIMEOUT) for ranks in members]
            self._group = groups[self.rank // processes]
        return self._group

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor of one shape over all processes, in place."""
        if self.world > 1:
            with self._heard():
                dist.all_reduce(tensor)
        return tensor

    def most(self, value: float) -> float:
        """The largest of all processes' values."""
        if self.world == 1:
            return value
        found = torch.tensor([value], dtype=torch.float64)
        with self._heard():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return float(found)

    def agree(self, value: float) -> bool:
        """Whether all processes have the same value."""
        return self.most(value) == -self.most(-value)

    def decided(self, decide: Callable[[], Any]) -> Any:
        """What the first process makes of a question; the others do not ask it.

        Args:
            decide: gives plain values, as JSON has them.

        Raises:
            HyloradaError: of `decide`, on every process.
        """
        if self.world == 1:
            return decide()
        message: dict[str, Any] = {}
        if self.is_first:
            try:
                message = {"value": decide()}
            except Exception as error:
                self._from_first(_encoded({"error": _told(error)}))
                raise
        message = _decoded(self._from_first(_encoded(message)))
        if "error" in message:
            raise _error(message["error"], 0)
        return message["value"]

    def bytes_of_first(self, data: bytes) -> bytes:
        """What the first process gives; of the others it is ignored."""
        return self._from_first(data) if self.world > 1 else data

    def in_order(self, items: Sequence[Item], work: Callable[[Item], Any]) -> Iterator[Any]:
        """Do something with each item, dealt out, and yield what comes of it in order, everywhere.

        In round k process r has item k * world + r; where all must run the model alike, each has
        every item. A signal that one process has heard is known to
        all (`Stop.requested`) when the results of its round come.

        Args:
            items: the same on every process.
            work: gives plain values, or an array of float64.

        Raises:
            HyloradaError: of the first item whose work ended so, on every process.
        """
        for first in range(0, len(items), 1 if self.alike else self.world):
            mine, failed = first if self.alike else first + self.rank, None
            message: dict[str, Any] = {}
            if mine < len(items):
                try:
                    message["value"] = work(items[mine])
                except Exception as error:
                    message["error"], failed = _told(error), error
            message["signal"] = self.heard
            messages = self._gathered(message)
            self.agree_to_stop(max(each["signal"] for each in messages))
            for rank, each in enumerate(messages):
                if "error" in each:
                    own = failed if rank == self.rank else None
                    raise own or _error(each["error"], rank)
                if "value" in each and not (self.alike and rank):
                    yield each["value"]

    @property
    def heard(self) -> int:
        """The signal that this process has heard, and the others may not; 0: none."""
        return (self.stop.heard or 0) if self.stop is not None and self.world > 1 else 0

    def agree_to_stop(self, signal_number: int) -> None:
        """Take note of the signal that any process has heard; 0: none."""
        if self.stop is not None and self.world > 1:
            self.stop.agree(signal_number)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """What ends the block is left where the others find it when they miss this process."""
        try:
            yield
        except BaseException as error:
            if self._store is not None and not self.is_first and not isinstance(error, PeerError):
                with contextlib.suppress(Exception):  # the first one may be gone
                    self._store.set(_ERROR, _encoded({"rank": self.rank, **_told(error)}))
            raise

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """A process that is gone is an error that says so, or that it ended with."""
        try:
            yield
        except RuntimeError as error:  # of gloo, NCCL or the store, in words of their own
            if self.stop is not None:
                self.stop.ending()
            raise self._why_gone() from error

    @contextlib.contextmanager
    def taking_part(self) -> Iterator[None]:
        """The same of a forward and backward pass in which processes wait for each other."""
        try:
            yield
        except RuntimeError as error:
            if self.independent or not _of_transport(error):
                raise
            if self.stop is not None:
                self.stop.ending()
            raise self._why_gone() from error

    def _why_gone(self) -> HyloradaError:
        """Why another process has ended, if it has said so."""
        until = time.monotonic() + _WAIT
        while self.is_first and self._store is not None and time.monotonic() < until:
            with contextlib.suppress(Exception):
                if self._store.check([_ERROR]):
                    told = _decoded(self._store.get(_ERROR))
                    return _error(told, told["rank"])
            time.sleep(0.1)
        return PeerError(
            "another process of this run has ended; run the same command again to continue"
        )

    def _from_first(self, data: bytes) -> bytes:
        with self._heard():
            size = torch.tensor([len(data)])
            dist.broadcast(size, 0)
            found = torch.empty(int(size), dtype=torch.uint8)
            if self.is_first and data:
                found = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            dist.broadcast(found, 0)
        return found.numpy().tobytes()

    def _gathered(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages of all processes, by rank."""
        if self.world == 1:
            return [message]
        data = _encoded(message)
        with self._heard():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = max(int(size) for size in sizes)
            padded = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
            found = [torch.empty_like(padded) for _ in range(self.world)]
            dist.all_gather(found, padded)
        return [
            _decoded(each.numpy().tobytes()[: int(size)])
            for each, size in zip(found, sizes, strict=True)
        ]


def _of_transport(error: RuntimeError) -> bool:
    """Whether it was raised where messages go between processes."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


ALONE = Ranks()
"""A process alone."""


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Meet the other processes of the run, where the environment says that there are some.

    Args:
        device: `auto`, `cpu` or `cuda`: on GPUs this process takes the one of its local rank.

    Raises:
        ConfigError: the environment is wrong, the others do not come, or GPUs are too few.
    """
    at = place()
    if at.world == 1:
        yield Ranks()
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_gpu(at))
    prefix = f"attempt-{at.attempt}"
    try:
        store = dist.PrefixStore(prefix, _store(at))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store, rank=at.rank, world_size=at.world, timeout=TIMEOUT,
        )  # fmt: skip
        ranks = Ranks(at, store)
    except (RuntimeError, ValueError, OSError) as error:
        reason = in_one_line(error, 200)
        raise ConfigError(
            f"process {at.rank} of {at.world} could not connect to the others at "
            f"{at.address}:{at.port} ({reason}); check that all were started and reach that host"
        ) from error
    try:
        yield ranks
    finally:
        # Where one is gone, this may fail, and what is raised already says more.
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _gpu(at: Place) -> int:
    """The GPU of this process: by its local rank, or the only one that it was given."""
    if torch.cuda.device_count() == 1 and not at.by_agent:  # as SLURM binds one to each task
        return 0
    refuse_too_many(at.local_world)
    return at.local_rank


def _store(at: Place) -> Any:
    if at.by_agent:  # it says by itself who holds it
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
        return store
    return dist.TCPStore(at.address, at.port, at.world, at.is_first, timeout=TIMEOUT)


def _told(error: BaseException) -> dict[str, Any]:
    """An error as plain values."""
    known = isinstance(error, HyloradaError)
    return {
        "kind": type(error).__name__,
        "message": str(error),
        "signal": error.signal_number if isinstance(error, Interrupted) else 0,
        "trace": "" if known else "".join(traceback.format_exception(error)),
    }


def _error(told: dict[str, Any], rank: int) -> HyloradaError:
    """The error that another process has told."""
    kind, message = told["kind"], told["message"]
    if kind == "Interrupted":
        return Interrupted(told["signal"], message)
    if kind in ("OutOfMemoryError", "MemoryError"):
        return errors.OutOfMemoryError(f"process {rank}: {message}")
    found = getattr(errors, kind, None)
    if found is not None and issubclass(found, HyloradaError):
        return found(message)
    error = PeerError(f"process {rank} ended by {kind}: {message}")
    error.add_note(told["trace"])
    return error


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message, default=_array).encode()


def _decoded(data: bytes) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(data, object_hook=_restored)
    return message


def _array(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray) or value.dtype != np.float64:
        raise TypeError(f"{type(value).__name__} is no plain value")
    return {"float64": base64.b64encode(value.tobytes()).decode(), "shape": list(value.shape)}


def _restored(found: dict[str, Any]) -> Any:
    if found.keys() == {"float64", "shape"}:
        data = base64.b64decode(found["float64"])
        return np.frombuffer(data, dtype=np.float64).reshape(found["shape"])
    return found
