"""The student: a tiny model is trained, saved, loaded and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

from src.error_handler import Rejected
from src.features import FEATURE_COUNT, FEATURE_NAMES, feature_hash
from src.student import CARD_FILE, MODEL_FILE, P_MAX, P_MIN, Calibration, Card, Student, save


@pytest.fixture(scope="module")
def booster() -> Any:
    """Learns that a high displacement is good."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2_000, FEATURE_COUNT))
    y = (x[:, FEATURE_NAMES.index("displacement")] + rng.normal(size=2_000) > 0).astype(int)
    parameters = {"objective": "binary", "num_leaves": 7, "verbosity": -1, "num_threads": 1, "deterministic": True, "seed": 1}
    return lightgbm.train(parameters, lightgbm.Dataset(x, y), num_boost_round=20)


def _card(**fields: Any) -> Card:
    return Card(**{"features": FEATURE_NAMES, "feature_hash": "", "model_sha256": "", **fields})


def _rows() -> np.ndarray[Any, Any]:
    rows = np.zeros((3, FEATURE_COUNT))
    rows[:, FEATURE_NAMES.index("displacement")] = (-2.0, 0.0, 2.0)
    return rows


def test_a_saved_model_says_the_same_when_loaded(tmp_path: Path, booster: Any) -> None:
    card = save(tmp_path, booster, _card(expectation_r=0.1, trades=359))
    student = Student.load(tmp_path, FEATURE_NAMES)
    assert student is not None and student.card == card and card.feature_hash == feature_hash()
    np.testing.assert_allclose(student.predict(_rows()), booster.predict(_rows()), rtol=1e-12)
    p = student.predict(_rows())
    assert p[0] < p[1] < p[2] and student.source == f"student:{card.model_sha256[:8]}"


def test_without_files_there_is_no_student(tmp_path: Path) -> None:
    assert Student.load(tmp_path, FEATURE_NAMES) is None and Student.load(tmp_path / "nowhere", FEATURE_NAMES) is None


@pytest.mark.parametrize("promoted, expectation, live", [(True, 0.1, True), (True, 0.0, False), (True, -0.1, False), (False, 0.1, False)])
def test_only_a_promoted_model_that_earned_something_may_trade_live(
        tmp_path: Path, booster: Any, promoted: bool, expectation: float, live: bool) -> None:  # fmt: skip
    save(tmp_path, booster, _card(promoted=promoted, expectation_r=expectation))
    student = Student.load(tmp_path, FEATURE_NAMES)
    assert student is not None and student.may_trade_live is live and student.promoted is promoted


def test_isotonic_knots_are_joined_by_straight_lines(tmp_path: Path, booster: Any) -> None:
    save(tmp_path, booster, _card(calibration=Calibration("isotonic", x=(0.2, 0.8), y=(0.4, 0.6))))
    student = Student.load(tmp_path, FEATURE_NAMES)
    assert student is not None
    raw = booster.predict(_rows())
    np.testing.assert_allclose(student.predict(_rows()), np.clip(0.4 + (raw - 0.2) / 3, 0.4, 0.6), rtol=1e-9)


def test_platt_bends_the_logit(tmp_path: Path, booster: Any) -> None:
    save(tmp_path, booster, _card(calibration=Calibration("platt", a=0.5, b=-0.1)))
    student = Student.load(tmp_path, FEATURE_NAMES)
    assert student is not None
    raw = booster.predict(_rows())
    np.testing.assert_allclose(student.predict(_rows()), 1 / (1 + np.exp(-(0.5 * np.log(raw / (1 - raw)) - 0.1))), rtol=1e-9)


def test_probabilities_are_never_certain(tmp_path: Path, booster: Any) -> None:
    save(tmp_path, booster, _card(calibration=Calibration("isotonic", x=(0.49, 0.51), y=(0.0, 1.0))))
    student = Student.load(tmp_path, FEATURE_NAMES)
    assert student is not None
    p = student.predict(_rows())
    assert p[0] == P_MIN and p[2] == P_MAX


CALIBRATIONS = (Calibration(), Calibration("isotonic", x=(0.1, 0.5, 0.9), y=(0.2, 0.5, 0.7)), Calibration("platt", a=0.7, b=0.2))


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=lambda c: c.kind)
def test_one_row_says_what_many_say(tmp_path: Path, booster: Any, calibration: Calibration) -> None:
    save(tmp_path, booster, _card(calibration=calibration))
    student = Student.load(tmp_path, FEATURE_NAMES)
    assert student is not None
    rows = np.random.default_rng(3).normal(size=(50, FEATURE_COUNT))
    rows[::3, 4] = np.nan
    alone = np.concatenate([student.predict(rows[k : k + 1]) for k in range(50)])
    np.testing.assert_array_equal(alone, student.predict(rows))


def test_one_row_and_no_row_are_fine(tmp_path: Path, booster: Any) -> None:
    save(tmp_path, booster, _card())
    student = Student.load(tmp_path, FEATURE_NAMES)
    assert student is not None
    assert student.predict(_rows()[:1]).shape == (1,) and student.predict(_rows()[:0]).shape == (0,)
    unknown = np.full((1, FEATURE_COUNT), np.nan)
    assert 0 < student.predict(unknown)[0] < 1


SPOILT: tuple[tuple[str, str, Any, str], ...] = (
    ("another feature", CARD_FILE, lambda t: t.replace('"rsi"', '"sir"'), "other features.*unknown here: \\['sir'\\], missing there: \\['rsi'\\]"),
    ("another hash", CARD_FILE, lambda t: t.replace(feature_hash(), "0" * 16), "other features"),
    ("another text", MODEL_FILE, lambda t: t + "\n", "not the one its card speaks of"),
    ("no JSON", CARD_FILE, lambda t: t[:50], "cannot be read"),
    ("a wrong type", CARD_FILE, lambda t: t.replace('"promoted": false', '"promoted": "yes"'), "cannot be read"),
    ("falling knots", CARD_FILE, lambda t: t.replace('"kind": "none"', '"kind": "isotonic", "x": [0.1, 0.9], "y": [0.9, 0.1]'), "rising knots"),
    ("an unknown calibration", CARD_FILE, lambda t: t.replace('"kind": "none"', '"kind": "magic"'), "'magic' is unknown"),
)


@pytest.mark.parametrize("name, file, spoil, reason", SPOILT, ids=[s[0] for s in SPOILT])
def test_a_model_that_does_not_fit_is_rejected_with_the_reason(tmp_path: Path, booster: Any, name: str, file: str, spoil: Any, reason: str) -> None:
    save(tmp_path, booster, _card(calibration=Calibration("none", x=(), y=())))
    text = (tmp_path / file).read_text()
    if '"kind"' not in text and file == CARD_FILE:
        text = json.dumps({**json.loads(text), "calibration": {"kind": "none"}}, indent=1)
    assert spoil(text) != text
    (tmp_path / file).write_text(spoil(text))
    with pytest.raises(Rejected, match=reason):
        Student.load(tmp_path, FEATURE_NAMES)


@pytest.mark.parametrize("missing", [CARD_FILE, MODEL_FILE])
def test_half_a_model_is_rejected(tmp_path: Path, booster: Any, missing: str) -> None:
    save(tmp_path, booster, _card())
    (tmp_path / missing).unlink()
    with pytest.raises(Rejected, match="cannot be read"):
        Student.load(tmp_path, FEATURE_NAMES)


def test_a_model_that_is_not_lightgbms_is_rejected(tmp_path: Path, booster: Any) -> None:
    class Other:
        def model_to_string(self) -> str:
            return "not a tree\n"

    save(tmp_path, Other(), _card())
    with pytest.raises(Rejected, match="cannot be read"):
        Student.load(tmp_path, FEATURE_NAMES)
