"""The HTTP face: what cannot be listened on is named."""

from __future__ import annotations

import socket

import pytest
from aiohttp import web

from src.dashboard import serve
from src.error_handler import Fatal


async def test_an_address_that_is_none_of_this_machine_names_host() -> None:
    with pytest.raises(Fatal, match=r"^HOST='192\.0\.2\.1'"):
        await serve(web.Application(), "192.0.2.1", 0)


async def test_a_port_that_is_taken_names_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Fatal, match=rf"^PORT={port}"):
            await serve(web.Application(), "127.0.0.1", port)
