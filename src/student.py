"""The trained model: P(this setup reaches its target before its stop), calibrated, with the card that says what it is worth.

Files of one model, beside each other: ``model.txt`` (LightGBM's own text) and ``model.json`` (the card). No pickle: neither can run code.

Invariants
  * A model is used only with the very feature list it was trained on (names, order and version, by hash) and only if its text is the one
    its card speaks of (sha256). Anything else is ``Rejected`` with the reason, and the teacher goes on.
  * Probabilities lie strictly between 0 and 1 and never fall when the raw score rises.
  * Only a promoted model with a positive out-of-sample expectation after costs may trade live.

Nothing but this module imports LightGBM, and nothing but the Brain (and the trainer) imports this module.
"""

from __future__ import annotations

import ctypes
import hashlib
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import numpy.typing as npt

from src.error_handler import Rejected, info, warn
from src.features import FEATURE_NAMES, feature_hash

Floats = npt.NDArray[np.float64]
MODEL_FILE, CARD_FILE = "model.txt", "model.json"
P_MIN, P_MAX = 0.001, 0.999
CARD_BYTES_MAX, MODEL_BYTES_MAX = 1 << 20, 1 << 26


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From LightGBM's probability to a calibrated one. ``isotonic``: straight lines between the knots (x, y), flat outside. ``platt``:
    1 / (1 + exp(-(a * logit + b))). ``none``: as it is."""

    kind: str = "none"
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    a: float = 1.0
    b: float = 0.0


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What a model says of itself. ``expectation_r``: mean net profit out of sample, in stop distances after costs, of the setups it
    would have taken; ``trades``: how many those were. Times in ms."""

    features: tuple[str, ...]
    feature_hash: str
    model_sha256: str
    calibration: Calibration = Calibration()
    promoted: bool = False
    expectation_r: float = 0.0
    trades: int = 0
    auc: float = 0.5
    trained_from_ms: int = 0
    trained_to_ms: int = 0
    tested_from_ms: int = 0
    tested_to_ms: int = 0
    setup_ms: int = 0
    note: str = ""


class _Log:
    """Where LightGBM talks to: it would print otherwise."""

    def info(self, message: str) -> None:
        info(f"LightGBM: {message.strip()}")

    def warning(self, message: str) -> None:
        warn(f"LightGBM: {message.strip()}")


lightgbm.register_logger(_Log())


class _OneRow:
    """LightGBM's own path for a single row, without the Python around it: 2 µs instead of 20. Needs no more than its C interface, but
    reaches for the library and the handle through names that are not promised; ``make`` gives None where they are gone."""

    __slots__ = ("__weakref__", "_arguments", "_booster", "_call", "_out", "_row")

    def __init__(self, library: Any, config: Any, booster: Any, columns: int) -> None:
        self._booster = booster
        self._row, self._out, length = np.zeros(columns), np.zeros(1), np.zeros(1, np.int64)
        pointer = ctypes.c_void_p
        self._call = library.LGBM_BoosterPredictForMatSingleRowFast
        self._arguments = (config, pointer(self._row.ctypes.data), pointer(length.ctypes.data), pointer(self._out.ctypes.data), length)
        weakref.finalize(self, library.LGBM_FastConfigFree, config)

    @classmethod
    def make(cls, booster: Any, columns: int) -> _OneRow | None:
        library, handle = getattr(lightgbm.basic, "_LIB", None), getattr(booster, "_handle", None)
        if library is None or handle is None or not hasattr(library, "LGBM_BoosterPredictForMatSingleRowFastInit"):
            return None
        config = ctypes.c_void_p()
        normal, float64, all_trees = 0, 1, -1
        failed = library.LGBM_BoosterPredictForMatSingleRowFastInit(
            handle, ctypes.c_int(normal), ctypes.c_int(0), ctypes.c_int(all_trees), ctypes.c_int(float64), ctypes.c_int32(columns),
            ctypes.c_char_p(b"num_threads=1"), ctypes.byref(config))
        return None if failed else cls(library, config, booster, columns)

    def __call__(self, row: Floats) -> float | None:
        """LightGBM's probability, or None when it did not answer."""
        self._row[:] = row
        return None if self._call(*self._arguments[:4]) else float(self._out[0])


class Student:
    """A loaded model. ``source``: ``student:`` and 8 hexadecimal digits of the model's text. Not thread-safe."""

    __slots__ = ("_booster", "_knots", "_one_row", "card", "source")

    def __init__(self, booster: Any, card: Card) -> None:
        self._booster = booster
        self.card = card
        self.source = f"student:{card.model_sha256[:8]}"
        self._one_row = _OneRow.make(booster, len(card.features))
        self._knots = (np.asarray(card.calibration.x, np.float64), np.asarray(card.calibration.y, np.float64))

    @classmethod
    def load(cls, models_dir: str | Path, feature_names: tuple[str, ...] = FEATURE_NAMES) -> Student | None:
        """The model of that folder; None where there is none. Rejected: there is one, but it is not for these features, does not match
        its card, or cannot be read."""
        folder = Path(models_dir)
        if not (folder / CARD_FILE).exists() and not (folder / MODEL_FILE).exists():
            return None
        try:
            text = _read(folder / MODEL_FILE, MODEL_BYTES_MAX)
            card = msgspec.json.decode(_read(folder / CARD_FILE, CARD_BYTES_MAX), type=Card)
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise Rejected(f"the model in {folder} cannot be read: {error}") from error
        if reason := _mismatch(card, text, feature_names):
            raise Rejected(f"the model in {folder} is not used: {reason}")
        try:
            booster = lightgbm.Booster(model_str=text.decode())
        except (lightgbm.basic.LightGBMError, UnicodeDecodeError, ValueError) as error:
            raise Rejected(f"the model in {folder} cannot be read: {error}") from error
        if booster.num_feature() != len(feature_names):
            raise Rejected(f"the model in {folder} is not used: it takes {booster.num_feature()} features, not {len(feature_names)}")
        return cls(booster, card)

    @property
    def promoted(self) -> bool:
        return self.card.promoted

    @property
    def may_trade_live(self) -> bool:
        return self.card.promoted and self.card.expectation_r > 0.0

    def predict(self, features: Floats) -> Floats:
        """P for each row of an (n, features) matrix, calibrated, in P_MIN .. P_MAX. NaN means not known."""
        if len(features) == 0:
            return np.empty(0)
        raw = self._one_row(features[0]) if len(features) == 1 and self._one_row is not None else None
        if raw is None:
            many: Floats = np.clip(self._calibrate(np.asarray(self._booster.predict(features, num_threads=1), np.float64)), P_MIN, P_MAX)
            return many
        return np.array([min(P_MAX, max(P_MIN, float(self._calibrate(raw))))])

    def _calibrate(self, raw: Any) -> Any:
        calibration = self.card.calibration
        if calibration.kind == "isotonic":
            return np.interp(raw, *self._knots)
        if calibration.kind == "platt":
            inside = np.clip(raw, 1e-9, 1.0 - 1e-9)
            return 1.0 / (1.0 + np.exp(-(calibration.a * np.log(inside / (1.0 - inside)) + calibration.b)))
        return raw


def save(models_dir: str | Path, booster: Any, card: Card) -> Card:
    """Write model and card, each whole or not at all; returns the card with the hashes filled in."""
    folder = Path(models_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = booster.model_to_string().encode()
    card = msgspec.structs.replace(card, model_sha256=hashlib.sha256(text).hexdigest(), feature_hash=feature_hash(card.features))
    for name, content in ((MODEL_FILE, text), (CARD_FILE, msgspec.json.format(msgspec.json.encode(card), indent=1))):
        part = folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)
    return card


def _read(path: Path, bytes_max: int) -> bytes:
    if path.stat().st_size > bytes_max:
        raise ValueError(f"{path.name} is larger than {bytes_max} bytes")
    return path.read_bytes()


def _mismatch(card: Card, text: bytes, names: tuple[str, ...]) -> str:
    """Why this model must not be used here; empty when it may."""
    if card.features != names or card.feature_hash != feature_hash(names):
        unknown, missing = sorted(set(card.features) - set(names)), sorted(set(names) - set(card.features))
        return f"it was trained on other features (unknown here: {unknown}, missing there: {missing}, hash {card.feature_hash})"
    if hashlib.sha256(text).hexdigest() != card.model_sha256:
        return "its text is not the one its card speaks of"
    return _calibration_fault(card.calibration)


def _calibration_fault(calibration: Calibration) -> str:
    x, y = calibration.x, calibration.y
    if calibration.kind == "isotonic":
        rising = all(a < b for a, b in pairwise(x)) and all(a <= b for a, b in pairwise(y))
        if len(x) < 2 or len(x) != len(y) or not rising or not all(0.0 <= p <= 1.0 for p in y):
            return "its isotonic calibration has no rising knots"
    elif calibration.kind == "platt":
        if not calibration.a > 0.0:
            return "its Platt calibration does not rise"
    elif calibration.kind != "none":
        return f"its calibration {calibration.kind!r} is unknown"
    return ""
