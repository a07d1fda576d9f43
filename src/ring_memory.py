"""The ring's memory without its kernels: what the supervisor makes and hands to the children, and never reads. No Numba is loaded here.

The layout is drawn in ``ring_buffer``; this module only knows how large it is and where its capacity stands.
"""

from __future__ import annotations

import os

from src.error_handler import Fatal
from src.shared_memory import SharedDescriptor, SharedWords

WORD_CAPACITY = 48
CONTROL_WORDS = 64
SLOT_WORDS = 16
SLOTS_DEFAULT, SLOTS_MIN, SLOTS_MAX = 16_384, 10_000, 1 << 20


def slots_for(slots: int) -> int:
    """The ring's size for a wish: the next power of two. Fatal for anything but a whole number in SLOTS_MIN .. SLOTS_MAX."""
    if not isinstance(slots, int) or isinstance(slots, bool) or not SLOTS_MIN <= slots <= SLOTS_MAX:
        raise Fatal(f"RING_SLOTS is {slots!r}, and must be a whole number from {SLOTS_MIN} to {SLOTS_MAX}")
    return 1 << (slots - 1).bit_length()


class RingMemory:
    """The mapping and the eventfd of one ring, picklable into spawned children, closed by each holder."""

    __slots__ = ("event", "words")

    def __init__(self, words: SharedWords, event: SharedDescriptor) -> None:
        self.words = words
        self.event = event

    @classmethod
    def create(cls, slots: int = SLOTS_DEFAULT) -> RingMemory:
        """Room for at least ``slots`` slots. Fatal for a wrong number; OSError when there is no memory or descriptor left."""
        capacity = slots_for(slots)
        words = SharedWords.create("aegis-ring", CONTROL_WORDS + capacity * SLOT_WORDS)
        words.words[WORD_CAPACITY] = capacity
        return cls(words, SharedDescriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)))

    @property
    def nbytes(self) -> int:
        return self.words.nbytes

    def close(self) -> None:
        """Twice is harmless."""
        self.words.close()
        self.event.close()
