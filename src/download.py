"""``python -m src.main download``: the venue's archive into the Parquet store.

Invariants
  * Nothing unverified is stored: a file is hashed while it comes, or anew when it lies there already, and compared with its ``.CHECKSUM``.
  * A month of the store appears whole or not at all, and says which files it was made of. So the same command goes on where it was stopped,
    killed or refused by the disk, and fetches nothing twice.
  * A file that the archive does not have is listed and stops nothing. One that cannot be had after several tries is listed, and the exit
    code is 1. A disk that takes no more ends the command.
  * At most ``jobs`` requests and as many months are under way at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import NoReturn

import aiohttp
from tqdm import tqdm  # type: ignore[import-untyped]

from src.archive import DAY_MS, ArchiveFile, check_period, files_for, rows_of
from src.clock import epoch_ms, iso, parse_utc, unseeded
from src.config import INTERVALS_MS, load, network_environment, proxy_for, tls_for
from src.error_handler import Retryable
from src.store import KINDS, Series, Store, Table

BASE_URL = "https://data.binance.vision"
FIRST_DAY = "2019-09-01"
"""Nothing of USDⓈ-M futures is older."""
JOBS_MAX = 16
CHUNK_BYTES = 256 * 1024
CHECKSUM_BYTES_MAX = 1_024
GAPS_SHOWN = 5
INTERVALS = tuple(name for name in INTERVALS_MS if not name.endswith("s"))
EXIT_OK, EXIT_FAILED, EXIT_WRONG = 0, 1, 2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """``read_s``: an answer without a byte for so long is given up. ``backoff_s``: before the second try, and at most. Wall seconds."""

    tries: int = 5
    connect_s: float = 10.0
    read_s: float = 30.0
    backoff_s: tuple[float, float] = (0.5, 20.0)


@dataclass(frozen=True, slots=True)
class Options:
    """What to have: from_ms ≤ time < to_ms, whole days in UTC. ``into``: the store's folder."""

    series: tuple[Series, ...]
    from_ms: int
    to_ms: int
    into: Path
    base_url: str = BASE_URL
    jobs: int = 4
    patience: Patience = Patience()


@dataclass(slots=True)
class Summary:
    """What became of the files. ``failed``: (file, why)."""

    fetched: int = 0
    reused: int = 0
    stored_before: int = 0
    bytes: int = 0
    rows: int = 0
    duplicates: int = 0
    missing: list[ArchiveFile] = field(default_factory=list)
    failed: list[tuple[ArchiveFile, str]] = field(default_factory=list)


# --- what is seen of it ----------------------------------------------------------------------------------------------------------------

class Progress:
    """A bar on a terminal; else a line for each file."""

    def __init__(self, files: int, say: Say, *, bar: bool) -> None:
        self._say = say
        self._received = 0
        self._bar = tqdm(total=files, unit="file", dynamic_ncols=True) if bar else None

    def expect(self, files: int) -> None:
        """So many more."""
        if self._bar is not None:
            self._bar.total += files
            self._bar.refresh()

    def done(self, file: ArchiveFile, what: str, *, notable: bool = False) -> None:
        line = f"{file.series}  {file.period}  {what}"
        if self._bar is None:
            self._say(line)
            return
        self._bar.update()
        if notable:
            self._bar.write(line)

    def received(self, size: int) -> None:
        self._received += size
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._received / 1e6:,.0f} MB", refresh=False)
            self._bar.update(0)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


# --- one file --------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True, order=True)
class Verified:
    """A file of the archive that lies on our disk and is what its checksum says."""

    file: ArchiveFile
    path: Path
    digest: str
    fetched_bytes: int


class Refused(Exception):
    """This file cannot be had, or is not usable; the text says why."""


class _Again(Exception):
    """Worth another try; the text says why."""


class Fetcher:
    """Gets files, verified, into ``folder``."""

    def __init__(self, session: aiohttp.ClientSession, options: Options, folder: Path, progress: Progress) -> None:
        self._session = session
        self._progress = progress
        self._base_url = options.base_url
        self._patience = options.patience
        self._folder = folder
        self._requests = asyncio.Semaphore(options.jobs)
        self._chance = unseeded()
        self._answered = False

    async def fetch(self, file: ArchiveFile) -> Verified | None:
        """None: the archive has no such file. Refused: it could not be had. Retryable: nobody answers at all. OSError: our disk."""
        why = ""
        for turn in range(self._patience.tries):
            if turn:
                low, high = self._patience.backoff_s
                await asyncio.sleep(min(high, low * 2.0 ** (turn - 1)) * self._chance.uniform(0.5, 1.0))
            try:
                async with self._requests:
                    return await self._once(file)
            except _Again as error:
                why = str(error)
            except (aiohttp.ClientError, TimeoutError) as error:
                why = str(error) or type(error).__name__
        if not self._answered:
            raise Retryable(f"--base-url {self._base_url}: nobody answers ({why})")
        raise Refused(f"given up after {self._patience.tries} tries: {why}")

    async def _once(self, file: ArchiveFile) -> Verified | None:
        url, path = f"{self._base_url}/{file.path}", self._folder / file.path
        digest = await self._checksum(file, url)
        if digest is None:
            return None
        if path.exists() and await asyncio.to_thread(_hash_of, path) == digest:
            return Verified(file, path, digest, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            size, found = await self._body(url, part)
            if found != digest:
                raise _Again(f"the checksum says {digest[:12]}…, and what came is {found[:12]}… ({size} bytes)")
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
        return Verified(file, path, digest, size)

    async def _checksum(self, file: ArchiveFile, url: str) -> str | None:
        """The SHA-256 that the archive says the file has. None: there is no such file."""
        async with self._session.get(f"{url}.CHECKSUM") as answer:
            self._answered = True
            if answer.status == 404:
                async with self._session.head(url) as zipped:
                    if zipped.status == 200:
                        raise Refused("the archive has no checksum of it")
                    with contextlib.suppress(Refused):
                        _check_status(zipped.status)
                    return None
            _check_status(answer.status)
            text = (await _start_of(answer, CHECKSUM_BYTES_MAX)).decode("ascii", "replace").split()
        if len(text) != 2 or not re.fullmatch(r"[0-9a-fA-F]{64}", text[0]) or text[1].lstrip("*") != file.name:
            raise _Again(f"its checksum file does not read <sha256>  {file.name}")
        return text[0].lower()

    async def _body(self, url: str, part: Path) -> tuple[int, str]:
        """(bytes, SHA-256) of what was written to ``part``."""
        digest, size = sha256(), 0
        async with self._session.get(url) as answer:
            _check_status(answer.status)
            with part.open("wb") as target:
                async for piece in answer.content.iter_chunked(CHUNK_BYTES):
                    digest.update(piece)
                    target.write(piece)
                    size += len(piece)
                    self._progress.received(len(piece))
        return size, digest.hexdigest()


async def _start_of(answer: aiohttp.ClientResponse, size: int) -> bytes:
    """The whole answer where it is not longer, in however many pieces it comes."""
    found = b""
    while len(found) < size and (piece := await answer.content.read(size - len(found))):
        found += piece
    return found


def _check_status(status: int) -> None:
    if status == 429 or status >= 500:
        raise _Again(f"HTTP {status}")
    if status != 200:
        raise Refused(f"HTTP {status}")


def _hash_of(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


# --- all of them -----------------------------------------------------------------------------------------------------------------------

class Downloader:
    """One run: months side by side, each fetched file by file and then stored at once."""

    def __init__(self, fetcher: Fetcher, store: Store, progress: Progress, jobs: int) -> None:
        self._fetcher = fetcher
        self._store = store
        self._progress = progress
        self._months = asyncio.Semaphore(jobs)
        self._storing = asyncio.Semaphore(2)
        self._stop = threading.Event()
        self.summary = Summary()

    async def run(self, files: Sequence[ArchiveFile]) -> None:
        """Raises what ends the command: Retryable, OSError, or being cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _, month in groupby(files, key=lambda file: (file.series, file.month)):
                    group.create_task(self._month(list(month)))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    async def _month(self, files: list[ArchiveFile]) -> None:
        async with self._months:
            known = await asyncio.to_thread(self._store.sources, files[0].series, files[0].month)
            found = await self._fetch_all(files, known)
            if found:
                async with self._storing:
                    await self._in_thread(sorted(found))

    async def _fetch(self, file: ArchiveFile, known: Mapping[str, str]) -> list[Verified]:
        """The file, or for a month that the archive has not put together its days; empty where that ends in a line of the summary."""
        if file.is_in(known):
            self.summary.stored_before += 1
            self._progress.done(file, "stored before")
            return []
        try:
            found = await self._fetcher.fetch(file)
        except Refused as error:
            self.summary.failed.append((file, str(error)))
            self._progress.done(file, f"FAILED: {error}", notable=True)
            return []
        if found is not None:
            self.summary.fetched += bool(found.fetched_bytes)
            self.summary.reused += not found.fetched_bytes
            self.summary.bytes += found.fetched_bytes
            self._progress.done(file, f"{found.fetched_bytes / 1e6:.1f} MB" if found.fetched_bytes else "lay there already")
            return [found]
        days = [day for day in file.days() if parse_utc(day.period) < _today_ms()] if file.is_month else []
        self._progress.done(file, "no monthly file, asking for its days" if days else "not in the archive", notable=not days)
        self._progress.expect(len(days))
        fetched = await self._fetch_all(days, known)
        self._list_missing(file, days)
        return fetched

    async def _fetch_all(self, files: Sequence[ArchiveFile], known: Mapping[str, str]) -> list[Verified]:
        """``known``: what the month is made of already."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._fetch(file, known)) for file in files]
        return [one for task in tasks for one in task.result()]

    def _list_missing(self, file: ArchiveFile, days: Sequence[ArchiveFile]) -> None:
        """A month of which no day is there is listed as a month."""
        missing = self.summary.missing
        if all(day in missing for day in days):
            missing[:] = [one for one in missing if one not in days] + [file]

    async def _in_thread(self, files: list[Verified]) -> None:
        """Store a month. When the command ends first, so does the work, and is waited for."""
        task = asyncio.ensure_future(asyncio.to_thread(self._store_month, files))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self._stop.set()
            await asyncio.wait([task])
            task.exception()
            raise

    def _store_month(self, files: list[Verified]) -> None:
        """All at once; one by one where that is refused, so that one file's fault does not cost the others."""
        try:
            self._store_files(files)
        except ValueError as error:
            if len(files) > 1:
                for one in files:
                    self._store_month([one])
            else:
                self.summary.failed.append((files[0].file, str(error)))
                files[0].path.unlink()

    def _store_files(self, files: list[Verified]) -> None:
        done = self._store.append(files[0].file.series, self._rows(files), {one.file.name: one.digest for one in files})
        self.summary.rows += done.rows
        self.summary.duplicates += done.duplicates
        for one in files:
            one.path.unlink()

    def _rows(self, files: list[Verified]) -> Iterator[Table]:
        for one in files:
            for table in rows_of(one.path, one.file.series):
                if self._stop.is_set():
                    raise Retryable("stopped")
                check_period(table, one.file)
                yield table


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _today_ms() -> int:
    return epoch_ms() // DAY_MS * DAY_MS


async def download(options: Options, say: Say, *, bar: bool = False) -> Summary:
    """Fetch and store all that is not there. Retryable: nobody answers, or the disk takes no more. Fatal: another process is writing."""
    store, patience = Store(options.into), options.patience
    files = [file for series in options.series for file in files_for(series, options.from_ms, options.to_ms)]
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=patience.connect_s, sock_read=patience.read_s)
    try:
        with store.writing(), contextlib.closing(Progress(len(files), say, bar=bar)) as progress:
            connector = aiohttp.TCPConnector(ssl=tls_for(options.base_url) or True)
            async with aiohttp.ClientSession(timeout=timeout, connector=connector, proxy=proxy_for(options.base_url)) as session:
                fetcher = Fetcher(session, options, options.into / ".incoming", progress)
                downloader = Downloader(fetcher, store, progress, options.jobs)
                await downloader.run(files)
        _prune(options.into / ".incoming")
    except OSError as error:
        raise Retryable(f"--into {options.into}: the disk refuses ({error.strerror or error}). What is stored is whole; the same command goes on"
                        ) from error  # fmt: skip
    return downloader.summary


def _prune(folder: Path) -> None:
    """Empty folders, from the bottom up."""
    for inner in [*sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True), folder]:
        with contextlib.suppress(OSError):  # not empty, or not there
            inner.rmdir()


# --- the command -----------------------------------------------------------------------------------------------------------------------

class _Parser(argparse.ArgumentParser):
    """One clear line for a wrong option, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_WRONG, f"download: {message}\n")


def _day(text: str) -> int:
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        with contextlib.suppress(ValueError):
            if text >= FIRST_DAY:
                return parse_utc(text)
            raise argparse.ArgumentTypeError(f"{text!r} lies before the archive's first day, {FIRST_DAY}")
    raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2025-01-31")


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("no folder is named")
    return Path(text).expanduser()


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= JOBS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {JOBS_MAX}")
    return int(text)


def _symbols(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip().upper() for name in text.split(",") if name.strip()))
    wrong = [name for name in names if not re.fullmatch(r"\w+", name)]
    if wrong or not names:
        raise argparse.ArgumentTypeError(f"{(wrong or [text])[0]!r} is not a name such as BTCUSDT, or several with commas between them")
    return names


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL that begins with http:// or https://")
    return text.rstrip("/")


def options_of(argv: Sequence[str], default_into: Callable[[], Path]) -> Options:
    """Options from the command line; SystemExit(2) and a line for a wrong one."""
    parser = _Parser(prog="download", description="Market data from the venue's archive into the Parquet store. Days are UTC.")
    parser.add_argument("--symbols", type=_symbols, required=True, help="BTCUSDT,ETHUSDT")
    parser.add_argument("--from", type=_day, required=True, dest="first", help="the first day, such as 2025-01-01")
    parser.add_argument("--to", type=_day, required=True, dest="after", help="the day after the last")
    parser.add_argument("--kind", choices=tuple(KINDS), required=True)
    parser.add_argument("--interval", choices=INTERVALS, help="of klines and markPriceKlines (default 1m)")
    parser.add_argument("--into", type=_folder, help="the store's folder (default DATA_DIR/market)")
    parser.add_argument("--jobs", type=_jobs, default=4, help=f"requests at once, 1 to {JOBS_MAX} (default 4)")
    parser.add_argument("--base-url", type=_url, default=BASE_URL, help=f"where the archive is (default {BASE_URL})")
    given = parser.parse_args(argv)
    has_interval = KINDS[given.kind].has_interval
    if given.interval and not has_interval:
        parser.error(f"argument --interval: {given.kind} have none")
    if given.first >= given.after:
        parser.error("argument --to: must be a later day than --from")
    if given.first >= _today_ms():
        parser.error(f"argument --from: the archive ends yesterday, {iso(_today_ms() - 1)[:10]}")
    interval = (given.interval or "1m") if has_interval else ""
    series = tuple(Series(given.kind, name, interval) for name in given.symbols)
    return Options(series, given.first, min(given.after, _today_ms()), given.into or default_into(), given.base_url, given.jobs)


def command(argv: Sequence[str], say: Say) -> int:
    """0: done, though files may be missing in the archive. 1: some failed, or nothing of a symbol was found. 2: wrong options."""
    try:
        options = options_of(argv, lambda: Path(load().data_dir) / "market")
    except SystemExit as wrong:
        return int(wrong.code or 0)
    os.environ.update(network_environment(load()))
    say(f"{', '.join(map(str, options.series))}: {iso(options.from_ms)[:10]} up to and with {iso(options.to_ms - 1)[:10]}, into {options.into}")
    summary = asyncio.run(download(options, say, bar=sys.stderr.isatty()))
    for line in report(options, summary):
        say(line)
    empty = [series for series in options.series if not Store(options.into).months(series)]
    return EXIT_FAILED if summary.failed or empty else EXIT_OK


def report(options: Options, summary: Summary) -> Iterator[str]:
    """What was done, what is missing, what failed, and the gaps in what is stored of that time."""
    yield (f"{summary.fetched} files fetched ({summary.bytes / 1e6:,.1f} MB), {summary.reused} lay there verified, "
           f"{summary.stored_before} stored before; {summary.rows:,} rows, {summary.duplicates:,} of them twice")  # fmt: skip
    if summary.missing:
        yield f"not in the archive: {', '.join(file.name for file in sorted(summary.missing))}"
    for file, why in sorted(summary.failed):
        yield f"FAILED {file.name}: {why}"
    store = Store(options.into)
    for series in options.series:
        if not store.months(series):
            yield f"{series}: nothing is stored; is the name right?"
            continue
        gaps = list(store.gaps(series, options.from_ms, options.to_ms))
        missing = sum(gap.missing for gap in gaps)
        shown = "; ".join(f"{gap.missing:,} between {iso(gap.from_ms)} and {iso(gap.to_ms)}" for gap in gaps[:GAPS_SHOWN])
        more = f"; and {len(gaps) - GAPS_SHOWN} more gaps" if len(gaps) > GAPS_SHOWN else ""
        yield f"{series}: {store.rows(series):,} rows in the store; " + (f"{missing:,} missing: {shown}{more}" if gaps else "no gaps")
