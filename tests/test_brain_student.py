"""The student in the real daemon: a tiny model trained here decides once it is promoted, and a broken one is named and left."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from src.features import FEATURE_NAMES
from src.journal import Journal
from src.models import ClosedTrade, Side
from src.student import Calibration, Card, save
from tests.daemon import daemon_env, running

pytestmark = pytest.mark.slow


def make_model(folder: Path, *, promoted: bool, names: tuple[str, ...] = FEATURE_NAMES) -> None:
    """A model of noise that finds most setups good: enough to decide, nothing to trust."""
    chance = np.random.default_rng(1)
    data = chance.normal(size=(400, len(names)))
    labels = chance.random(400) < 0.75
    booster = lightgbm.train({"objective": "binary", "verbose": -1, "num_leaves": 4, "num_threads": 1}, lightgbm.Dataset(data, labels), 5)
    save(folder, booster, Card(features=names, feature_hash="", model_sha256="", promoted=promoted, calibration=Calibration(), expectation_r=0.1))


def test_a_promoted_model_decides_and_trades(tmp_path: Path) -> None:
    env = daemon_env(tmp_path, TEACHER_THRESHOLD="0", LOG_LEVEL="INFO")
    make_model(Path(env["MODELS_DIR"]), promoted=True)
    with running([], env) as process:
        process.wait_line("🎓 The student decides: student:", 90)
        order = process.wait_line("📤", 150)
        assert "source=student:" in order
        assert "lightgbm" in Path(f"/proc/{process.pid_of('Brain')}/maps").read_text()
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("promoted", "threshold", "names", "text"),
    [
        (False, "0", FEATURE_NAMES, "🎓 The teacher decides: the model is not promoted"),
        (True, "50", FEATURE_NAMES, "🎓 The teacher decides: 0 of TEACHER_THRESHOLD=50 trades closed"),
        (True, "0", FEATURE_NAMES[:-1], "is not used"),
    ],
)
def test_a_model_that_may_not_decide_is_named_and_the_teacher_goes_on(
    tmp_path: Path, promoted: bool, threshold: str, names: tuple[str, ...], text: str
) -> None:
    env = daemon_env(tmp_path, TEACHER_THRESHOLD=threshold)
    make_model(Path(env["MODELS_DIR"]), promoted=promoted, names=names)
    with running([], env) as process:
        process.wait_line(text, 90)
        process.wait_line("✅ All processes running")


def test_enough_closed_trades_let_the_student_take_over(tmp_path: Path) -> None:
    env = daemon_env(tmp_path, TEACHER_THRESHOLD="1")
    make_model(Path(env["MODELS_DIR"]), promoted=True)
    journal = Journal(env["STATE_DIR"])
    one, two = Decimal(1), Decimal(2)
    journal.closed(ClosedTrade("BTCUSDT", Side.BUY, one, one, two, 1, 2, one, one, 0.6, "teacher", "target"))
    journal.close()
    with running([], env) as process:
        process.wait_line("🎓 The student decides: student:", 90)
