"""A real browser, headless, told what to do over two pipes (the DevTools protocol): what a page looks like in it."""

import base64
import fcntl
import json
import os
import subprocess
from pathlib import Path

WIDTHS = (360, 768, 1280)
SHAPE = """({width: document.documentElement.scrollWidth, pictures: document.querySelectorAll('svg').length,
  empty: [...document.querySelectorAll('svg, img')].filter(e => {
    const r = e.getBoundingClientRect(); return !e.closest('details:not([open])') && (r.width < 20 || r.height < 20);
  }).length,
  small: [...document.querySelectorAll('p, td, li, span')].filter(e => e.innerText && !e.closest('svg') &&
    parseFloat(getComputedStyle(e).fontSize) < 10).length})"""


class Browser:
    """`chromium` on the PATH; ends with the block."""

    def __init__(self, folder: Path):
        self.folder, self.number, self.events = folder, 0, []

    def __enter__(self):
        (there, self.out), (self.back, here) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (there, here)]       # it reads 3 and writes 4
        words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 f"--user-data-dir={self.folder}/profile", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            words, close_fds=False, preexec_fn=lambda: [os.dup2(end, n) for n, end in enumerate(ends, 3)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (there, here, *ends):
            os.close(end)
        self.read = os.fdopen(self.back, "rb")
        self.left = b""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.read.close()
        os.close(self.out)

    def ask(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if getattr(self, "session", None):
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (said := self._next()).get("id") != self.number:
            self.events.append(said)
        assert "error" not in said, said
        return said["result"]

    def wait(self, event):
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self._next())

    def _next(self):
        while b"\0" not in self.left:
            piece = self.read.read1(1 << 16)
            assert piece, "the browser ended"
            self.left += piece
        message, self.left = self.left.split(b"\0", 1)
        return json.loads(message)


def browse(page: Path, folder: Path) -> dict:
    """Opens a page at several widths; leaves a screenshot of each and a PDF in `folder`, and says what was seen."""
    with Browser(folder) as browser:
        found = {"widths": {}}
        browser.ask("Page.navigate", url=page.absolute().as_uri())
        browser.wait("Page.loadEventFired")
        for width in WIDTHS:
            browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
                        mobile=width < 500)
            shape = browser.ask("Runtime.evaluate", expression=SHAPE, returnByValue=True)["result"]["value"]
            found["widths"][width] = shape.pop("width")
            found |= shape
            height = browser.ask("Page.getLayoutMetrics")["cssContentSize"]["height"]
            shot = browser.ask("Page.captureScreenshot", captureBeyondViewport=True, clip={
                "x": 0, "y": 0, "width": width, "height": min(height, 12_000), "scale": 1})
            (folder / f"{page.stem}-{width}.png").write_bytes(base64.b64decode(shot["data"]))
        pdf = browser.ask("Page.printToPDF", printBackground=True)
        (folder / f"{page.stem}.pdf").write_bytes(base64.b64decode(pdf["data"]))
        found["errors"] = [e["params"] for e in browser.events if e.get("method") == "Runtime.exceptionThrown"
                           or e.get("method") == "Log.entryAdded" and e["params"]["entry"]["level"] == "error"
                           or e.get("method") == "Runtime.consoleAPICalled" and e["params"]["type"] == "error"]
    return found
