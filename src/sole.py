"""One daemon a STATE_DIR: two would write one journal, answer to one set of orders, and take each other's orders for their own.

The kernel holds the lock for as long as its owner lives, so nothing stale is left behind by any end. The supervisor is refused at once;
a child waits a little for that of a daemon that was killed, whose children stop by themselves.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from src.clock import monotonic_ns
from src.error_handler import Fatal

ORPHANS_S = 15.0
"""Longer than a child lives without its supervisor."""
AGAIN_S = 0.1


@contextmanager
def sole(state_dir: str | Path, name: str) -> Iterator[None]:
    """Be the only owner of that name in STATE_DIR. Fatal where another process is."""
    with _opened(state_dir, name) as fd:
        if not _taken(fd):
            raise _refusal(state_dir, fd)
        yield


@asynccontextmanager
async def sole_child(state_dir: str | Path, name: str, wait_s: float = ORPHANS_S) -> AsyncIterator[None]:
    """As ``sole``, for a child: it waits until one that its supervisor left behind is gone."""
    deadline = monotonic_ns() + int(wait_s * 1e9)
    with _opened(state_dir, name) as fd:
        while not _taken(fd):
            if monotonic_ns() > deadline:
                raise _refusal(state_dir, fd)
            await asyncio.sleep(AGAIN_S)
        yield


@contextmanager
def _opened(state_dir: str | Path, name: str) -> Iterator[int]:
    path = Path(state_dir) / f"{name}.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Fatal(f"STATE_DIR={str(state_dir)!r}: must be a folder that can be written ({error.strerror})") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    """Lock it, and write down whose it is."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.ftruncate(fd, 0)
    try:
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    except OSError:  # a full disk: the number is for people, the lock is the kernel's
        return True
    return True


def _refusal(state_dir: str | Path, fd: int) -> Fatal:
    pid = os.pread(fd, 20, 0).decode("ascii", "replace") or "unknown"
    return Fatal(f"STATE_DIR={str(state_dir)!r}: another daemon is using it (PID {pid}); stop it, or give this one a folder of its own")
