"""Debian's chromium without a screen, driven through the DevTools protocol: open a page, ask, click, look.

Everything that the page asks the network for, and everything that it or the browser writes to the console as an error
or a warning, is kept.
"""

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import require
from PIL import Image
from websockets.sync.client import ClientConnection, connect

# Software rendering gives WebGL 2 without a graphics card; the rest keeps the browser from calling home.
FLAGS = (
    "--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
    "--disable-default-apps", "--disable-extensions", "--no-first-run", "--hide-scrollbars", "--mute-audio",
    "--remote-debugging-port=0",
)  # fmt: skip

#: What makes of it a browser without WebGL, as on machines whose graphics driver is blocked.
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")

#: Longest wait for the browser to start, or for a page to be as asked, in seconds: software rendering is slow.
PATIENCE_S = 240


class Page:
    """One open page. ``requests`` holds the URLs that it asked for, ``errors`` what was written to its console."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self._socket = socket
        self._session = session
        self._numbers = itertools.count(1000)
        self.requests: list[str] = []
        self.errors: list[str] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "sessionId": self._session, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(event["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(event["entry"]))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE_S
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"never came true: {condition}; console: {self.errors}"
            time.sleep(0.1)

    def settle(self) -> None:
        """Until what was asked for is drawn: two frames."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def screenshot(self, selector: str | None = None) -> np.ndarray:
        """(rows, columns, 3) uint8 of one element; of the whole page if none is named."""
        clip = {}
        if selector is not None:
            box = self.evaluate(f"(({{x, y, width, height}}) => [x + scrollX, y + scrollY, width, height])"
                                f"(document.querySelector({selector!r}).getBoundingClientRect())")  # fmt: skip
            clip = {"clip": dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}}
        self.settle()
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, **clip)
        with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as image:
            return np.asarray(image.convert("RGB"))


@contextmanager
def open_page(
    path: Path, profile: Path, size: tuple[int, int] = (1600, 1000), flags: tuple[str, ...] = ()
) -> Iterator[Page]:
    """The page of a file, in a browser of its own with an empty profile folder; ``flags`` come after FLAGS."""
    program = shutil.which("chromium")
    require(program, "this test looks at a page in a browser; install it with: apt-get install chromium")
    assert program
    with subprocess.Popen(
        [program, *FLAGS, *flags, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            with connect(_address(process, profile / "DevToolsActivePort"), max_size=None) as socket:
                yield _opened(socket, path)
        finally:
            process.terminate()


def _address(process: subprocess.Popen, file: Path) -> str:
    end = time.monotonic() + PATIENCE_S
    while not (file.is_file() and file.read_text().count("\n")):
        assert process.poll() is None, "chromium ended before it began"
        assert time.monotonic() < end, "chromium does not answer"
        time.sleep(0.05)
    port, place = file.read_text().split("\n")[:2]
    return f"ws://127.0.0.1:{port}{place}"


def _opened(socket: ClientConnection, path: Path) -> Page:
    def ask(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(socket.recv(timeout=PATIENCE_S))).get("id") != number:
            pass
        return dict(answer["result"])

    target = ask(1, "Target.createTarget", url="about:blank")["targetId"]
    session = ask(2, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    page = Page(socket, session)
    for domain in ("Network", "Runtime", "Log", "Page"):
        page.send(f"{domain}.enable")
    page.send("Page.navigate", url=path.resolve().as_uri())
    page.wait_for("document.readyState === 'complete'")
    return page
