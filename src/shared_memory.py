"""Memory and descriptors that a process hands to the children it spawns, and to nobody else.

A ``memfd_create`` mapping has no name: nothing is stale after a crash or ``kill -9``, no other process can open, delete or truncate it
(it is sealed against shrinking, so no reader can fault), and the kernel frees it when the last process that maps it is gone. A
descriptor is duplicated into a child while the child is being spawned; pickling at any other time raises.

Words are 8 bytes, naturally aligned: a load or store of one is a single access on every 64-bit machine, so it cannot be torn.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from multiprocessing import context, reduction
from typing import Any

import numpy as np
import numpy.typing as npt

WORD_BYTES = 8


class SharedDescriptor:
    """A file descriptor that survives being pickled into a spawned child (under a number of the child's own). Close it once."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __getstate__(self) -> Any:
        context.assert_spawning(self)
        return reduction.DupFd(self.fd)

    def __setstate__(self, handle: Any) -> None:
        self.fd = int(handle.detach())
        os.set_inheritable(self.fd, False)

    def close(self) -> None:
        """Closing twice is harmless. Afterwards ``fd`` is -1."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SharedWords:
    """``words``: a u64 array over shared memory that starts as zeros. Views taken of it keep the mapping alive after ``close``."""

    __slots__ = ("_memory", "nbytes", "words")

    def __init__(self, memory: SharedDescriptor, nbytes: int) -> None:
        self._memory = memory
        self.nbytes = nbytes
        self.words = _map(memory.fd, nbytes)

    @classmethod
    def create(cls, name: str, n_words: int) -> SharedWords:
        """``name`` shows in /proc/<pid>/maps and identifies nothing. OSError when the machine has no memory to give."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        memory = SharedDescriptor(fd)
        nbytes = n_words * WORD_BYTES
        try:
            os.ftruncate(fd, nbytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(memory, nbytes)
        except OSError:
            memory.close()
            raise

    def __getstate__(self) -> Any:
        return self._memory, self.nbytes

    def __setstate__(self, state: tuple[SharedDescriptor, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def close(self) -> None:
        """Lets go of the descriptor and of our view; the memory is unmapped with the last view of it."""
        self._memory.close()
        self.words = np.empty(0, np.uint64)


def _map(fd: int, nbytes: int) -> npt.NDArray[np.uint64]:
    """Every page is faulted in now, not in the middle of a market move."""
    return np.frombuffer(mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE), np.uint64)
