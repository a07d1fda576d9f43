"""Every process shows its counters to all others, one writer a block, and a wrong name says which are right."""

from __future__ import annotations

import math
import os
import pickle
from itertools import pairwise

import numpy as np
import pytest
from numba import njit

from src.counters import BLOCKS, READY, Counters
from src.shared_memory import SharedDescriptor
from tests.spawned import descriptors, mappings, spawned


@pytest.fixture
def counters():
    counters = Counters.create()
    yield counters
    counters.close()


def test_all_start_at_zero(counters):
    assert counters.snapshot().keys() == {"supervisor", "feed", "brain", "orchestrator", "exchange"}
    assert all(value == 0 for block in counters.snapshot().values() for value in block.values())


def test_every_field_is_a_word_of_its_own(counters):
    for number, (process, fields) in enumerate(BLOCKS.items()):
        for index, field in enumerate(fields):
            counters.block(process).set(field, 1_000 * number + index)
    for number, (process, fields) in enumerate(BLOCKS.items()):
        assert list(counters.snapshot()[process].values()) == [1_000 * number + index for index in range(len(fields))]


def test_no_two_processes_share_a_cache_line(counters):
    starts = sorted((counters.block(name).ints.ctypes.data, len(counters.block(name).ints)) for name in BLOCKS)
    assert all(start % 128 == 0 for start, _ in starts)
    assert all(start + 8 * words <= next_start for (start, words), (next_start, _) in pairwise(starts))


def test_whole_numbers_and_floats_keep_their_kind(counters):
    brain = counters.block("brain")
    brain.set("equity", 10_000)
    brain.set("realised_today", -12.5)
    brain.set("fills", 7)
    assert isinstance(counters.get("brain", "equity"), float)
    assert counters.get("brain", "realised_today") == -12.5
    assert isinstance(counters.get("brain", "fills"), int)
    with pytest.raises(TypeError):
        brain.set("fills", 7.5)


def test_adding_and_keeping_the_largest(counters):
    feed = counters.block("feed")
    feed.add("frames")
    feed.add("frames", 41)
    counters.block("brain").max("lag_us_max", 9)
    counters.block("brain").max("lag_us_max", 3)
    assert counters.get("feed", "frames") == 42
    assert counters.get("brain", "lag_us_max") == 9


def test_large_whole_numbers_are_exact(counters):
    counters.block("exchange").set("banned_until_ms", 2**62 + 1)
    assert counters.get("exchange", "banned_until_ms") == 2**62 + 1


@pytest.mark.parametrize("use", [
    lambda c: c.block("feeds"),
    lambda c: c.get("feed", "frame"),
    lambda c: c.block("feed").set("frame", 1),
    lambda c: c.block("feed").add("frame"),
    lambda c: c.block("feed").index("frame"),
])
def test_a_wrong_name_lists_the_right_ones(counters, use):
    with pytest.raises(KeyError, match=r"is not one of: .*(feed|frames)"):
        use(counters)


def test_age_counts_from_the_last_beat(counters):
    assert counters.age_s("feed", 5_000_000_000) == math.inf
    counters.block("feed").beat(2_000_000_000)
    assert counters.age_s("feed", 5_500_000_000) == 3.5


def test_request_weight_is_summed_over_processes_of_the_same_minute(counters):
    counters.block("feed").spend_weight(100, 40)
    counters.block("brain").spend_weight(100, 5)
    counters.block("brain").spend_weight(100, 5)
    counters.block("orchestrator").spend_weight(99, 1_000)
    assert counters.weight_used(100) == 50
    assert counters.weight_used(101) == 0
    counters.block("feed").spend_weight(101, 2)
    assert counters.weight_used(101) == 2
    assert counters.weight_used(100) == 10


@njit
def _count(ints, floats, frames, equity):
    ints[frames] += 3
    floats[equity] += 0.5


def test_a_kernel_finds_a_field_by_its_index(counters):
    brain = counters.block("brain")
    _count(brain.ints, brain.floats, brain.index("slots"), brain.index("equity"))
    assert counters.get("brain", "slots") == 3
    assert counters.get("brain", "equity") == 0.5


def _be_the_feed(counters: Counters, done: SharedDescriptor) -> None:
    feed = counters.block("feed")
    assert counters.get("supervisor", "pid") == 17
    feed.set("pid", os.getpid())
    feed.set("state", READY)
    for _ in range(10_000):
        feed.add("frames")
    os.eventfd_write(done.fd, 1)


def test_what_a_child_counts_is_seen_here(counters):
    done = SharedDescriptor(os.eventfd(0))
    counters.block("supervisor").set("pid", 17)
    with spawned(_be_the_feed, counters, done) as child:
        os.eventfd_read(done.fd)
        assert counters.get("feed", "frames") == 10_000
        assert counters.get("feed", "state") == READY
        assert counters.get("feed", "pid") == child.pid
    done.close()


def _store_whole_patterns(counters: Counters, times: int) -> None:
    feed = counters.block("feed")
    for _ in range(times):
        feed.set("frames", 0)
        feed.set("frames", -1)


def test_no_read_is_torn(counters):
    with spawned(_store_whole_patterns, counters, 200_000) as child:
        seen = set()
        while child.is_alive():
            seen.update(counters.get("feed", "frames") for _ in range(1_000))
    assert seen <= {0, -1}


def test_counters_are_handed_to_children_only(counters):
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(counters)


def test_closing_leaves_nothing_and_twice_is_harmless():
    open_before, mapped_before = descriptors().keys(), mappings("aegis-counters")
    counters = Counters.create()
    counters.block("feed").add("frames")
    assert mappings("aegis-counters") == mapped_before + 1
    counters.close()
    counters.close()
    assert descriptors().keys() == open_before
    assert mappings("aegis-counters") == mapped_before


def test_a_block_still_held_outlives_the_close():
    counters = Counters.create()
    block = counters.block("brain")
    counters.close()
    block.add("fills")
    assert block.get("fills") == 1
    assert block.ints[block.index("fills")] == np.int64(1)
