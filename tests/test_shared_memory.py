"""Nameless memory reaches spawned children, is seen by both sides, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal

import pytest

from src.shared_memory import SharedDescriptor, SharedWords
from tests.spawned import descriptors, mappings, spawned


def _store(memory: SharedWords, ready: SharedDescriptor) -> None:
    memory.words[3] = 42
    os.eventfd_write(ready.fd, 1)


def _store_and_hang(memory: SharedWords, ready: SharedDescriptor) -> None:
    _store(memory, ready)
    signal.pause()


def _inheritable(memory: SharedWords, ready: SharedDescriptor) -> None:
    assert not os.get_inheritable(ready.fd)
    assert not os.get_inheritable(memory._memory.fd)


@pytest.fixture
def memory():
    memory = SharedWords.create("aegis-test", 64)
    yield memory
    memory.close()


@pytest.fixture
def ready():
    ready = SharedDescriptor(os.eventfd(0, os.EFD_CLOEXEC))
    yield ready
    ready.close()


def test_words_start_as_zeros(memory):
    assert len(memory.words) == 64
    assert not memory.words.any()


def test_a_childs_store_is_seen_here(memory, ready):
    with spawned(_store, memory, ready):
        os.eventfd_read(ready.fd)
        assert memory.words[3] == 42


def test_a_childs_descriptors_go_no_further(memory, ready):
    with spawned(_inheritable, memory, ready):
        pass


def test_a_killed_child_leaves_neither_file_nor_descriptor(ready):
    files, open_before, mapped_before = set(os.listdir("/dev/shm")), descriptors(), mappings("aegis-test")
    memory = SharedWords.create("aegis-test", 64)
    with spawned(_store_and_hang, memory, ready) as child:
        os.eventfd_read(ready.fd)
        child.kill()
    assert memory.words[3] == 42
    memory.close()
    assert set(os.listdir("/dev/shm")) == files
    assert descriptors().keys() == open_before.keys()
    assert mappings("aegis-test") == mapped_before


def test_pickling_outside_a_spawn_is_refused(memory):
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(memory)


def test_nobody_can_shrink_it_under_a_reader(memory):
    fd = memory._memory.fd
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 8)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK


def test_closing_twice_is_harmless(memory):
    memory.close()
    memory.close()


def test_a_view_outlives_the_close(memory):
    view = memory.words[:4]
    memory.close()
    view[0] = 7
    assert view[0] == 7
