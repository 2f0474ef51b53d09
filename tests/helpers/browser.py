"""A real headless Chromium, spoken to by its DevTools protocol over a pair of pipes.

https://chromedevtools.github.io/devtools-protocol: messages are JSON, each ended by a zero byte. A
window on the command line is never narrower than 500 px; here the page is laid out in any width, in
the dark and for paper.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATH = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = "no chromium on this machine"

A4 = 703
"""CSS px between the page's margins of 12 mm: 186 mm at 96 px an inch."""

LOOK = """(() => {
  const page = document.documentElement, out = [];
  const shown = e => e.getClientRects().length && getComputedStyle(e).visibility !== 'hidden';
  const name = e => e.tagName + '.' + (e.getAttribute('class') || '') + ': ' +
    e.textContent.trim().slice(0, 40);
  for (const e of document.body.querySelectorAll('*')) {
    if (!shown(e) || e.closest('svg') && e.tagName !== 'svg') continue;
    const box = e.getBoundingClientRect(), around = e.parentElement.getBoundingClientRect();
    if (box.right > innerWidth + .5 || box.left < -.5) out.push('off the page: ' + name(e));
    if (box.right > around.right + 1 || box.left < around.left - 1)
      out.push('wider than what holds it: ' + name(e));
    if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')
      out.push('cut or scrolls: ' + name(e));
    if (e.tagName === 'DT' && box.width < 6 * parseFloat(getComputedStyle(e).fontSize))
      out.push('squeezed: ' + name(e));
    if (e.tagName !== 'svg' && e.childElementCount === 0 && e.textContent.trim() &&
        parseFloat(getComputedStyle(e).fontSize) < 10.5) out.push('small: ' + name(e));
  }
  for (const i of document.images) if (!i.complete || !i.naturalWidth) out.push('broken: ' + i.src);
  for (const s of document.querySelectorAll('figure svg')) {
    const r = s.getBoundingClientRect();
    if (r.width < 250 || r.height < 150) out.push('tiny figure');
  }
  return {width: page.scrollWidth, inner: innerWidth, faults: out,
    figures: document.querySelectorAll('figure svg').length};
})()"""
"""What is off the page, cut, broken or too small to read."""


class Browser:
    """One page in a browser of its own; closed with it."""

    def __init__(self, profile: Path) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        command = (
            f'exec "$0" --headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run '
            f"--remote-debugging-pipe --user-data-dir='{profile}' about:blank "
            f"3<&{to_read} 4>&{to_write}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command, str(PATH)], pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._numbers, self._buffer, self.events = itertools.count(1), b"", []
        self._session = ""
        (target, *_) = [
            t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"
        ]
        attached = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self.ask("Page.enable")
        self.ask("Log.enable")
        self.ask("Network.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)
        self._process.terminate()
        self._process.wait(timeout=300)
        os.close(self._from)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what happens meanwhile goes to `events`."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._from, 1 << 20)
            assert read, "chromium ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int, *, dark: bool = False, paper: bool = False) -> None:
        """Load a file and lay it out."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=1000, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask(
            "Emulation.setEmulatedMedia", media="print" if paper else "screen", features=[scheme]
        )
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as it is laid out now."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        found = self.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(found["data"])
