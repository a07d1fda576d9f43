"""Other people's clients and libraries, each in a virtual environment of its own, since their pins clash with ours.

Environments are built once, with pip, in the folder that ``BENCH_ENVIRONMENTS`` names (else ``aegis-bench`` among temporary files); one that
cannot be built is named on standard error and left out.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CLIENTS_FOLDER = Path(__file__).parent / "clients"
DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Environment:
    """``packages``: what pip installs. ``script``: what it runs, in ``clients``, with ``arguments`` after port and number of frames.
    ``slower``: so many times fewer frames are sent to it, that its run be as long as others'."""

    packages: tuple[str, ...]
    script: str = ""
    arguments: tuple[str, ...] = ()
    slower: int = 1
    tls: bool = False
    """It takes nothing but TLS."""

    @property
    def python(self) -> Path:
        root = Path(os.environ.get("BENCH_ENVIRONMENTS", "") or Path(tempfile.gettempdir()) / "aegis-bench")
        return root / "-".join(self.packages).replace("==", "-") / "bin" / "python"


_WEBSOCKETS, _AIOHTTP = ("websockets==17.4", "uvloop==0.23.0"), ("aiohttp==3.14.5", "uvloop==0.23.0")
CLIENTS = {
    "bare websockets": Environment(_WEBSOCKETS, "bare_websockets.py", ("asyncio",), 3),
    "bare websockets on uvloop": Environment(_WEBSOCKETS, "bare_websockets.py", ("uvloop",), 3),
    "bare aiohttp": Environment(_AIOHTTP, "bare_aiohttp.py", ("asyncio",), 2),
    "bare aiohttp on uvloop": Environment(_AIOHTTP, "bare_aiohttp.py", ("uvloop",), 2),
    "python-binance": Environment(("python-binance==1.0.37",), "with_python_binance.py", (), 20),
    "ccxt.pro": Environment(("ccxt==4.5.90",), "with_ccxt.py", (), 50),
    "cryptofeed": Environment(("cryptofeed==2.4.1", "uvloop==0.21.0"), "with_cryptofeed.py", (), 20, tls=True),
}
ICEORYX = Environment(("iceoryx2==0.10.0",))


@functools.cache
def built(environment: Environment) -> bool:
    """Whether the environment is there; it is built where it is not."""
    python = environment.python
    done = python.parent.parent / "complete"
    if done.exists():
        return True
    print(f"building an environment with {', '.join(environment.packages)}", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", python.parent.parent], check=True, capture_output=True, text=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *environment.packages], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        print(f"left out, it cannot be built: {', '.join(environment.packages)}: {(error.stderr or '').strip()[-300:]}", file=sys.stderr)
        return False
    done.touch()
    return True


def available() -> dict[str, Environment]:
    """The clients whose environment could be built."""
    return {name: environment for name, environment in CLIENTS.items() if built(environment)}


def client_run(name: str, sender: Connection, frames: int) -> dict[str, Any]:
    """One client against a sender that waits for it: {frames, seconds, cpu}, from the first frame it had to the last. Over TLS it believes the
    certificate that SSL_CERT_FILE names."""
    environment = CLIENTS[name]
    port = sender.recv()
    command = [environment.python, CLIENTS_FOLDER / environment.script, str(port), str(frames), *environment.arguments]
    environ = os.environ | {"REQUESTS_CA_BUNDLE": os.environ.get("SSL_CERT_FILE", "")}
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, env=environ, cwd=environment.python.parent) as client:
        try:
            if not sender.poll(60.0):
                raise RuntimeError(f"{name} did not subscribe")
            count = sender.recv()
            assert count == frames, f"{count} frames for {name}, not {frames}"
            sender.send(0)
            said, _ = client.communicate(timeout=DEADLINE_S)
        finally:
            client.kill()
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    sender.recv()
    return found
