"""Where compiled kernels are kept: a folder that is named after the sources, so that an upgrade never meets kernels of another version.

Numba keys its cache on one file's age, and not on what that file's kernels call in others; a stale one is wrong or does not load. Call
``use`` before Numba is imported; spawned children inherit it through the environment. A folder that holds all of a part is marked as whole.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str], None]
"""Is told what is compiled next."""
VARIABLE = "NUMBA_CACHE_DIR"
KEEP = 3
_SOURCES = Path(__file__).resolve().parent


def source_hash() -> str:
    """16 hexadecimal digits over every source file of ours."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.rglob("*.py")):
        digest.update(path.relative_to(_SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def use() -> Path:
    """Point Numba at this version's folder, below NUMBA_CACHE_DIR or beside the sources; the oldest of other versions go."""
    given = os.environ.get(VARIABLE, "")
    name = source_hash()
    if given.endswith(name):
        return Path(given)
    root = _above(Path(given)) if given else _writable(_SOURCES / "__pycache__" / "kernels")
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    os.environ[VARIABLE] = str(folder)
    others = sorted((p for p in root.iterdir() if p.is_dir() and len(p.name) == len(name)), key=lambda p: p.stat().st_mtime)
    for old in others[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def silently(_name: str) -> None:
    """Tells nobody."""


def is_whole(part: str) -> bool:
    """Whether every kernel of this part was compiled into the folder in use, on a processor like this one."""
    return _mark(part).exists()


def mark_whole(part: str) -> None:
    _mark(part).touch()


def _mark(part: str) -> Path:
    """Kernels are for one kind of processor: a folder that moved to another machine is not whole there."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))} or lines)
    return Path(os.environ[VARIABLE]) / f"whole-{part}-{hashlib.sha256(repr(kind).encode()).hexdigest()[:16]}"


def _above(folder: Path) -> Path:
    """The root of a folder that another version of these sources was pointed at."""
    return folder.parent if re.fullmatch(r"[0-9a-f]{16}", folder.name) else folder


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        return _temporary()
    return _temporary()


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"aegis-kernels-{os.getuid()}"
