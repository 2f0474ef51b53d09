"""Processes of one run: their places by the environment, what they share, decide and tell."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.many_processes import free_port
from helpers.tiny_runs import _CONTEXT

from hylorada.errors import ConfigError, DataError, Interrupted, OutOfMemoryError, PeerError
from hylorada.process.place import Place, first_host, place
from hylorada.process.ranks import ALONE, Ranks, joined
from hylorada.process.signals import Stop

MEETING = {"MASTER_ADDR": "a", "MASTER_PORT": "9"}


def slurm(**more):
    return {
        "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),3", "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "gpu[07-08,11]", **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Place()),
        ({"RANK": "0"}, Place()),
        ({"WORLD_SIZE": "1"}, Place()),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
             "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_RUN_ID": "x", **MEETING},
            Place(3, 4, 1, 2, "a", 9, 2, True),
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", **MEETING}, Place(1, 2, 1, 2, "a", 9)),
        # a script of sbatch: the job has tasks, but this is none of a step
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Place()),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place()),
        (slurm(), Place(5, 7, 1, 3, "gpu07", 15000 + 4711 * 7 % 15000)),
        (slurm(SLURM_NODEID="0", MASTER_PORT="1234"), Place(5, 7, 1, 2, "gpu07", 1234)),
        (
            {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1",
             "SUBMITIT_LOCAL_JOB_ID": "100"},
            Place(1, 2, 1, 2, "127.0.0.1", 15700),
        ),
        ({"SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_GLOBALID": "0"}, Place()),
        # torchrun within a task of SLURM
        ({**slurm(), "RANK": "1", "WORLD_SIZE": "2", **MEETING}, Place(1, 2, 1, 2, "a", 9)),
    ],
)  # fmt: skip
def test_the_place_of_a_process_by_its_environment(environment, expected):
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2", **MEETING}, "process 2 of 2"),
        ({"RANK": "x", "WORLD_SIZE": "2", **MEETING}, "RANK='x'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK"),
        ({"RANK": "1"}, "RANK=1 without WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        (slurm(SLURM_LOCALID="9"), "9 of 3 on this machine"),
    ],
)
def test_a_place_that_cannot_be_is_refused(environment, said):
    with pytest.raises(ConfigError, match=said):
        place(environment)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("a", "a"), ("a,b", "a"), ("n[03-05,9],x", "n03"), ("n[7]", "n7"), ("r1-[2,4]c3", "r1-2c3")],
)
def test_the_first_of_slurms_hosts(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize("world", range(1, 9))
def test_shares_cover_everything_once_in_order_and_differ_by_one(world, monkeypatch):
    monkeypatch.setattr(Ranks, "_gathered", lambda self, message: [message] * world)
    ranks = [Ranks(Place(rank, world)) for rank in range(world)]
    for count in (0, 1, 5, 8, 17):
        shares = [each.share(count) for each in ranks]
        assert list(itertools.chain(*shares)) == list(range(count))
        sizes = [len(share) for share in shares]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1


def test_a_process_alone_asks_nobody(monkeypatch):
    for name in ("all_reduce", "all_gather", "broadcast", "init_process_group"):
        monkeypatch.setattr(dist, name, lambda *a, name=name, **k: pytest.fail(name))
    for key in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(key, raising=False)
    with joined() as ranks:
        tensor = torch.tensor([1.5])
        assert ranks.sum(tensor) is tensor
        assert (ranks.most(2.5), ranks.agree(1), ranks.decided(lambda: (1,))) == (2.5, True, (1,))
        assert list(ranks.in_order([3, 4], lambda x: x + 1)) == [4, 5]
        assert ranks.bytes_of_first(b"x") == b"x"
    with pytest.raises(ZeroDivisionError):  # its own error, as it was
        list(ALONE.in_order([0], lambda x: 1 / x))


def in_processes(world: int, work: Any, *, seconds: float = 240.0) -> tuple[list[Any], list[int]]:
    """What ``work(ranks)`` gives on each of several processes, and their exit codes."""
    port, results = free_port(), _CONTEXT.Queue()
    processes = [
        _CONTEXT.Process(target=_child, args=(rank, world, port, work, results))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"{process} did not end")
    codes = [process.exitcode for process in processes]
    found = dict(results.get() for code in codes if code == 0)
    return [found.get(rank) for rank in range(world)], codes


def _child(rank: int, world: int, port: int, work: Any, results: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        results.put((rank, work(ranks)))
        results.close()
        results.join_thread()


def everything(ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = {"rank": ranks.rank, "hosts": len(ranks.hosts)}
    found["sum"] = ranks.sum(torch.tensor([1.0, 10.0**ranks.rank], dtype=torch.float64)).tolist()
    found["most"] = ranks.most(-5.0 + ranks.rank)
    found["agree"] = [ranks.agree(7.25), ranks.agree(ranks.rank), ranks.agree(0.0)]
    found["decided"] = ranks.decided(lambda: {"by": ranks.rank, "x": 0.1, "none": None})
    found["bytes"] = [ranks.bytes_of_first(b"abc" * ranks.world), ranks.bytes_of_first(b"")]
    found["orders"] = [
        list(ranks.in_order(range(count), lambda x: [x, x * 0.1, float("inf"), x % ranks.world]))
        for count in (0, 1, 2, 3, 4, 7)
    ]
    arrays = ranks.in_order([1, 2, 3, 4], lambda x: np.full((x, 2), 1 / 3 + x))
    found["arrays"] = [array.tolist() for array in arrays]
    for name, call in {
        "refused": lambda: ranks.decided(_refuse),
        "broken": lambda: ranks.decided(lambda: 1 / 0),
        "item": lambda: list(ranks.in_order(range(5), lambda x: _refuse() if x == 3 else x)),
        "memory": lambda: list(ranks.in_order(range(2), lambda x: _no_memory() if x else x)),
    }.items():
        try:
            call()
        except Exception as error:
            found[name] = (type(error), str(error))
    return found


def _refuse() -> None:
    raise DataError("no such split")


def _no_memory() -> None:
    raise MemoryError("too large")


@pytest.mark.parametrize("world", [2, 3])
def test_what_processes_tell_each_other(world):
    found, codes = in_processes(world, everything)
    assert codes == [0] * world
    for rank, each in enumerate(found):
        assert (each["rank"], each["hosts"]) == (rank, world)
        assert each["sum"] == [world, sum(10.0**r for r in range(world))]
        assert each["most"] == -6.0 + world
        assert each["agree"] == [True, False, True]
        assert each["decided"] == {"by": 0, "x": 0.1, "none": None}
        assert each["bytes"] == [b"abc" * world, b""]
        for results, count in zip(each["orders"], (0, 1, 2, 3, 4, 7), strict=True):
            expected = [[x, x * 0.1, float("inf"), x % world] for x in range(count)]
            assert results == expected
        expected = [np.full((x, 2), 1 / 3 + x).tolist() for x in (1, 2, 3, 4)]
        assert each["arrays"] == expected
        assert each["refused"] == each["item"] == (DataError, "no such split")
        kind, message = each["broken"]
        assert kind is (ZeroDivisionError if rank == 0 else PeerError)
        assert "division by zero" in message
        assert each["memory"][0] is (MemoryError if rank == 1 else OutOfMemoryError)


def one_is_signalled(ranks: Ranks) -> Any:
    stop = ranks.stop = Stop(shared=True)
    seen = []

    def work(item: int) -> int:
        if item == 4:  # in the third round, on the first process alone
            os.kill(os.getpid(), signal.SIGTERM)
        return item

    with stop.listening(), stop.deferred():
        try:
            for item in ranks.in_order(range(9), work):
                seen.append(item)
                stop.check()
        except Interrupted as error:
            return seen, error.signal_number


def test_a_signal_that_one_process_hears_stops_all_at_one_place():
    found, codes = in_processes(2, one_is_signalled)
    assert codes == [0, 0]
    assert found == [([0, 1, 2, 3, 4], signal.SIGTERM)] * 2


def the_last_one_dies(ranks: Ranks, killed: bool) -> Any:
    ranks.sum(torch.zeros(1))
    try:
        with ranks.telling():
            if ranks.rank == ranks.world - 1:
                if killed:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OutOfMemoryError("nothing left")
            ranks.sum(torch.zeros(1))
    except Exception as error:
        return type(error), str(error)


def dies_by_a_signal(ranks: Ranks) -> Any:
    return the_last_one_dies(ranks, killed=True)


def dies_by_an_error(ranks: Ranks) -> Any:
    return the_last_one_dies(ranks, killed=False)


def test_one_that_is_gone_is_missed_and_the_reason_that_it_gave_is_known_to_the_first():
    found, codes = in_processes(2, dies_by_a_signal)
    assert codes == [0, -signal.SIGKILL]
    assert found[0][0] is PeerError
    found, codes = in_processes(2, dies_by_an_error)
    assert codes == [0, 0]
    assert found[0] == (OutOfMemoryError, "process 1: nothing left")


def test_a_meeting_that_cannot_be_is_one_line(monkeypatch):
    from hylorada.process import ranks

    port = free_port()
    for key, value in {
        "RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port
    }.items():  # fmt: skip
        monkeypatch.setenv(key, str(value))
    monkeypatch.setattr(ranks, "TIMEOUT", ranks.datetime.timedelta(seconds=1))
    with pytest.raises(ConfigError, match=f"process 1 of 2 .* 127.0.0.1:{port}"), joined("cpu"):
        pass
