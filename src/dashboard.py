"""The daemon's HTTP face: /health, /health/live and /metrics on PORT. It shows figures and takes no commands.

``/health`` is 200 when the daemon is healthy and 503 with the reasons when it is not; ``/health/live`` only says that the Orchestrator
answers and the supervisor beats. Nothing here shows a key, an order id or a price.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from src.error_handler import Fatal
from src.system_monitor import Figures


class _Counters(Collector):
    """Every field of every process's counters as a gauge ``aegis_<field>{process=...}``."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[GaugeMetricFamily]:
        families: dict[str, GaugeMetricFamily] = {}
        for process, block in self._figures().items():
            for name, value in block.items():
                family = families.setdefault(name, GaugeMetricFamily(f"aegis_{name}", f"{name} of a process", labels=["process"]))
                family.add_metric([process], float(value))
        return families.values()


def application(figures: Callable[[], Figures], reasons: Callable[[], list[str]], live: Callable[[], bool], about: dict[str, Any]) -> web.Application:
    """``about``: what /health tells beside the verdict (mode, version)."""
    registry = CollectorRegistry()
    registry.register(_Counters(figures))

    async def health(_: web.Request) -> web.Response:
        wrong = reasons()
        return _json({"status": "unhealthy" if wrong else "healthy", "reasons": wrong, **about}, 503 if wrong else 200)

    async def alive(_: web.Request) -> web.Response:
        return _json({"status": "live" if live() else "dead"}, 200 if live() else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/health/live", alive), web.get("/metrics", metrics)])
    return app


def _json(body: dict[str, Any], status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


async def serve(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Listen; returns the runner (``cleanup`` ends it) and the port. Raises Fatal where the port is taken."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise Fatal(f"HOST={host!r}: is no address of this machine; 0.0.0.0 is all of them, 127.0.0.1 this machine alone") from error
        raise Fatal(f"PORT={port}: cannot listen on {host}:{port} ({error.strerror or error}); choose a free port, or 0 for any") from error
    return runner, int(runner.addresses[0][1])
