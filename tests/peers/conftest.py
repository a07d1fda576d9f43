"""Where the peers live, and an exchange for each of their tests, as the process that users start."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 60.0


@pytest.fixture(scope="session")
def homes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEER_VENVS names a folder that is kept, so that the next run is quick; else one for this session."""
    kept = os.environ.get("PEER_VENVS", "")
    return Path(kept).resolve() if kept else tmp_path_factory.mktemp("peers")


@pytest.fixture
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """``python -m src.main exchange`` with two accounts of 10,000 USDT: its addresses and their keys. It must end well and complain of nothing.

    Parameters, where given, are switches.
    """
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public_pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    argv = [sys.executable, "-m", "src.main", "exchange", "--port", "0", "--seed", "1", "--symbols", "BTCUSDT,ETHUSDT", "--control",
            "--account", "peer:secret:10000", "--account", f"peer-ed:ed25519={public_pem}:10000",
            *(word for switch in getattr(request, "param", ()) for word in ("--switch", switch))]  # fmt: skip
    with (tmp_path / "exchange.log").open("w+") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline() if select.select([process.stdout], [], [], START_S)[0] else ""
            assert line, "the exchange did not start: " + (tmp_path / "exchange.log").read_text()
            yield json.loads(line) | {"key": "peer", "secret": "secret", "ed_key": "peer-ed", "ed_secret": pem}
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                ended = process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                ended = process.wait()
        log.seek(0)
        said = log.read()
    assert ended == 0 and "Traceback" not in said and "rror" not in said, said
