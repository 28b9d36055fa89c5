"""A page in headless Chromium, driven as a reader would: it looks, waits, moves the mouse. Over Chromium's own protocol."""

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


class Tab:
    """One page.

    Attributes:
        errors: what it wrote to the console as an error, and what it threw and nobody caught.
    """

    def __init__(self, socket: websocket.WebSocket):
        self.socket, self.count, self.errors = socket, 0, []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **params) -> dict:
        """The result of a method of the protocol."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            self._note(message)
            if message.get("id") == self.count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def _note(self, message: dict) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.errors.append(" ".join(str(x.get("value", x.get("description"))) for x in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def evaluate(self, script: str):
        """The value of an expression, or of what it promises.

        Raises:
            RuntimeError: it throws.
        """
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", "the page threw"))
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression holds.

        Raises:
            TimeoutError: it does not in time.
        """
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({script})"):
            if time.monotonic() > end:
                raise TimeoutError("\n".join([f"not in {seconds:g} s: {script}", *self.errors]))
            time.sleep(0.05)

    def drag(self, element: str, right: float, down: float = 0) -> None:
        """Take the middle of what an expression finds with the mouse, move it so many pixels, and let it go."""
        self.evaluate(f"{element}.scrollIntoView({{ block: 'center', behavior: 'instant' }})")
        middle = "({ x, y, width, height }) => [x + width / 2, y + height / 2]"
        x, y = self.evaluate(f"({middle})({element}.getBoundingClientRect())")
        for kind, share in (("mousePressed", 0), ("mouseMoved", 0.5), ("mouseMoved", 1), ("mouseReleased", 1)):
            place = {"x": x + share * right, "y": y + share * down}
            self.call("Input.dispatchMouseEvent", type=kind, **place, button="left", buttons=1, clickCount=1)


def appeared(pattern: str, folder: Path, program: subprocess.Popen, seconds: float = 60) -> Path:
    """A file that a program writes when it is ready.

    Raises:
        RuntimeError: it ended, or took too long.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and program.poll() is None:
        if found := [file for file in folder.glob(pattern) if file.read_text()]:
            return found[0]
        time.sleep(0.05)
    raise RuntimeError(f"{program.args[0]} did not start: no {pattern} after {seconds:g} s, exit status {program.poll()}")


@contextlib.contextmanager
def running(command: list, **options) -> Iterator[subprocess.Popen]:
    """A silent program, which ends with the block."""
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield program
    finally:
        program.terminate()
        program.wait(30)


@contextlib.contextmanager
def opened(address: str, width: int = 1200, height: int = 1000) -> Iterator[Tab]:
    """A page at an address, in a browser of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [*OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "--remote-debugging-port=0"]
        with running([CHROMIUM, *options, "about:blank"]) as browser:
            port = appeared("DevToolsActivePort", Path(profile), browser).read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as pages:
                place = next(page["webSocketDebuggerUrl"] for page in json.load(pages) if page["type"] == "page")
            socket = websocket.create_connection(place, suppress_origin=True, timeout=120)
            with contextlib.closing(socket):
                tab = Tab(socket)
                tab.call("Page.navigate", url=address)
                yield tab
