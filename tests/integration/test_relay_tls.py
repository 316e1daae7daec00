"""The relay's connection by TLS: to a broker with a certificate that the URL trusts, and to no other."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from server.events.amqp import BrokerLost, Channel
from server.events.publishing import Publisher, exchange_names
from tests.integration.test_doors import certificate
from tests.plugins.rabbitmq import Broker

__all__ = ["certificate"]


def _configured(broker: Broker, certificate: tuple[str, str]) -> int:
    """Gives a broker that is not running a TLS listener; its port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    chain, key = certificate
    with (broker.folder / "rabbitmq.conf").open("a") as configuration:
        configuration.write(
            f"listeners.ssl.default = {port}\nssl_options.cacertfile = {chain}\n"
            f"ssl_options.certfile = {chain}\nssl_options.keyfile = {key}\nssl_options.verify = verify_none\n"
        )
    return port


@pytest.mark.timeout(120)
async def test_tls(broker: Broker, certificate: tuple[str, str], tmp_path: Path) -> None:
    await asyncio.to_thread(broker.stop)
    port = _configured(broker, certificate)
    await asyncio.to_thread(broker.start)
    options = quote(json.dumps({"ca_certs": certificate[0]}))
    # The listener without TLS, by which a broker shows that it is there, comes first.
    async with asyncio.timeout(60):
        while True:
            with suppress(OSError):
                socket.create_connection(("localhost", port), timeout=5).close()
                break
            await asyncio.sleep(0.1)
    channel = await Channel.opened(f"amqps://guest:guest@localhost:{port}/?ssl_options={options}")
    publisher = await Publisher.on(channel, exchange_names("tls/{service}/"))
    assert publisher.unconfirmed == 0
    await channel.close()
    # A broker whom nobody vouches for, and one that speaks no TLS.
    for url in (f"amqps://guest:guest@localhost:{port}/", f"amqps://guest:guest@localhost:{broker.port}/"):
        with pytest.raises(BrokerLost, match="no connection"):
            await Channel.opened(url)


async def test_a_wrong_password(rabbitmq: Broker) -> None:
    with pytest.raises(BrokerLost, match="no connection"):
        await Channel.opened(rabbitmq.url.replace("guest:guest", "guest:wrong"))


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with pytest.raises(BrokerLost, match="no connection"):
        await Channel.opened(f"amqp://guest:guest@127.0.0.1:{port}/")
