"""The supervisor: spawns the processes, watches them, stops them. It does no I/O but pipes, signals and log lines.

Invariants: RUNNING is said only after each child has reported ready; a child's death is known by its sentinel, in milliseconds, and a
hung one by the age of its beat; then the others are stopped in order and the exit code is 1, for the container to restart. SIGTERM and
SIGINT stop in order and exit 0; what is not gone after the bound is killed. Shared memory has no name and children watch their parent,
so nothing is left behind however this process ends.

Children speak over a pipe in plain tuples: ("progress", text), ("table", values), ("ready", values), ("fatal", text).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from src.clock import monotonic_ns
from src.counters import READY, STOPPING, Counters
from src.error_handler import Fatal, critical, failure, lifecycle, warn

EXIT_OK, EXIT_DIED, EXIT_FATAL = 0, 1, 2
STOP_S = 10.0
BRAIN_STOP_S = 7.0
"""Of which the Brain may take this much, to settle what is in flight."""
START_S = 180.0
"""Longest start: cold kernels on a slow machine."""
STOP_ORDER = ("brain", "orchestrator", "feed", "exchange", "exchange_kernels", "feed_kernels", "brain_kernels")
SHORT_LIVED = ("exchange_kernels", "feed_kernels", "brain_kernels")
"""Children that may end by themselves."""
TITLES = {"exchange_kernels": "Kernels", "feed_kernels": "Kernels", "brain_kernels": "Kernels", "feed": "Feed", "brain": "Brain",
          "orchestrator": "Orchestrator", "exchange": "Exchange"}  # fmt: skip
LINES = {"feed": "📡 Feed process started (PID={})", "brain": "🧠 Brain process started (PID={})",
         "orchestrator": "🔄 Orchestrator process started (PID={})", "exchange": "🏛️ Exchange process started (PID={})"}  # fmt: skip
Target = Callable[..., None]


class ChildEnded(Exception):
    """A child died, hung, or said that it cannot go on. ``code`` is ours to exit with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class StopAsked(Exception):
    """SIGTERM or SIGINT came."""


@dataclass(slots=True)
class Child:
    """``heard``: what it said, by word."""

    name: str
    process: BaseProcess
    pipe: Connection
    heard: dict[str, Any] = field(default_factory=dict)


class Supervisor:
    """``counters``: for beats. ``hung_s``: a ready child without a beat for this long (wall) is hung. Use it as a context manager."""

    def __init__(self, counters: Counters, hung_s: float) -> None:
        self._counters = counters
        self._block = counters.block("supervisor")
        self._hung_s = hung_s
        self._context = multiprocessing.get_context("spawn")
        self._children: dict[str, Child] = {}
        self._asked_to_stop = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._reader.setblocking(False)

    def __enter__(self) -> Supervisor:
        self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        self._wake_fd = signal.set_wakeup_fd(self._writer.fileno())
        self._block.set("pid", os.getpid())
        self._block.set("started_ns", monotonic_ns())
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wake_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def _on_signal(self, number: int, _frame: object) -> None:
        self._asked_to_stop = True

    def pipe(self) -> tuple[Connection, Connection]:
        """A one-way pipe between two children: (reading end, writing end)."""
        return self._context.Pipe(duplex=False)

    def spawn(self, name: str, target: Target, *args: Any) -> None:
        """Start ``target(name, pipe, *args)`` in a fresh process."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=target, args=(name, theirs, *args), name=f"aegis-{name}")
        process.start()
        theirs.close()
        self._children[name] = Child(name, process, ours)
        if name in LINES:
            lifecycle(LINES[name].format(process.pid))

    def wait_end(self, *names: str) -> None:
        """Until children that have an end have come to it. Raises ChildEnded where that is not the proper one, or StopAsked."""
        deadline = monotonic_ns() + int(START_S * 1e9)
        while left := set(names) & self._children.keys():
            self._listen(1.0)
            if monotonic_ns() > deadline:
                raise ChildEnded(f"{TITLES[min(left)]} did not end within {START_S:g} s", EXIT_DIED)

    def tell(self, name: str, message: tuple[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended: its sentinel says so
            self._children[name].pipe.send(message)

    # waiting

    def wait_for(self, word: str, *names: str) -> list[Any]:
        """Until each of these children has said ``word``; what they said with it. Raises ChildEnded or StopAsked."""
        deadline = monotonic_ns() + int(START_S * 1e9)
        while missing := [n for n in names if word not in self._children[n].heard]:
            self._listen(1.0)
            if monotonic_ns() > deadline:
                raise ChildEnded(f"{TITLES[missing[0]]} did not report '{word}' within {START_S:g} s", EXIT_DIED)
        return [self._children[n].heard[word] for n in names]

    def watch(self) -> None:
        """Until something ends: raises ChildEnded or StopAsked."""
        self._block.set("state", READY)
        while True:
            self._listen(1.0)
            self._find_hung()

    def _listen(self, timeout_s: float) -> None:
        """Hear what children say within the time. Progress is logged; a death or a signal raises."""
        self._block.beat(monotonic_ns())
        sources: dict[Any, Child] = {c.pipe: c for c in self._children.values() if not c.pipe.closed}
        sources |= {c.process.sentinel: c for c in self._children.values()}
        dead: list[Child] = []
        for source in wait([*sources, self._reader], timeout_s):
            if source is self._reader:
                self._reader.recv(64)
            elif isinstance(source, int):
                dead.append(sources[source])
            else:
                self._hear(sources[source])
        if self._asked_to_stop:
            raise StopAsked
        for child in dead:
            child.process.join(1.0)
            self._hear(child)  # its last words, a Fatal perhaps, come first
            if child.name in SHORT_LIVED and child.process.exitcode == 0:
                self._children.pop(child.name).pipe.close()
                continue
            raise ChildEnded(f"{TITLES[child.name]} ended with {_how(child.process.exitcode)}", EXIT_DIED)

    def _hear(self, child: Child) -> None:
        try:
            while not child.pipe.closed and child.pipe.poll():
                said, value = child.pipe.recv()
                if said == "progress":
                    lifecycle(f"⏳ {TITLES[child.name]}: {value}")
                elif said == "fatal":
                    raise ChildEnded(f"{TITLES[child.name]}: {value}", EXIT_FATAL)
                else:
                    child.heard[said] = value
        except (EOFError, OSError):
            child.pipe.close()  # it closes as a child ends: the sentinel says so

    def _find_hung(self) -> None:
        now = monotonic_ns()
        for child in self._children.values():
            age = self._counters.age_s(child.name, now)
            if "ready" in child.heard and age > self._hung_s:
                raise ChildEnded(f"{TITLES[child.name]} has not beaten for {age:.1f} s (limit {self._hung_s:g} s)", EXIT_DIED)

    # stopping

    def ended(self, error: ChildEnded) -> int:
        """Say which child it was, in the owner's words, and stop the others."""
        culprit = str(error).split(":")[0].split(" ")[0]
        if error.code == EXIT_FATAL:
            critical(f"🛑 {error}")
        else:
            critical(f"🔴 CRITICAL: {culprit} process died! Container will restart.", reason=str(error))
        self.stop()
        return error.code

    def stop(self) -> None:
        """SIGTERM one after the other, each given what is left of the bound; then kill. Nothing is left behind."""
        self._block.set("state", STOPPING)
        deadline = monotonic_ns() + int(STOP_S * 1e9)
        for name in STOP_ORDER:
            child = self._children.get(name)
            if child is None:
                continue
            if child.process.is_alive():
                child.process.terminate()
                bound = BRAIN_STOP_S if name == "brain" else STOP_S
                child.process.join(max(0.2, min(bound, (deadline - monotonic_ns()) / 1e9)))
            if child.process.is_alive():
                warn(f"{TITLES[name]} did not stop in time and is killed")
                child.process.kill()
                child.process.join()
            child.pipe.close()
        lifecycle("👋 All processes stopped")


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def run(supervisor: Supervisor, start: Callable[[Supervisor], None]) -> int:
    """Start, watch, stop. Returns the exit code."""
    with supervisor:
        try:
            start(supervisor)
            lifecycle("🔄 Entering Process Monitor Loop (keep-alive)")
            supervisor.watch()
        except StopAsked:
            lifecycle("🛑 Stop asked for: stopping in order")
            supervisor.stop()
            return EXIT_OK
        except ChildEnded as error:
            return supervisor.ended(error)
        except Fatal as error:
            critical(f"🛑 {error}")
            supervisor.stop()
            return EXIT_FATAL
        except Exception as error:
            failure("the supervisor itself failed", error)
            supervisor.stop()
            return EXIT_DIED
    raise AssertionError("watch ends by raising")

