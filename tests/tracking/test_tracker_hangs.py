"""W&B's own process stopped, killed or mute: the run neither waits for it nor dies with it.

Each case is a Python process of its own, since W&B waits for its process when Python exits. Its
output goes through pipes, which a process left behind would hold open.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from helpers.marks import SLOW, on_request, slow
from helpers.tiny_runs import make_config, make_model_folder, make_texts

from hylorada.tracking.tracker import FINISH_SECONDS, START_SECONDS

STARTS = "tracking.START_SECONDS = 120.0; wandb_backend.START_SECONDS = 110.0"
"""As long as it takes: what hangs is the end."""
WELL = (
    "tracking.START_SECONDS = tracking.STUCK_SECONDS = tracking.FINISH_SECONDS = 120.0; "
    "wandb_backend.START_SECONDS = wandb_backend.FINISH_SECONDS = 110.0"
)
HANGS = f"{WELL}; tracking.FINISH_SECONDS = 1.0"  # to be quick


def in_a_process(tmp_path, body, limits=HANGS):
    """Run code in a new process; it is killed, and the test fails, if it does not end."""
    code = f"""
import logging, os, signal, sys, time
from pathlib import Path
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from hylorada.config import TrackConfig
from hylorada.tracking import tracker as tracking
from hylorada.tracking import wandb_backend
{limits}
from hylorada.tracking.tracker import Tracker
folder = Path({str(tmp_path)!r})
for name in ("a", "b"):
    (folder / name).mkdir(exist_ok=True)

def service():
    import wandb
    return wandb.sdk.wandb_setup.singleton()._connection._proc._process.pid

def alive(pid):
    try:
        return Path(f"/proc/{{pid}}/stat").read_text().split(")")[1].split()[0] not in "ZX"
    except OSError:
        return False

def left(pid):
    until = time.monotonic() + 60
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return alive(pid)
{textwrap.dedent(body)}
"""
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path),
        "NETRC": str(tmp_path / "netrc"), "TMPDIR": str(tmp_path),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def one_warning(done, *words):
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()  # no traceback when Python exits, either
    for word in (*words, "the run goes on"):
        assert word in line


@pytest.mark.parametrize(
    ("when", "number", "word"),
    [
        ("before the first line", "SIGSTOP", "no answer within 1 s"),
        pytest.param("before the first line", "SIGKILL", "stopped at log", marks=SLOW),
        pytest.param("before the end", "SIGSTOP", "stopped at finish (TimeoutError", marks=SLOW),
        ("before the end", "SIGKILL", "stopped at finish"),
    ],
)
def test_a_service_that_stops_answering_is_one_warning_and_is_not_left(
    tmp_path, when, number, word
):
    done = in_a_process(
        tmp_path,
        f"""
        tracker = Tracker(TrackConfig("offline"), folder, "n", {{}})
        pid = service()
        if {when!r} == "before the first line":
            os.kill(pid, signal.{number})
        for step in range(5000):  # more than its socket holds
            tracker.log({{"step": step, "train/loss": 1.0}})
        if {number!r} == "SIGSTOP" and {when!r} == "before the first line":
            # The run was not held up: it is done with calls that were not made.
            assert tracker._calls._queue.qsize() or not tracker.active
        if {when!r} == "before the end":
            tracker._wait(30)
            os.kill(pid, signal.{number})
        tracker.finish(0)
        print(left(pid))
        """,
    )
    one_warning(done, word)
    assert done.stdout == "False\n"


def test_a_service_that_ends_well_is_not_there_to_be_waited_for(tmp_path):
    done = in_a_process(
        tmp_path,
        """
        functions = sys.exit, sys.excepthook
        for cell in ("a", "b"):  # as in a sweep: each run starts it anew
            tracker = Tracker(TrackConfig("offline"), folder / cell, "n", {})
            pid = service()
            tracker.log({"step": 1, "train/loss": 1.0})
            tracker.finish(143)
            print(left(pid))
        assert (sys.exit, sys.excepthook) == functions  # which W&B wraps with each start
        """,
        limits=WELL,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\nFalse\n", "")


@pytest.mark.parametrize("speaks", slow(False, True))
def test_a_service_that_never_answers_at_the_start(tmp_path, speaks):
    """It does not say where it listens, or it does and is mute."""
    fake = tmp_path / "wandb-core"
    listening = """
    import pathlib, socket, sys, time
    server = socket.socket(); server.bind(("127.0.0.1", 0)); server.listen()
    port = pathlib.Path(sys.argv[sys.argv.index("--port-filename") + 1])
    port.write_text(f"sock={server.getsockname()[1]}\\nEOF")
    """
    sleep = "\nimport time; time.sleep(600)\n"
    fake.write_text(f"#!{sys.executable}{textwrap.dedent(listening) if speaks else ''}{sleep}")
    fake.chmod(0o755)
    done = in_a_process(
        tmp_path,
        f"""
        from wandb.sdk.lib.service import service_process  # importing is no part of the wait
        service_process.get_core_path = lambda: {str(fake)!r}
        tracker = Tracker(TrackConfig("offline"), folder, "n", {{}})
        tracker.log({{"step": 1}})
        tracker.finish(0)
        """,
        limits="tracking.START_SECONDS = 3.0; wandb_backend.START_SECONDS = 1.0",
    )
    one_warning(done, "stopped at start")


@pytest.mark.slow
def test_after_a_run_that_was_given_up_the_next_one_is_tracked(tmp_path):
    done = in_a_process(
        tmp_path,
        """
        first = Tracker(TrackConfig("offline"), folder / "a", "n", {})
        os.kill(service(), signal.SIGSTOP)
        first.finish(0)
        tracking.FINISH_SECONDS = 120.0
        second = Tracker(TrackConfig("offline"), folder / "b", "n", {})
        second.log({"step": 1, "train/loss": 1.0})
        second.finish(0)
        print(second.active, len(list((folder / "b").glob("wandb/offline-run-*/run-*.wandb"))))
        """,
    )
    one_warning(done, "stopped at finish")
    assert done.stdout == "False 1\n"


@pytest.mark.slow
def test_a_run_of_other_code_in_the_process_keeps_its_service(tmp_path):
    done = in_a_process(
        tmp_path,
        """
        import wandb
        quiet = wandb.Settings(silent=True, console="off")
        own = wandb.init(mode="offline", dir=str(folder), id="users", settings=quiet)
        tracker = Tracker(TrackConfig("offline"), folder / "a", "n", {})
        tracker.log({"step": 1, "train/loss": 1.0})
        tracker.finish(0)
        assert alive(service())
        own.log({"mine": 2.0})
        own.finish()
        """,
        limits=WELL,
    )
    assert (done.returncode, done.stderr) == (0, "")
    files = {p.name: p for p in tmp_path.rglob("run-*.wandb")}
    assert b"mine" in files.pop("run-users.wandb").read_bytes()
    (ours,) = files.values()
    assert b"mine" not in ours.read_bytes()


RUN = """
    sys.path.insert(0, {tests!r})
    from helpers.tiny_runs import make_config
    from hylorada.runner.run import run
    from hylorada.records.result import read_result
    finish = Tracker.finish
    def stopped(self, code):
        os.kill(service(), signal.SIGSTOP)
        print(read_result(next(folder.glob("outputs/main/*")))["status"])
        finish(self, code)
    Tracker.finish = stopped
    record = run(make_config(folder, track__kind="offline"))
    print(record["status"])
"""


@pytest.mark.slow
def test_the_record_is_whole_before_the_tracker_is_waited_for(tmp_path):
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    done = in_a_process(tmp_path, RUN.format(tests=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "ok"
    assert done.stderr.count("track=offline stopped at finish") == 1
    assert "Traceback" not in done.stderr
    (result,) = tmp_path.glob("outputs/main/*/result.json")
    assert json.loads(result.read_text())["status"] == "ok"
    assert make_config(tmp_path).track.kind == "off"  # what the other tests use


@pytest.mark.parametrize("when", on_request("finish", "start"))
def test_the_limits_themselves(tmp_path, when):
    """What hangs does not end by itself; each wait for it has a limit of less than 15 seconds."""
    fake = tmp_path / "wandb-core"
    fake.write_text("#!/bin/sh\nsleep 600\nexit 1\n")  # a process with one of its own
    fake.chmod(0o755)
    done = in_a_process(
        tmp_path,
        f"""
        import wandb
        if {when!r} == "start":
            from wandb.sdk.lib.service import service_process
            service_process.get_core_path = lambda: {str(fake)!r}
        limits, wait = [], tracking._Calls.wait

        def noting(calls, seconds):
            limits.append(seconds)
            starts_well = {when!r} == "finish" and len(limits) == 1
            return wait(calls, 120.0 if starts_well else seconds)

        tracking._Calls.wait = noting
        if {when!r} == "finish":
            wandb_backend.START_SECONDS = 110.0
        tracker = Tracker(TrackConfig("offline"), folder, "n", {{}})
        if {when!r} == "finish":
            os.kill(service(), signal.SIGSTOP)
        tracker.finish(0)
        print(*limits)
        """,
        limits="",
    )
    one_warning(done, f"stopped at {when}")
    expected = [START_SECONDS] if when == "start" else [START_SECONDS, FINISH_SECONDS]
    assert done.stdout.split() == [str(seconds) for seconds in expected]
    assert max(expected) < 15


@pytest.mark.parametrize("answer", [*slow("garbage"), *on_request("gone later", "closed", "500")])
def test_a_server_that_dies_or_talks_nonsense_is_one_warning_on_the_screen(tmp_path, answer):
    """W&B's process may crash on it; what it and W&B's Python side say of that is not there."""
    done = in_a_process(
        tmp_path,
        f"""
        import json, threading
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
        bucket = {{"id": "b", "name": "b", "displayName": "b", "historyLineCount": 0,
                  "project": {{"name": "p", "entity": {{"name": "me"}}}}}}
        fine = {{"viewer": {{"id": "1", "entity": "me", "flags": "{{}}", "teams": {{"edges": []}}}},
                "upsertBucket": {{"bucket": bucket, "inserted": True}}}}

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words): pass
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if {answer!r} == "closed":
                    return self.connection.shutdown(2)
                data = json.dumps({{"data": fine}}).encode()
                if {answer!r} == "garbage":
                    data = bytes(100)
                self.send_response(500 if {answer!r} == "500" else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            do_GET = do_POST

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{{server.server_address[1]}}"
        os.environ["WANDB_API_KEY"] = "0" * 40
        tracker = Tracker(TrackConfig("wandb"), folder, "n", {{}})
        print(tracker.active)
        for step in range(3):
            tracker.log({{"step": step, "train/loss": 1.0}})
        time.sleep(0.5)
        server.shutdown()
        server.server_close()
        for step in range(3, 9):
            tracker.log({{"step": step, "train/loss": 1.0}})
        tracker.finish(0)
        """,
        limits=STARTS if answer == "gone later" else "",
    )
    one_warning(done, "track=wandb stopped at finish" if answer == "gone later" else "at start")
    assert done.stdout == f"{answer == 'gone later'}\n"
