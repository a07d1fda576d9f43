"""The archive on loopback, with real zip files: what is fetched is verified, stored once and whole, and nothing stops it for good."""

from __future__ import annotations

import asyncio
import io
import re
import signal
import ssl
import sys
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from src.archive import ArchiveFile, files_for, rows_of
from src.clock import parse_utc
from src.download import BASE_URL, Options, Patience, command, download, options_of, report
from src.error_handler import Fatal, Retryable
from src.store import Series, Store, month_bounds

TRADES, BARS = Series("aggTrades", "BTCUSDT"), Series("klines", "BTCUSDT", "1m")
FUNDING = Series("fundingRate", "BTCUSDT")
QUICK = Patience(tries=3, connect_s=2.0, read_s=0.5, backoff_s=(0.01, 0.02))
DAY, MINUTE = 86_400_000, 60_000
DEADLINE_S = 20.0
ROOT = Path(__file__).parent.parent
HEADS = {
    "aggTrades": "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker",
    "klines": "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore",
    "fundingRate": "calc_time,funding_interval_hours,last_funding_rate",
}  # fmt: skip
HEADS["markPriceKlines"] = HEADS["klines"]


# --- what the archive has --------------------------------------------------------------------------------------------------------------

def span_of(file: ArchiveFile) -> tuple[int, int]:
    if file.is_month:
        return month_bounds(file.month)
    return parse_utc(file.period), parse_utc(file.period) + DAY


def lines_of(file: ArchiveFile, *, header: bool = True, factor: int = 1, flag: str = "true") -> list[str]:
    """A trade each hour, a candle each minute, a settlement each 8 hours; ids are hours since 1970."""
    start, end = span_of(file)
    kind = file.series.kind
    if kind == "aggTrades":
        rows = [f"{t // 3_600_000},100.5,0.250,{t // 1800_000},{t // 1800_000 + 1},{t * factor},{flag}" for t in range(start, end, 3_600_000)]
    elif kind == "fundingRate":
        rows = [f"{t + 3},8,0.0001" for t in range(start, end, 8 * 3_600_000)]
    else:
        rows = [f"{t * factor},1.5,2.5,0.5,2.0,10,{(t + MINUTE) * factor - 1},15.5,7,4,6.5,0" for t in range(start, end, MINUTE)]
    return [HEADS[kind], *rows] if header else rows


def zipped(file: ArchiveFile, lines: list[str]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as outer:
        outer.writestr(file.name.replace(".zip", ".csv"), "\n".join(lines) + "\n")
    return memory.getvalue()


Trouble = Callable[["Archive", web.Request, bytes], Any]


class Archive:
    """``files``: what is there, by path. ``trouble``: path → what to do instead, once for each item of the list."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.checksums: dict[str, str] = {}
        self.trouble: dict[str, list[Trouble]] = {}
        self.asked: Counter[str] = Counter()
        self.busy = self.busiest = 0
        self.news = asyncio.Event()
        self.url = ""

    def add(self, *files: ArchiveFile, **how: Any) -> None:
        for file in files:
            self.put(file, zipped(file, lines_of(file, **how)))

    def put(self, file: ArchiveFile, body: bytes) -> None:
        self.files[file.path] = body
        self.checksums[file.path] = f"{sha256(body).hexdigest()}  {file.name}\n"

    async def start(self, tls: ssl.SSLContext | None) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        self.asked[path] += 1
        self.news.set()
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await asyncio.sleep(0)
            zip_path = path.removesuffix(".CHECKSUM")
            if self.trouble.get(path):
                return await self.trouble[path].pop(0)(self, request, self.files.get(zip_path, b""))
            if path in self.files:
                return web.Response(body=self.files[path])
            if path != zip_path and zip_path in self.checksums:
                return web.Response(text=self.checksums[zip_path])
            return web.Response(status=404)
        finally:
            self.busy -= 1

    def zips(self) -> int:
        return sum(count for path, count in self.asked.items() if path.endswith(".zip"))


@asynccontextmanager
async def archive(tls: ssl.SSLContext | None = None) -> AsyncIterator[Archive]:
    one = Archive()
    await one.start(tls)
    try:
        yield one
    finally:
        await one.stop()


def status(code: int) -> Trouble:
    async def answer(_: Archive, request: web.Request, body: bytes) -> web.StreamResponse:
        return web.Response(status=code)

    return answer


async def truncated(_: Archive, request: web.Request, body: bytes) -> web.StreamResponse:
    """The length of the whole, half of it, and the connection is closed."""
    response = web.StreamResponse(headers={"Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[:len(body) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


async def cut_short(_: Archive, request: web.Request, body: bytes) -> web.StreamResponse:
    """Half of it, in good order: only the checksum can tell."""
    return web.Response(body=body[:len(body) // 2])


async def reset(_: Archive, request: web.Request, body: bytes) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def stalled(_: Archive, request: web.Request, body: bytes) -> web.StreamResponse:
    """Some bytes, and then nothing for longer than anyone waits."""
    response = web.StreamResponse(headers={"Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[:100])
    await asyncio.sleep(DEADLINE_S)
    return response


async def slow(_: Archive, request: web.Request, body: bytes) -> web.StreamResponse:
    """Longer than the patience for one byte, but bytes keep coming."""
    response = web.StreamResponse(headers={"Content-Length": str(len(body))})
    await response.prepare(request)
    for piece in range(8):
        await response.write(body[len(body) * piece // 8:len(body) * (piece + 1) // 8])
        await asyncio.sleep(0.1)
    return response


def options(folder: Path, url: str, *series: Series, first: str = "2025-01-30", after: str = "2025-02-02", **more: Any) -> Options:
    more = {"patience": QUICK} | more
    return Options(series or (TRADES,), parse_utc(first), parse_utc(after), folder / "market", url, **more)


def stored(folder: Path, series: Series, column: str) -> list[Any]:
    return [value for chunk in Store(folder / "market").read([series], 0, 2**53) for value in chunk.columns[column].tolist()]


def hours(first: str, after: str) -> list[int]:
    return list(range(parse_utc(first) // 3_600_000, parse_utc(after) // 3_600_000))


def quiet(line: str) -> None:
    """Says nothing."""


# --- which files -----------------------------------------------------------------------------------------------------------------------

def test_whole_months_are_fetched_as_months_and_the_rest_as_days() -> None:
    periods = [file.period for file in files_for(TRADES, parse_utc("2024-12-30"), parse_utc("2025-03-03"))]
    assert periods == ["2024-12-30", "2024-12-31", "2025-01", "2025-02", "2025-03-01", "2025-03-02"]
    assert [file.period for file in files_for(FUNDING, parse_utc("2025-01-05"), parse_utc("2025-02-02"))] == ["2025-01", "2025-02"]


def test_paths_are_those_of_the_archive() -> None:
    paths = [ArchiveFile(series, period).path for series, period in (
        (TRADES, "2025-01"), (BARS, "2026-10-01"), (FUNDING, "2026-09"), (Series("markPriceKlines", "ETHUSDT", "1h"), "2025-01-31"))]  # fmt: skip
    assert paths == [
        "data/futures/um/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-01.zip",
        "data/futures/um/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2026-10-01.zip",
        "data/futures/um/monthly/fundingRate/BTCUSDT/BTCUSDT-fundingRate-2026-09.zip",
        "data/futures/um/daily/markPriceKlines/ETHUSDT/1h/ETHUSDT-1h-2025-01-31.zip"]


def test_a_month_is_known_by_itself_or_by_all_of_its_days() -> None:
    month, day = ArchiveFile(TRADES, "2025-02"), ArchiveFile(TRADES, "2025-02-07")
    days = {one.name for one in month.days()}
    assert len(days) == 28 and month.is_in(days) and day.is_in({month.name}) and day.is_in({day.name})
    assert not month.is_in(days - {day.name}) and not day.is_in(set()) and not ArchiveFile(FUNDING, "2025-02").is_in(set())


# --- what is in a file -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", [{}, {"header": False}, {"factor": 1000}, {"header": False, "factor": 1000, "flag": "True"}])
@pytest.mark.parametrize("series", [TRADES, BARS])
def test_headers_units_and_flags_of_all_ages_read_alike(tmp_path: Path, series: Series, how: dict[str, Any]) -> None:
    file = ArchiveFile(series, "2025-01-31")
    lines = lines_of(file, **({k: v for k, v in how.items() if k != "flag"} if series is BARS else how))
    path = tmp_path / file.name
    path.write_bytes(zipped(file, lines))
    (table,) = rows_of(path, series)
    row = table.slice(1, 1).to_pylist()[0]
    start = parse_utc("2025-01-31")
    if series is TRADES:
        assert row["agg_id"] == start // 3_600_000 + 1 and row["is_buyer_maker"] is True and row["price"] == 100.5 and row["qty"] == 0.25
        assert table["transact_time"].cast("int64").to_pylist() == list(range(start, start + DAY, 3_600_000))
    else:
        assert row == row | {"open": 1.5, "high": 2.5, "low": 0.5, "close": 2.0, "volume": 10, "quote_volume": 15.5, "trades": 7,
                             "taker_buy_volume": 4, "taker_buy_quote_volume": 6.5}  # fmt: skip
        assert table["open_time"].cast("int64").to_pylist() == list(range(start, start + DAY, MINUTE))


def test_rows_near_their_place_are_put_in_order_across_blocks(tmp_path: Path) -> None:
    file, n = ArchiveFile(TRADES, "2025-01-31"), 250_000
    start = parse_utc("2025-01-31")
    order = np.argsort(np.arange(n) + np.random.default_rng(1).integers(0, 900, n), kind="stable")
    path = tmp_path / file.name
    path.write_bytes(zipped(file, [f"{i},100.5,0.250,{i},{i},{start + i},true" for i in order.tolist()]))
    tables = list(rows_of(path, TRADES))
    assert len(tables) > 1 and [i for t in tables for i in t["agg_id"].to_pylist()] == list(range(n))


@pytest.mark.parametrize(("lines", "why"), [
    (["1,2,3"], "column"), (["agg_trade_id,price", "1,2"], "no column transact_time"), (["1,abc,0.250,1,1,1738281600000,true"], "abc"),
    (["1,100.5,0.250,1,1,,true"], "time"),
])
def test_a_file_of_another_shape_is_refused_by_name(tmp_path: Path, lines: list[str], why: str) -> None:
    file = ArchiveFile(TRADES, "2025-01-31")
    path = tmp_path / file.name
    path.write_bytes(zipped(file, lines))
    with pytest.raises(ValueError, match=why):
        list(rows_of(path, TRADES))


def damaged(body: bytes, place: int, value: int, *, central: int) -> bytes:
    """The same zip with two bytes of its local header changed, and in its central directory."""
    found = bytearray(body)
    at = found.find(b"PK\x01\x02") + central
    found[place:place + 2] = found[at:at + 2] = value.to_bytes(2, "little")
    return bytes(found)


FILE = ArchiveFile(TRADES, "2025-01-31")
SOUND = zipped(FILE, lines_of(FILE))
BODY_AT = 30 + len(FILE.name)
BROKEN_ZIPS = {
    "a broken stream": SOUND[:BODY_AT] + b"\xff" * 40 + SOUND[BODY_AT + 40:],
    "encrypted": damaged(SOUND, 6, 1, central=8),
    "of an unknown method": damaged(SOUND, 8, 99, central=10),
    "of a later version": damaged(SOUND, 4, 99, central=6),
    "cut off": SOUND[:-30],
}


@pytest.mark.parametrize("body", BROKEN_ZIPS.values(), ids=BROKEN_ZIPS.keys())
def test_a_zip_that_cannot_be_read_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / FILE.name).write_bytes(body)
    with pytest.raises(ValueError, match=FILE.name):
        list(rows_of(tmp_path / FILE.name, TRADES))


def test_a_line_without_an_end_is_not_taken_into_memory(tmp_path: Path) -> None:
    for begin in (b"a,", b"\0\0", b"1,"):
        with zipfile.ZipFile(tmp_path / FILE.name, "w", zipfile.ZIP_DEFLATED) as outer:
            outer.writestr("x.csv", begin * (64 << 20))
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"no column|line is longer"):
            list(rows_of(tmp_path / FILE.name, TRADES))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20, begin


READ_AND_END = """
import sys
from contextlib import suppress
from pathlib import Path
from src.archive import rows_of
from src.store import Series
with suppress(ValueError):
    sys.exit(f"{len(list(rows_of(Path(sys.argv[1]), Series('aggTrades', 'BTCUSDT'))))} pieces")
"""


async def test_nothing_reads_on_after_an_error(tmp_path: Path) -> None:
    """Arrow's own reading of a Python file goes on in a thread, and takes the process with it when the file or Python ends."""
    with zipfile.ZipFile(tmp_path / FILE.name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as outer:
        outer.writestr("x.csv", b"1," * (32 << 20))
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", READ_AND_END, str(tmp_path / FILE.name), stderr=-1, cwd=ROOT)
    _, said = await child.communicate()
    assert (child.returncode, said) == (0, b"")


def test_lines_are_cut_where_they_end_wherever_the_blocks_do(tmp_path: Path) -> None:
    rows = [f"{i},100.5,0.250,{i},{i},{1_738_281_600_000 + i},true" for i in range(500_000)]
    for text in ("\n".join(rows), "\r\n".join(rows) + "\r\n", "\n".join(rows) + "\n" * 9_000_000):
        with zipfile.ZipFile(tmp_path / FILE.name, "w") as outer:
            outer.writestr("x.csv", text)
        found = [identity for table in rows_of(tmp_path / FILE.name, TRADES) for identity in table["agg_id"].to_pylist()]
        assert found == list(range(500_000))


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    file = ArchiveFile(TRADES, "2025-01-31")
    for text in (HEADS["aggTrades"] + "\n", ""):
        with zipfile.ZipFile(tmp_path / file.name, "w") as outer:
            outer.writestr("x.csv", text)
        assert list(rows_of(tmp_path / file.name, TRADES)) == []


# --- fetching --------------------------------------------------------------------------------------------------------------------------

async def test_months_and_days_of_many_series_are_stored(tmp_path: Path) -> None:
    eth, lines = Series("aggTrades", "ETHUSDT"), []
    async with archive() as a:
        for one in (TRADES, eth):
            a.add(*files_for(one, parse_utc("2025-01-30"), parse_utc("2025-03-01")))
        summary = await download(options(tmp_path, a.url, TRADES, eth, after="2025-03-01"), lines.append)
    assert (summary.fetched, summary.failed, summary.missing) == (6, [], []) and len(lines) == 6
    assert stored(tmp_path, TRADES, "agg_id") == stored(tmp_path, eth, "agg_id") == hours("2025-01-30", "2025-03-01")
    assert not (tmp_path / "market/.incoming").exists()
    found = list(report(options(tmp_path, a.url, TRADES, eth), summary))
    assert found[0].startswith("6 files fetched") and all(line.endswith("no gaps") for line in found[1:])


@pytest.mark.parametrize("series", [BARS, FUNDING, Series("markPriceKlines", "BTCUSDT", "1m")])
async def test_every_kind_is_stored(tmp_path: Path, series: Series) -> None:
    async with archive() as a:
        a.add(*files_for(series, parse_utc("2025-01-31"), parse_utc("2025-02-02")))
        summary = await download(options(tmp_path, a.url, series, first="2025-01-31"), quiet)
    assert not summary.failed and not summary.missing
    expected = {BARS: 2 * 1440, FUNDING: 59 * 3}.get(series, 2 * 1440)
    assert summary.rows == expected == Store(tmp_path / "market").rows(series) and list(Store(tmp_path / "market").gaps(series)) == []


async def test_what_is_stored_is_not_asked_for_again(tmp_path: Path) -> None:
    async with archive() as a:
        a.add(*files_for(TRADES, parse_utc("2025-01-01"), parse_utc("2025-02-02")))
        await download(options(tmp_path, a.url, first="2025-01-01"), quiet)
        asked = a.asked.copy()
        again = await download(options(tmp_path, a.url, first="2025-01-01"), quiet)
        inner = await download(options(tmp_path, a.url, first="2025-01-07", after="2025-01-09"), quiet)
        assert a.asked == asked and (again.stored_before, inner.stored_before) == (2, 2) and again.fetched == inner.fetched == 0


async def test_days_and_then_their_month_leave_every_row_once(tmp_path: Path) -> None:
    async with archive() as a:
        a.add(*files_for(TRADES, parse_utc("2025-02-05"), parse_utc("2025-02-08")), ArchiveFile(TRADES, "2025-02"))
        await download(options(tmp_path, a.url, first="2025-02-05", after="2025-02-08"), quiet)
        summary = await download(options(tmp_path, a.url, first="2025-02-01", after="2025-03-01"), quiet)
    assert summary.duplicates == 72 and stored(tmp_path, TRADES, "agg_id") == hours("2025-02-01", "2025-03-01")


async def test_a_month_that_is_not_put_together_yet_is_had_by_its_days(tmp_path: Path) -> None:
    async with archive() as a:
        a.add(*files_for(TRADES, parse_utc("2025-02-01"), parse_utc("2025-02-11")))
        summary = await download(options(tmp_path, a.url, first="2025-02-01", after="2025-03-01"), quiet)
        assert [file.period for file in sorted(summary.missing)] == [f"2025-02-{day}" for day in range(11, 29)] and not summary.failed
        assert stored(tmp_path, TRADES, "agg_id") == hours("2025-02-01", "2025-02-11")
        a.add(ArchiveFile(TRADES, "2025-02"))
        await download(options(tmp_path, a.url, first="2025-02-01", after="2025-03-01"), quiet)
    assert stored(tmp_path, TRADES, "agg_id") == hours("2025-02-01", "2025-03-01")


async def test_days_of_such_a_month_are_not_fetched_again_while_it_is_not_put_together(tmp_path: Path) -> None:
    async with archive() as a:
        days = files_for(TRADES, parse_utc("2025-02-01"), parse_utc("2025-02-11"))
        a.add(*days[:9])
        asked = options(tmp_path, a.url, first="2025-02-01", after="2025-03-01")
        await download(asked, quiet)
        zips = a.zips()
        a.add(days[9])
        summary = await download(asked, quiet)
        assert a.zips() - zips == 1 + 19  # the day, and for the month and the days that are not there a HEAD each
    assert (summary.fetched, summary.stored_before, len(summary.missing)) == (1, 9, 18)
    assert stored(tmp_path, TRADES, "agg_id") == hours("2025-02-01", "2025-02-11")


async def test_what_the_archive_does_not_have_is_listed_and_stops_nothing(tmp_path: Path) -> None:
    nobody = Series("aggTrades", "NOBODYUSDT")
    async with archive() as a:
        a.add(ArchiveFile(TRADES, "2025-01-30"), ArchiveFile(TRADES, "2025-02-01"))
        asked = options(tmp_path, a.url, TRADES, nobody, first="2025-01-30", after="2025-03-01")
        summary = await download(asked, quiet)
    assert [file.name for file in sorted(summary.missing) if file.series == nobody][-1] == "NOBODYUSDT-aggTrades-2025-02.zip"
    assert "2025-01-31" in [file.period for file in summary.missing] and not summary.failed
    lines = list(report(asked, summary))
    assert any(line.startswith("not in the archive: ") and "BTCUSDT-aggTrades-2025-01-31.zip" in line for line in lines)
    assert any(line.startswith("aggTrades/BTCUSDT: 48 rows in the store; 24 missing: 24 between 2025-01-30T23") for line in lines)
    assert any(line == "aggTrades/NOBODYUSDT: nothing is stored; is the name right?" for line in lines)


@pytest.mark.parametrize("trouble", [truncated, cut_short, reset, stalled, slow, status(503), status(429), status(500)],
                         ids=["truncated", "cut_short", "reset", "stalled", "slow", "503", "429", "500"])
async def test_trouble_that_passes_costs_only_time(tmp_path: Path, trouble: Trouble) -> None:
    async with archive() as a:
        files = files_for(BARS, parse_utc("2025-01-30"), parse_utc("2025-02-02"))
        a.add(*files)
        a.trouble = {files[1].path: [trouble], f"{files[2].path}.CHECKSUM": [trouble]}
        async with asyncio.timeout(DEADLINE_S):
            summary = await download(options(tmp_path, a.url, BARS), quiet)
        assert a.asked[files[1].path] == (1 if trouble is slow else 2)
    assert not summary.failed and summary.fetched == 3 and len(stored(tmp_path, BARS, "open_time")) == 3 * 1440


@pytest.mark.parametrize(("trouble", "why"), [(truncated, "given up after 3 tries"), (cut_short, "the checksum says"), (status(503), "HTTP 503"),
                                              (status(403), "HTTP 403"), (reset, "given up after 3 tries")])
async def test_trouble_that_stays_costs_one_file_and_leaves_no_half_of_it(tmp_path: Path, trouble: Trouble, why: str) -> None:
    async with archive() as a:
        files = files_for(TRADES, parse_utc("2025-01-30"), parse_utc("2025-02-02"))
        a.add(*files)
        a.trouble = {files[1].path: [trouble] * 9}
        summary = await download(options(tmp_path, a.url), quiet)
        assert [file for file, _ in summary.failed] == [files[1]] and why in summary.failed[0][1]
        assert stored(tmp_path, TRADES, "agg_id") == hours("2025-01-30", "2025-01-31") + hours("2025-02-01", "2025-02-02")
        assert not [p for p in (tmp_path / "market").rglob("*") if p.suffix in (".part", ".zip")]
        a.trouble = {}
        before = a.zips()
        again = await download(options(tmp_path, a.url), quiet)
        assert again.fetched == a.zips() - before == 1 and stored(tmp_path, TRADES, "agg_id") == hours("2025-01-30", "2025-02-02")


async def test_a_checksum_that_is_wrong_or_not_there_is_a_failure(tmp_path: Path) -> None:
    async with archive() as a:
        files = files_for(TRADES, parse_utc("2025-01-30"), parse_utc("2025-02-02"))
        a.add(*files)
        a.checksums[files[0].path] = f"{'0' * 64}  {files[0].name}\n"
        a.checksums[files[1].path] = f"{'0' * 64}  another.zip\n"
        del a.checksums[files[2].path]
        summary = await download(options(tmp_path, a.url), quiet)
    why = {file.period: text for file, text in summary.failed}
    assert "the checksum says 000000000000" in why["2025-01-30"] and "does not read" in why["2025-01-31"] and "no checksum" in why["2025-02-01"]
    assert Store(tmp_path / "market").series() == []


async def test_one_file_of_another_shape_does_not_cost_its_month(tmp_path: Path) -> None:
    async with archive() as a:
        files = files_for(TRADES, parse_utc("2025-01-28"), parse_utc("2025-02-01"))
        a.add(*files)
        a.put(files[1], zipped(files[1], ["not,what,it,should,be"]))
        a.put(files[2], b"no zip at all")
        summary = await download(options(tmp_path, a.url, first="2025-01-28", after="2025-02-01"), quiet)
    assert sorted(file.period for file, _ in summary.failed) == ["2025-01-29", "2025-01-30"]
    assert stored(tmp_path, TRADES, "agg_id") == hours("2025-01-28", "2025-01-29") + hours("2025-01-31", "2025-02-01")


def crossing(file: ArchiveFile, *rest: str) -> bytes:
    """A file whose last trade is of the next month, a few ms after midnight, and what comes then."""
    after = month_bounds(file.month)[1]
    return zipped(file, [*lines_of(file), f"{after // 3_600_000},100.5,0.250,1,1,{after + 5},true", *rest])


async def test_a_trade_beyond_the_months_end_is_kept_in_its_own_month(tmp_path: Path) -> None:
    async with archive() as a:
        file = ArchiveFile(TRADES, "2025-01")
        a.put(file, crossing(file))
        summary = await download(options(tmp_path, a.url, first="2025-01-01", after="2025-02-01"), quiet)
    store = Store(tmp_path / "market")
    assert not summary.failed and stored(tmp_path, TRADES, "agg_id") == [*hours("2025-01-01", "2025-02-01"), parse_utc("2025-02-01") // 3_600_000]
    assert store.months(TRADES) == ["2025-01", "2025-02"]
    assert not ArchiveFile(TRADES, "2025-02").is_in(store.sources(TRADES, "2025-02"))


@pytest.mark.parametrize("when", ["2025-01-01", "1970-01-01", "2025-06-01", "9999-12-31"])
async def test_a_file_that_is_wrong_after_the_months_end_is_fetched_again_and_not_held_for_stored(tmp_path: Path, when: str) -> None:
    async with archive() as a:
        files = files_for(TRADES, parse_utc("2025-01-30"), parse_utc("2025-02-01"))
        a.add(*files)
        last = f"7,100.5,0.250,1,1,{parse_utc(when)},true"
        many = [f"{i},100.5,0.250,1,1,{month_bounds('2025-01')[1] + 7 + i},true" for i in range(5_000)]
        a.put(files[1], crossing(files[1], *many, last))
        asked = options(tmp_path, a.url, first="2025-01-30", after="2025-02-01")
        summary = await download(asked, quiet)
        assert [file for file, _ in summary.failed] == [files[1]] and stored(tmp_path, TRADES, "agg_id") == hours("2025-01-30", "2025-01-31")
        assert list(Store(tmp_path / "market").sources(TRADES, "2025-01")) == [files[0].name]
        a.add(files[1])
        again = await download(asked, quiet)
    assert again.fetched == 1 and stored(tmp_path, TRADES, "agg_id") == hours("2025-01-30", "2025-02-01")


@pytest.mark.parametrize("period", ["2024-11", "2025-03", "2024-01"])
async def test_a_file_of_another_time_is_refused(tmp_path: Path, period: str) -> None:
    async with archive() as a:
        file = ArchiveFile(TRADES, "2025-01")
        a.put(file, zipped(file, lines_of(ArchiveFile(TRADES, period))))
        summary = await download(options(tmp_path, a.url, first="2025-01-01", after="2025-02-01"), quiet)
    assert f"holds rows of {period}-01, and should hold those of 2025-01" in summary.failed[0][1]
    assert Store(tmp_path / "market").series() == []


async def test_a_checksum_may_come_in_pieces(tmp_path: Path) -> None:
    async def in_pieces(a: Archive, request: web.Request, _: bytes) -> web.StreamResponse:
        text = a.checksums[request.match_info["path"].removesuffix(".CHECKSUM")].encode()
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (text[:70], text[70:]):
            await response.write(piece)
            await asyncio.sleep(0.02)
        return response

    async with archive() as a:
        file = ArchiveFile(TRADES, "2025-01-30")
        a.add(file)
        a.trouble = {f"{file.path}.CHECKSUM": [in_pieces] * 9}
        summary = await download(options(tmp_path, a.url, after="2025-01-31"), quiet)
        assert (summary.fetched, summary.failed, a.asked[f"{file.path}.CHECKSUM"]) == (1, [], 1)


async def test_a_server_in_trouble_is_not_an_archive_without_the_file(tmp_path: Path) -> None:
    async with archive() as a:
        file = ArchiveFile(TRADES, "2025-01-30")
        a.trouble = {file.path: [status(503)] * 9}
        summary = await download(options(tmp_path, a.url, after="2025-01-31"), quiet)
    assert summary.missing == [] and [why for _, why in summary.failed] == ["given up after 3 tries: HTTP 503"]


async def test_requests_are_bounded_and_side_by_side(tmp_path: Path) -> None:
    async with archive() as a:
        a.add(*files_for(TRADES, parse_utc("2025-01-02"), parse_utc("2025-01-31")))
        await download(options(tmp_path, a.url, first="2025-01-02", after="2025-01-31", jobs=3), quiet)
        assert 2 <= a.busiest <= 3


async def test_nobody_there_and_two_at_once_are_said(tmp_path: Path) -> None:
    async with archive() as a:
        url = a.url
        with Store(tmp_path / "market").writing(), pytest.raises(Fatal, match="another process is writing"):
            await download(options(tmp_path, url), quiet)
    with pytest.raises(Retryable, match=r"--base-url http://127\..* nobody answers"):
        await download(options(tmp_path, url), quiet)


# --- stopped on the way ----------------------------------------------------------------------------------------------------------------

async def process(folder: Path, url: str, *more: str, limit: int = 0) -> asyncio.subprocess.Process:
    words = ["download", "--symbols", "btcusdt", "--from", "2025-01-30", "--to", "2025-02-03", "--kind", "aggTrades", "--base-url", url,
             "--into", str(folder / "market"), "--jobs", "1", *more]  # fmt: skip
    bound = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))" if limit else ""
    interrupts = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # as from a terminal, also where whoever runs the tests ignores it
    code = f"import signal, sys, resource\nfrom src.main import main\n{bound}\n{interrupts}\nsys.exit(main(sys.argv[1:]))"
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, *words, stdout=-1, stderr=-1, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_stopped_in_the_middle_it_goes_on_and_fetches_nothing_twice(tmp_path: Path, number: signal.Signals) -> None:
    async with archive() as a:
        files = files_for(TRADES, parse_utc("2025-01-30"), parse_utc("2025-02-03"))
        a.add(*files)
        a.trouble = {files[3].path: [stalled]}
        async with asyncio.timeout(DEADLINE_S):
            first = await process(tmp_path, a.url)
            while not a.asked[files[3].path]:
                a.news.clear()
                await a.news.wait()
            first.send_signal(number)
            _, said = await first.communicate()
        assert first.returncode == (-9 if number == signal.SIGKILL else 130)
        if number == signal.SIGINT:
            assert b"goes on" in said and b"Traceback" not in said
            assert not list((tmp_path / "market").rglob("*.part"))
        assert stored(tmp_path, TRADES, "agg_id") == hours("2025-01-30", "2025-02-01")  # January was whole; February waits for its second day
        async with asyncio.timeout(DEADLINE_S):
            second = await process(tmp_path, a.url)
            said, _ = await second.communicate()
        assert second.returncode == 0, said
        assert [a.asked[file.path] for file in files] == [1, 1, 1, 2]
    assert stored(tmp_path, TRADES, "agg_id") == hours("2025-01-30", "2025-02-03") and not (tmp_path / "market/.incoming").exists()


async def test_a_disk_that_takes_no_more_ends_it_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    async with archive() as a:
        files = files_for(TRADES, parse_utc("2025-01-30"), parse_utc("2025-02-03"))
        a.add(*files)
        chance = np.random.default_rng(1)
        start = parse_utc("2025-02-02")
        a.put(files[3], zipped(files[3], [f"{i},{chance.random()},0.1,{i},{i},{start + i},true" for i in range(20_000)]))
        async with asyncio.timeout(DEADLINE_S):
            child = await process(tmp_path, a.url, limit=60_000)
            _, said = await child.communicate()
    assert child.returncode == 1 and b"--into" in said and b"the disk refuses" in said and b"Traceback" not in said, said
    assert stored(tmp_path, TRADES, "agg_id") == hours("2025-01-30", "2025-02-01")
    assert not list((tmp_path / "market").rglob("*.part"))


# --- the command -----------------------------------------------------------------------------------------------------------------------

RIGHT = {"--symbols": "BTCUSDT", "--from": "2025-01-01", "--to": "2025-02-01", "--kind": "aggTrades"}


def words(**changes: str | None) -> list[str]:
    given = RIGHT | {"--" + name.replace("_", "-"): value for name, value in changes.items()}
    return [word for name, value in given.items() if value is not None for word in (name, value)]


@pytest.mark.parametrize(("changes", "option"), [
    ({"symbols": "BTC USDT"}, "--symbols"), ({"symbols": None}, "--symbols"), ({"from": "2025-13-01"}, "--from"), ({"from": "01.02.2025"}, "--from"),
    ({"to": "2025-01-01"}, "--to"), ({"kind": "trades"}, "--kind"), ({"interval": "1m"}, "--interval"), ({"jobs": "0"}, "--jobs"),
    ({"jobs": "99"}, "--jobs"), ({"base_url": "ftp://x"}, "--base-url"), ({"from": "2999-01-01", "to": "2999-02-01"}, "--from"),
    ({"kind": "klines", "interval": "1s"}, "--interval"), ({"kind": "klines", "interval": "1mo"}, "--interval"), ({"from": "0001-01-01"}, "--from"),
    ({"from": "2018-12-31"}, "--from"), ({"into": ""}, "--into"),
])
def test_a_wrong_option_is_named(changes: dict[str, str | None], option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command(words(**{"into": str(tmp_path)} | changes), quiet) == 2
    said = capsys.readouterr().err
    assert option in said and said.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_options_have_sensible_defaults(tmp_path: Path) -> None:
    found = options_of(words(kind="klines", symbols="btcusdt, ETHUSDT,btcusdt"), lambda: tmp_path)
    assert found.series == (BARS, Series("klines", "ETHUSDT", "1m")) and found.into == tmp_path and found.base_url == BASE_URL and found.jobs == 4
    assert (found.from_ms, found.to_ms) == (parse_utc("2025-01-01"), parse_utc("2025-02-01"))
    assert options_of(words(to="2999-01-01"), lambda: tmp_path).to_ms % DAY == 0
    assert options_of(words(into="~/market"), lambda: tmp_path).into == Path.home() / "market"


def test_every_option_is_documented_and_none_else() -> None:
    text = (ROOT / "docs/data.md").read_text().split("\n## Download\n")[1].split("\n## ")[0]
    with pytest.raises(SystemExit), redirect_stdout(io.StringIO()) as said:
        options_of(["--help"], Path)
    asked = sorted(set(re.findall(r"(--[a-z-]+)", said.getvalue().split("options:")[1])) - {"--help"})
    assert sorted(set(re.findall(r"^\| `(--[a-z-]+)`", text, re.MULTILINE))) == asked
