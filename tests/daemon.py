"""Runs the daemon, or the local exchange alone, as real processes, and reads what they say. Used by the end-to-end tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 120.0


class Process:
    """A program of ours with its output. ``wait_line`` returns the first line that holds a text, or fails with all that was said."""

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("BINANCE_", "SIM_", "TRADING_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "src.main", *words], cwd=ROOT, env=clean | {"PYTHONUNBUFFERED": "1"} | env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_line(self, text: str, timeout_s: float = DEADLINE_S, *, after: int = 0) -> str:
        def found() -> str | None:
            return next((line for line in self.lines[after:] if text in line), None)

        deadline = monotonic() + timeout_s
        with self._changed:
            while found() is None and not self._ended and monotonic() < deadline:
                self._changed.wait(deadline - monotonic())
            line = found()
        assert line is not None, f"no line with {text!r} in:\n{self.output}"
        return line

    def count(self, text: str) -> int:
        return sum(text in line for line in list(self.lines))

    def pid_of(self, name: str) -> int:
        return int(self.wait_line(f"{name} process started (PID=").split("PID=")[1].rstrip(")"))

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 15.0) -> int:
        code = self.process.wait(timeout_s)
        with self._changed:
            self._changed.wait_for(lambda: self._ended, 5.0)
        return code

    def kill(self) -> None:
        """Whatever is left of it and of its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def running(words: list[str], env: dict[str, str]) -> Iterator[Process]:
    process = Process(words, env)
    try:
        yield process
    finally:
        process.kill()


def daemon_env(folder: Path, **settings: str) -> dict[str, str]:
    """A daemon with everything of its own in ``folder`` and a free port."""
    return {"STATE_DIR": str(folder / "state"), "DATA_DIR": str(folder / "data"), "MODELS_DIR": str(folder / "models"), "PORT": "0",
            "HOST": "127.0.0.1", **settings}  # fmt: skip


def health_url(process: Process) -> str:
    line = process.wait_line("/health")
    return "http://" + line.split("http://")[1].split()[0]


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """(status, JSON body) of a GET; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=5) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")
    except OSError:
        return 0, None


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def until(check: Any, timeout_s: float = DEADLINE_S, *, what: str = "it") -> Any:
    """The first true value of ``check``, asked again and again."""
    deadline = monotonic() + timeout_s
    pause = threading.Event()
    while monotonic() < deadline:
        if value := check():
            return value
        pause.wait(0.1)
    raise AssertionError(f"{what} did not happen within {timeout_s:g} s")


@contextlib.contextmanager
def exchange(folder: Path, *words: str) -> Iterator[tuple[Process, dict[str, str]]]:
    """The local exchange alone, with its URLs."""
    with running(["exchange", "--port", "0", "--books", str(folder / "books"), "--control", *words], {}) as process:
        urls = json.loads(process.wait_line('"rest"', 60))
        yield process, urls


def descendants(pid: int) -> list[int]:
    """Every living process below ``pid``."""
    found = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(p) for p in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    """Running, and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
