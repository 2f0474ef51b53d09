import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from helpers.unreadable import a_folder, no_permission

from hylorada.config import RunConfig
from hylorada.errors import (
    ConfigError,
    DataError,
    DiskError,
    DivergedError,
    Interrupted,
    OutOfMemoryError,
    chain,
)
from hylorada.process.device import choose_autocast, choose_device
from hylorada.process.disk import exclusive, replace_file
from hylorada.process.log import log_to
from hylorada.process.signals import Stop
from hylorada.records.manifest import damage, describe
from hylorada.records.outcome import explained, recorded
from hylorada.records.provenance import PeakMemory, add_texts, git_commit, weights_sha256
from hylorada.records.result import JsonLines, blank_result, read_result, redacted, write_result
from hylorada.records.schema import VERSION
from hylorada.settings.fingerprint import fingerprint

CPU = torch.device("cpu")


def ignore(error):
    pass


def test_lines_are_appended_and_cut_back_to_a_checkpoint(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 1, "train/loss": 0.1})
    size = lines.sync()
    lines.append({"step": 2})
    lines.truncate(size)
    lines.append({"step": 2, "again": True})
    assert (tmp_path / "m.jsonl").read_text() == (
        '{"step": 1, "train/loss": 0.1}\n{"step": 2, "again": true}\n'
    )


def test_lines_shorter_than_at_the_checkpoint_are_an_error(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 1})
    with pytest.raises(DataError, match="changed by hand"):
        lines.truncate(1000)


def test_a_line_that_json_cannot_hold_is_refused_before_it_is_written(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines.append({"train/loss": float("nan")})
    assert lines.sync() == 0


def test_record_follows_the_schema_and_reads_back(tmp_path):
    record = blank_result(RunConfig(seed=3))
    write_result(tmp_path, record)
    assert read_result(tmp_path) == record
    assert record["schema"] == 1
    assert record["fingerprint"] == fingerprint(RunConfig(seed=3))
    assert record["config"]["method"]["position_bias"]["enabled"] == "auto"
    assert set(record) == {
        "schema", "status", "error", "name", "fingerprint", "method", "length", "seed", "model",
        "dataset", "metrics", "base", "parameters", "training", "integrity", "config", "provenance",
        "sha256", "left_out", "position_range",
    }  # fmt: skip


def test_not_finite_becomes_null(tmp_path):
    write_result(tmp_path, {"a": float("inf"), "b": [float("nan"), 1.0], "c": (2,)})
    found = json.loads((tmp_path / "result.json").read_text())
    assert len(found.pop("sha256")) == 64
    assert found == {"a": None, "b": [None, 1.0], "c": [2]}


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_an_unreadable_record_counts_as_none(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    assert read_result(tmp_path) is None


@pytest.mark.parametrize("hide", [no_permission, a_folder])
def test_a_record_that_cannot_be_read_is_told_and_not_taken_for_none(tmp_path, hide):
    write_result(tmp_path, {"status": "ok"})
    hide(tmp_path / "result.json")
    with pytest.raises(DataError, match=r"result\.json: cannot be read \(.*resume=never"):
        read_result(tmp_path)


def test_a_record_of_another_version_is_not_called_damaged(tmp_path):
    write_result(tmp_path, {"schema": VERSION + 1})
    with pytest.raises(DataError, match="of another version of hylorada") as error:
        read_result(tmp_path)
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("hide", [no_permission, a_folder])
def test_a_product_that_cannot_be_read_is_told(tmp_path, hide):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    record = {"files": describe(tmp_path)}
    hide(tmp_path / "metrics.jsonl")
    assert damage(tmp_path, record).startswith(f"{tmp_path}/metrics.jsonl: cannot be read (")


def test_secrets_are_taken_out_of_records(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "canary-canary")
    token = "hf_" + "a" * 30
    value = {"a": ["x canary-canary y"], "b": {"c": token}, "url": "https://me:pw@host/x", "n": 1}
    assert redacted(value) == {
        "a": ["x *** y"],
        "b": {"c": "***"},
        "url": "https://***@host/x",
        "n": 1,
    }
    write_result(tmp_path, value)
    text = (tmp_path / "result.json").read_text()
    assert not any(secret in text for secret in ("canary", token, "pw"))


def test_replacing_a_file_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "f"
    replace_file(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="disk is full"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


# --- how a run ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "status", "becomes"),
    [
        (DivergedError("no"), "diverged", DivergedError),
        (Interrupted(15, "stopped"), "interrupted", Interrupted),
        (ConfigError("bad"), "failed", ConfigError),
        (torch.OutOfMemoryError("CUDA out of memory"), "failed", OutOfMemoryError),
        (MemoryError(), "failed", OutOfMemoryError),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
            "failed",
            OutOfMemoryError,
        ),
        (OSError(errno.ENOSPC, "No space left"), "failed", DiskError),
        (RuntimeError("I/O error: Read-only file system (os error 30)"), "failed", DiskError),
        (RuntimeError("a bug"), "failed", RuntimeError),
        (SystemExit(3), "failed", RuntimeError),  # of a library: an Exception stops no sweep
    ],
)
def test_however_it_ends_the_record_says_so(tmp_path, raised, status, becomes):
    record = blank_result(RunConfig())
    with pytest.raises(becomes) as caught, recorded(tmp_path, record, ignore):
        raise raised
    written = read_result(tmp_path)
    assert written["status"] == status
    assert written["error"] == (str(caught.value) or "MemoryError")
    assert "\n" not in written["error"]


def broken_into(wrap):
    """What a library raises whose work, or whose cleaning up, a signal has broken into."""
    try:
        try:
            raise Interrupted(15, "stopped", at_once=True)
        finally:
            [].pop()
    except IndexError as error:
        if wrap is None:
            raise
        raise wrap("cannot be loaded") from error


@pytest.mark.parametrize("wrap", [None, ImportError, OSError, DataError, MemoryError])
def test_a_signal_that_broke_into_a_library_is_what_ended_the_run(tmp_path, wrap):
    with (
        pytest.raises(Interrupted, match="stopped"),
        recorded(tmp_path, blank_result(RunConfig()), ignore),
    ):
        broken_into(wrap)
    assert read_result(tmp_path)["status"] == "interrupted"


def test_a_chain_of_errors_ends_even_if_one_is_its_own_cause():
    error, first = RuntimeError("later"), ValueError("first")
    error.__cause__, first.__context__ = first, error
    assert list(chain(error)) == [error, first]
    alone = RuntimeError("of itself")
    alone.__cause__ = alone
    assert list(chain(alone)) == [alone]


def test_what_fails_while_a_stopped_run_saves_is_not_hidden_by_the_signal(tmp_path):
    def save():
        try:
            raise Interrupted(15, "stopped")
        except Interrupted as error:
            raise DiskError("the disk is full") from error

    with pytest.raises(DiskError), recorded(tmp_path, blank_result(RunConfig()), ignore):
        save()


def test_out_of_memory_gives_hints_that_can_take_effect(tmp_path):
    config = RunConfig()
    config.train.micro_batch_size, config.train.precision = 4, "bf16"
    with (
        pytest.raises(OutOfMemoryError) as caught,
        recorded(tmp_path, blank_result(config), ignore),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    message = str(caught.value)
    assert "micro_batch_size" not in message  # training itself has come down to one sequence
    assert "gradient_checkpointing=true" in message
    assert "precision" not in message


def test_the_traceback_goes_to_the_log_and_not_to_the_terminal(tmp_path, capsys):
    def fail():
        record = blank_result(RunConfig())
        with log_to(tmp_path / "run.log") as log, recorded(tmp_path, record, log):
            logging.getLogger("hylorada.runner").info("said")
            raise DivergedError("the reason")

    with pytest.raises(DivergedError):
        fail()
    text = (tmp_path / "run.log").read_text()
    assert "said" in text
    assert "Traceback" in text
    assert "the reason" in text
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_log_that_the_command_writes_already_is_not_doubled(tmp_path):
    handler = logging.FileHandler(tmp_path / "run.log")
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with log_to(tmp_path / "run.log") as log:
            logging.getLogger("hylorada.runner").warning("once")
            log(ValueError())
    finally:
        root.removeHandler(handler)
        handler.close()
    assert (tmp_path / "run.log").read_text() == "once\n"


# --- one live run per directory -------------------------------------------------------------------


def test_a_directory_in_use_is_refused_naming_the_process_and_host(tmp_path):
    with (
        exclusive(tmp_path / "run"),
        pytest.raises(DiskError, match=rf"process {os.getpid()} on .+\); wait"),
        exclusive(tmp_path / "run"),
    ):
        pass
    with exclusive(tmp_path / "run"):
        pass


def test_the_lock_of_a_killed_process_is_recovered(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; import sys\n"
        "from hylorada.process.disk import exclusive\n"
        f"with exclusive(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / ".lock-owner").exists()
    with exclusive(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock-owner").read_text()


def test_a_directory_that_cannot_be_made_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DiskError, match=r"cannot be written.*another output_root"),
        exclusive(tmp_path / "file" / "run"),
    ):
        pass


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_waits_for_the_boundary_inside_deferred_code(number):
    before = signal.getsignal(number)
    stop = Stop()
    with stop.listening():
        with stop.deferred():
            os.kill(os.getpid(), number)
            reached = stop.requested
        with pytest.raises(Interrupted) as caught:
            stop.check()
    assert reached == number
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_signal_elsewhere_raises_at_once():
    with Stop().listening(), pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_ends_the_process():
    code = (
        "import os, signal; from hylorada.process.signals import Stop\n"
        "stop = Stop()\n"
        "with stop.listening(), stop.deferred():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")


def test_a_thread_leaves_the_handlers_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with Stop().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


# --- provenance and hardware ----------------------------------------------------------------------


def test_the_hash_of_weights_sees_values_and_not_their_order():
    a = torch.nn.Linear(2, 3)
    b = torch.nn.Linear(2, 3)
    b.load_state_dict(dict(reversed(a.state_dict().items())))
    assert weights_sha256(a) == weights_sha256(b)
    with torch.no_grad():
        b.weight[1, 1] += 1e-6 + b.weight[1, 1].abs()
    assert weights_sha256(a) != weights_sha256(b)
    a.bfloat16()
    rounded = weights_sha256(a)
    assert rounded != weights_sha256(b)
    assert rounded == weights_sha256(a.float())  # the same numbers
    assert rounded != weights_sha256(a.double())


def test_the_texts_of_training_and_evaluation_are_both_named_when_the_split_is_one():
    whole, pairs = (SimpleNamespace(label=name, sha256=f"hash of {name}") for name in "ab")
    found = {}
    add_texts(found, "train", whole, pairs)
    assert found["dataset"] == {"train": "b", "train, evaluated": "a"}
    assert found["dataset_sha256"]["train, evaluated"] == "hash of a"
    add_texts(found, "test", pairs)  # measured again
    assert list(found["dataset"]) == ["train", "train, evaluated", "test"]
    found = {}
    add_texts(found, "train", whole, whole)
    assert found["dataset"] == {"train": "a"}


@pytest.mark.parametrize(
    ("device", "bf16", "hint"),
    [
        ("cuda:0", True, "bf16"),
        ("cuda:0", False, "fp16"),
        ("cpu", True, "bf16"),
        ("cpu", False, ""),
    ],
)
def test_out_of_memory_names_a_precision_that_the_device_has(
    tmp_path, monkeypatch, device, bf16, hint
):
    monkeypatch.setattr("hylorada.records.outcome.has_bf16", lambda device: bf16)
    record = {**blank_result(RunConfig()), "provenance": {"device": device}}
    told = str(explained(torch.OutOfMemoryError(), tmp_path, record))
    assert (f"train.precision={hint}," in told) is bool(hint)
    assert ("precision" in told) is bool(hint)


def test_an_operator_without_a_repeatable_kernel_is_named_in_one_line(tmp_path):
    raised = RuntimeError(
        "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'.\nYou can turn off ..."
    )
    told = explained(raised, tmp_path, blank_result(RunConfig()))
    assert isinstance(told, ConfigError)
    assert str(told) == (
        "train.deterministic=true: cumsum_cuda_kernel has no kernel on this device that gives the "
        "same bits again; set it to false"
    )


def test_a_folder_outside_the_checkout_has_no_commit(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert git_commit(tmp_path) is None


def test_peak_memory_rises_with_a_large_tensor_and_can_be_forgotten():
    memory = PeakMemory(CPU)
    torch.ones(64 * 2**20)  # 256 MiB, gone at once
    high = memory.peak()
    memory.start()
    low = memory.peak()
    torch.ones(64 * 2**20)
    assert high - low > 200 * 2**20
    assert memory.peak() - low > 200 * 2**20


def test_memory_of_a_gpu_is_what_was_allocated_and_what_was_taken_for_it(monkeypatch):
    assert (PeakMemory(CPU).counts, PeakMemory(CPU).reserved()) == ("host", None)
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 160)
    memory = PeakMemory(gpu)
    assert (memory.counts, memory.peak(), memory.reserved()) == ("device", 100, 160)


def test_bf16_is_refused_on_a_processor_without_it(monkeypatch):
    monkeypatch.setattr("hylorada.process.device.cpu_has_bf16", lambda: False)
    with pytest.raises(ConfigError, match=r"train\.precision=bf16.*use fp32 or auto"):
        choose_autocast("bf16", CPU)
    assert choose_autocast("auto", CPU) is None
    monkeypatch.setattr("hylorada.process.device.cpu_has_bf16", lambda: True)
    assert choose_autocast("bf16", CPU) == torch.bfloat16
    assert choose_autocast("auto", CPU) is None


def test_fp16_is_for_gpus(monkeypatch):
    gpu = torch.device("cuda")
    with pytest.raises(ConfigError, match=r"train\.precision=fp16: for GPUs without bf16"):
        choose_autocast("fp16", CPU)
    monkeypatch.setattr("hylorada.process.device.has_bf16", lambda device: False)
    assert choose_autocast("fp16", gpu) == torch.float16
    assert choose_autocast("auto", gpu) is None
    with pytest.raises(ConfigError, match=r"train\.precision=bf16.*use fp16, fp32 or auto"):
        choose_autocast("bf16", gpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused():
    with pytest.raises(ConfigError, match="device=cuda"):
        choose_device("cuda")
    assert choose_device("auto") == CPU
