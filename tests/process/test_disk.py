"""What the operating system refuses, on real file systems and under real limits."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.mounts import need_mounts

from hylorada.errors import DiskError
from hylorada.process.disk import exclusive, make_directory, unforeseen_disk_error
from hylorada.records.result import JsonLines, write_result


def run_python(body: str, folder: Path) -> str:
    """What a program says in a process of its own; `folder` is a path in it."""
    code = f"from pathlib import Path\nfolder = Path({str(folder)!r})\n{textwrap.dedent(body)}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


WRITE = """
from hylorada.errors import DiskError
from hylorada.process.disk import replace_file
try:
    replace_file(folder / "file", bytes(3 << 20))
except DiskError as error:
    print(error)
print(sorted(p.name for p in folder.iterdir()), (folder / "file").read_bytes())
"""


def test_a_full_disk_says_what_there_is_and_what_is_needed(tmp_path):
    need_mounts()
    body = f"""
from helpers.mounts import mount_small, own_mounts
own_mounts()
mount_small(folder, 2 << 20)
(folder / "file").write_bytes(b"before")
{WRITE}"""
    said, left = run_python(body, tmp_path).splitlines()
    assert re.search(r"file: the disk is full .*\(free [12]\.\d MiB, needs 3\.0 MiB\)", said), said
    assert left == "['file'] b'before'"


def test_a_limit_on_the_size_of_files_is_no_full_disk(tmp_path):
    body = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
(folder / "file").write_bytes(b"before")
{WRITE}"""
    said, left = run_python(body, tmp_path).splitlines()
    assert said.endswith(
        "file: larger than this process may make a file (ulimit -f: 1.0 MiB) (3.0 MiB are needed); "
        "raise that limit or choose another output_root, then run the same command again"
    )
    assert left == "['file'] b'before'"


def test_a_read_only_disk_is_said_to_be_one(tmp_path):
    need_mounts()
    (tmp_path / "file").write_bytes(b"before")
    body = f"""
from helpers.mounts import mount_read_only, own_mounts
own_mounts()
mount_read_only(folder)
{WRITE}"""
    said, left = run_python(body, tmp_path).splitlines()
    assert said.endswith("cannot be written (Read-only file system); choose another output_root")
    assert left == "['file'] b'before'"


def test_who_guarded_neither_write_nor_read_is_told_of_the_place_that_the_error_names(tmp_path):
    def blamed(*named: Path) -> str:
        error = OSError(errno.EROFS, os.strerror(errno.EROFS), *map(str, named))
        return str(unforeseen_disk_error(error, tmp_path / "run"))

    assert blamed().startswith(f"{tmp_path}/run: cannot be read or written")
    assert blamed(tmp_path / "run" / "x").startswith(f"{tmp_path}/run/x: cannot be read or written")
    elsewhere = blamed(tmp_path / "cache" / "x")
    assert elsewhere.startswith(f"{tmp_path}/cache/x: cannot be read or written")
    assert "output_root" not in elsewhere


def test_a_directory_that_was_removed_under_a_run_is_no_bug(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = JsonLines(folder / "metrics.jsonl")
    lines.append({"step": 1})
    shutil.rmtree(folder)
    removed = "metrics.jsonl: its directory was removed while it was in use; run the same command"
    with pytest.raises(DiskError, match=removed):
        lines.append({"step": 2})
    with pytest.raises(DiskError, match="was removed"):
        write_result(folder, {"status": "ok"})
    folder.mkdir()
    lines.append({"step": 1})  # and goes on in a new one


def test_a_place_that_makes_no_directory_is_not_called_removed():
    with pytest.raises(DiskError, match=r"/proc/run: cannot be made .*; choose another outp"):
        make_directory(Path("/proc/run"))
    with (
        pytest.raises(DiskError, match=r"/proc/run: cannot be made .*; name another with to="),
        exclusive(Path("/proc/run"), "name another with to="),
    ):
        pass


def test_a_log_that_does_not_fit_any_more_ends_nothing_and_prints_nothing(tmp_path):
    need_mounts()
    body = """
import logging
from helpers.mounts import mount_small, own_mounts
from hylorada.process.log import log_file
own_mounts()
mount_small(folder, 1 << 16)
logger = logging.getLogger("hylorada")
logger.setLevel(logging.INFO)
logger.propagate = False
with log_file(folder / "run.log", logger) as traceback:
    for number in range(3000):
        logger.info("line %d of many", number)
    traceback(RuntimeError("the end"))
print((folder / "run.log").read_text().count("of many") < 3000)
"""
    assert run_python(body, tmp_path) == "True"
