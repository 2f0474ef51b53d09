"""Two machines on one: network namespaces with a cable between them and names of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HOSTS = {"hyloa": "10.213.7.1", "hylob": "10.213.7.2"}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[list[list[str]]]:
    """What to put before a command, so that it runs on the first host, and on the second.

    Skips the test where the system lets nobody make such namespaces.
    """
    folders = [Path("/etc/netns") / name for name in HOSTS]
    with contextlib.ExitStack() as stack:
        try:
            for name, folder in zip(HOSTS, folders, strict=True):
                _ip("netns", "add", name)
                stack.callback(_ip, "netns", "delete", name)
                folder.mkdir(parents=True)  # its files lie over those of /etc there
                stack.callback(_remove, folder)
                known = [f"{address} {host}\n" for host, address in HOSTS.items()]
                (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(known))
            first, second = HOSTS
            _ip("link", "add", "hylo0", "netns", first, "type", "veth",
                "peer", "name", "hylo0", "netns", second)  # fmt: skip
            for name, address in HOSTS.items():
                within = ["netns", "exec", name, "ip"]
                _ip(*within, "address", "add", f"{address}/24", "dev", "hylo0")
                for device in ("lo", "hylo0"):
                    _ip(*within, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this system makes no network namespaces ({error})")
        # A host name of its own, too: gloo asks for it and looks it up.
        yield [
            ["unshare", "--uts", "sh", "-c",
             f'hostname {name}; exec ip netns exec {name} "$@"', "sh"]
            for name in HOSTS
        ]  # fmt: skip


def _remove(folder: Path) -> None:
    (folder / "hosts").unlink(missing_ok=True)
    folder.rmdir()
    with contextlib.suppress(OSError):  # others may have namespaces as well
        os.rmdir(folder.parent)  # noqa: PTH106
