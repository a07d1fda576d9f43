"""Between us and the venue: a proxy that the environment names, and the certificate of who answers."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from picows import ws_create_server
from websockets.asyncio.server import serve

from src.archive import files_for
from src.clock import parse_utc
from src.config import load, network_environment, proxy_for
from src.error_handler import Fatal
from src.feed import warm_up
from src.links import Route
from src.ring_buffer import BACKFILLED, HEALED, TRADE
from src.sockets import Shard
from src.store import Series
from tests.test_download import archive
from tests.test_feed import T0, rules, scene
from tests.test_sockets import DEADLINE_S, QUICK, Server, Sink, streams
from tests.test_venue_user_stream import Stream as UserStreamEars
from tests.test_venue_user_stream import venue as user_venue  # noqa: F401  (a fixture)
from tests.test_venue_ws_api import Api
from tests.test_venue_ws_api import venue as ws_api_venue  # noqa: F401  (a fixture)

NAME = "venue.test"
"""A host that only the proxy knows."""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """No test waits for kernels longer than its deadline."""
    warm_up()


class Proxy:
    """Knows every name as this machine. ``asked``: the first line of every connection."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # who gave up while it was connecting
            writer.close()
            return
        line = head.split(b"\r\n", 1)[0].decode()
        self.asked.append(line)
        method, target, _ = line.split()
        port = int(target.rpartition(":")[2]) if method == "CONNECT" else urlsplit(target).port
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            far_writer.write(head)
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            return
        finally:
            writer.close()


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    made = Proxy()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", made.url)
    yield made
    server.close()


def through(url: str) -> str:
    return url.replace("127.0.0.1", NAME)


async def test_market_sockets_and_back_fill_go_through_the_proxy_that_the_environment_names(proxy: Proxy) -> None:
    async with scene(rules("BTCUSDT"), host=NAME) as s:
        await s.venue.trade("BTCUSDT", 1, T0)
        s.venue.record("BTCUSDT", 2, T0)
        await s.venue.trade("BTCUSDT", 3, T0)
        await s.reader.count(HEALED)
        assert [slot["flags"] for slot in s.reader.of(TRADE)] == [0, 0, BACKFILLED]
    port = urlsplit(s.venue.url).port
    assert proxy.asked.count(f"CONNECT {NAME}:{port} HTTP/1.1") == 2
    assert [line for line in proxy.asked if line.startswith(f"GET http://{NAME}:{port}/fapi/v1/aggTrades?")]


async def test_the_user_stream_and_its_listen_key_go_through_it(proxy: Proxy, user_venue: Any) -> None:  # noqa: F811
    user_venue.rest_url, user_venue.ws_url = through(user_venue.rest_url), through(user_venue.ws_url)
    ears = UserStreamEars(user_venue)
    try:
        await ears.until(lambda: ears.heard)
        assert ears.heard[0] is True
        assert any(line.startswith("CONNECT") for line in proxy.asked) and any(line.startswith("POST http") for line in proxy.asked)
    finally:
        await ears.close()


async def test_the_websocket_api_goes_through_it(proxy: Proxy, ws_api_venue: Any) -> None:  # noqa: F811
    api = Api(through(ws_api_venue.url))
    api.ws.start()
    try:
        await api.until(lambda: api.ws.is_up)
        assert proxy.asked[0].startswith(f"CONNECT {NAME}:")
    finally:
        await api.ws.close()


@pytest.mark.parametrize(("environment", "url", "wanted"), [
    ({}, "wss://a.test/ws", None),
    ({"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://q:2"}, "wss://a.test/ws", "http://p:1"),
    ({"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://q:2"}, "https://a.test", "http://p:1"),
    ({"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://q:2"}, "ws://a.test", "http://q:2"),
    ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.test"}, "wss://a.test", None),
    ({"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://p:1"}, "http://127.0.0.1:8080", None),
    ({"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://p:1"}, "ws://localhost:8080", None),
])
def test_which_proxy_an_url_has(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, wanted: str | None) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == wanted


def test_the_setting_outranks_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://q:2")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert network_environment(load({}, None)) == {}
    for name, value in network_environment(load({"PROXY": "http://p:1"}, None)).items():
        monkeypatch.setenv(name, value)
    assert proxy_for("wss://a.test/ws") == proxy_for("ws://a.test") == "http://p:1"


# --- the archive ---------------------------------------------------------------------------------------------------------------------

DAY = files_for(Series("klines", "BTCUSDT", "1m"), parse_utc("2025-01-02"), parse_utc("2025-01-03"))


async def download(folder: Path, base_url: str, **environment: str) -> tuple[int | None, str]:
    """Exit code and words of the command, for a day of candles from there."""
    argv = ["download", "--symbols", "BTCUSDT", "--kind", "klines", "--from", "2025-01-02", "--to", "2025-01-03", "--into", str(folder)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "src.main", *argv, "--base-url", base_url, env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, said.decode()


async def test_a_download_goes_through_the_proxy_of_the_setting(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTTP_PROXY")
    async with archive() as one:
        one.add(*DAY)
        code, said = await download(tmp_path, through(one.url), PROXY=proxy.url)
    assert code == 0 and "1 files fetched" in said
    assert proxy.asked and all(line.startswith(f"GET http://{NAME}:") for line in proxy.asked)


async def test_a_download_trusts_the_certificates_of_the_setting(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    async with archive(serving(certificate)) as one:
        one.add(*DAY)
        code, said = await download(tmp_path, one.url)
        assert code == 1 and "CERTIFICATE_VERIFY_FAILED" in said
        code, said = await download(tmp_path, one.url, CA_FILE=str(certificate[0]))
        assert code == 0 and "1 files fetched" in said


# --- certificates ----------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """One for this machine that nobody has signed but itself, and its key."""
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-out", str(paths[0]),
                    "-keyout", str(paths[1]), "-days", "2", "-subj", "/CN=venue", "-addext", "subjectAltName=IP:127.0.0.1"],
                   check=True, capture_output=True, timeout=20)  # fmt: skip
    return paths


def serving(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@asynccontextmanager
async def market_shard(certificate: tuple[Path, Path]) -> AsyncIterator[Sink]:
    """Behind TLS, with its server."""
    listening = await ws_create_server(lambda request: Server([]), "127.0.0.1", 0, ssl=serving(certificate), use_aiofastnet=False)
    sink = Sink()
    shard = Shard(sink, streams(Route.MARKET, f"wss://127.0.0.1:{listening.sockets[0].getsockname()[1]}/stream"), QUICK)
    task = asyncio.create_task(shard.run())
    try:
        yield sink
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=DEADLINE_S)
        if shard.link is not None:
            shard.link.hang_up()
        listening.close()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "CA_FILE"])
async def test_a_server_whose_certificate_nobody_knows_is_refused_until_it_is_trusted(
        certificate: tuple[Path, Path], variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CA_FILE", raising=False)
    async with market_shard(certificate) as sink:
        async with asyncio.timeout(DEADLINE_S):
            while not (said := [record for record in caplog.records if record.getMessage() == "market stream refused"]):
                await asyncio.sleep(0.01)
        assert "CERTIFICATE_VERIFY_FAILED" in said[0].fields["reason"] and not sink.ready.is_set()  # type: ignore[attr-defined]
        monkeypatch.setenv(variable, str(certificate[0]))
        async with asyncio.timeout(DEADLINE_S):
            await sink.ready.wait()


@pytest.fixture
def trusted(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """For a server whose certificate CA_FILE names."""
    for name, value in network_environment(load({"CA_FILE": str(certificate[0])}, None)).items():
        monkeypatch.setenv(name, value)
    return serving(certificate)


async def test_the_setting_is_trusted_by_rest_and_the_user_stream(trusted: ssl.SSLContext, user_venue: Any) -> None:  # noqa: F811
    app = web.Application()
    app.router.add_route("*", "/fapi/v1/listenKey", user_venue.listen_key)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=trusted).start()
    async with serve(user_venue.stream, "127.0.0.1", 0, ssl=trusted) as server:
        user_venue.rest_url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        user_venue.ws_url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/private"
        ears = UserStreamEars(user_venue)
        try:
            await ears.until(lambda: ears.heard)
            assert ears.heard[0] is True and len(user_venue.keys) == 1
        finally:
            await ears.close()
            await runner.cleanup()


async def test_the_setting_is_trusted_by_the_websocket_api(trusted: ssl.SSLContext, ws_api_venue: Any) -> None:  # noqa: F811
    async with serve(ws_api_venue.serve, "127.0.0.1", 0, ssl=trusted, compression=None) as server:
        api = Api(f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws-fapi/v1")
        api.ws.start()
        try:
            await api.until(lambda: api.ws.is_up)
        finally:
            await api.ws.close()


def test_a_file_that_holds_no_certificates_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(Fatal, match=r"CA_FILE=.*must hold certificates in PEM"):
        load({"CA_FILE": str(tmp_path / "ca.pem")}, None)
