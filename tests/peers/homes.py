"""A virtual environment for each peer, made from its ``.txt``; their pins clash with ours and with each other's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALL_S = 600.0


def home(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment under ``folder``: one that stands is used as long as what it was made from is unchanged."""
    wanted, place = (HERE / f"{peer}.txt").read_text(), folder / peer
    python, made_from = place / "bin" / "python", place / "made_from.txt"
    if made_from.is_file() and made_from.read_text() == wanted:
        return python
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    done = subprocess.run([*pip, "--requirement", str(HERE / f"{peer}.txt")], capture_output=True, text=True, timeout=INSTALL_S)
    assert done.returncode == 0, f"pip could not install {wanted.strip()}:\n{done.stderr}"
    made_from.write_text(wanted)
    return python
