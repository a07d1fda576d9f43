"""What every test may rely on: where recorded data are, and that a skip for want of them is a failure where they must be there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from src import kernel_cache

kernel_cache.use()


@pytest.fixture(scope="session")
def recorded_data() -> Path:
    """The folder named by RECORDED_DATA. Tests skip without it; with RECORDED_DATA_REQUIRED=1 they fail."""
    folder = os.environ.get("RECORDED_DATA", "")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = f"RECORDED_DATA={folder!r} is not a folder of recorded market data"
    if os.environ.get("RECORDED_DATA_REQUIRED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test of recorded data that skips by itself fails too where the data must be there."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and "RECORDED_DATA" in str(report.longrepr) and os.environ.get("RECORDED_DATA_REQUIRED") == "1":
        report.outcome = "failed"
