"""What the disk refuses is written later, in order, the newest of a key alone; and none is lost untold."""

from __future__ import annotations

from collections.abc import Callable

from src.error_handler import Degraded
from src.late_writes import UNWRITTEN_MAX, LateWrites


class Disk:
    def __init__(self) -> None:
        self.full = False
        self.written: list[str] = []

    def write(self, text: str) -> Callable[[], None]:
        def work() -> None:
            if self.full:
                raise Degraded("full")
            self.written.append(text)

        return work


def test_nothing_goes_before_what_waits() -> None:
    disk, dropped = Disk(), []
    writes = LateWrites(lambda: dropped.append(1))
    assert writes.write(disk.write("a"))
    disk.full = True
    assert not writes.write(disk.write("b"), "B") and not writes.write(disk.write("c")) and not writes.write(disk.write("B"), "B")
    assert not writes.again() and len(writes) == 2 and "B" in writes
    disk.full = False
    assert not writes.write(disk.write("d")) and disk.written == ["a"]
    assert writes.again() and disk.written == ["a", "c", "B", "d"] and not writes and not dropped


def test_what_is_dropped_is_told_and_it_is_the_oldest() -> None:
    disk, dropped = Disk(), []
    writes = LateWrites(lambda: dropped.append(1))
    disk.full = True
    for number in range(UNWRITTEN_MAX + 2):
        writes.write(disk.write(str(number)))
    writes.write(disk.write("never"), "K")
    writes.drop("K")
    disk.full = False
    assert writes.again() and len(dropped) == 3 and disk.written == [str(n) for n in range(3, UNWRITTEN_MAX + 2)]
