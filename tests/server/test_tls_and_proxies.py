"""TLS by files, and proxies: whose word on a client's address is taken, and whose is not."""

import asyncio
import json
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.server.live import events_to_end, live_server, say

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    alternative = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", *words.split(), *alternative, "-keyout", str(key), "-out", str(chain)]
    subprocess.run(command, check=True, capture_output=True)
    return chain, key


async def test_by_two_files_the_server_speaks_https_and_wss_and_nothing_in_the_clear(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    chain, key = certificate
    trusting = ssl.create_default_context(cafile=str(chain))
    async with live_server(tmp_path, tls_certificate=chain, tls_key=key) as live:
        url = live.url.replace("ws://", "wss://")
        async with connect(url, proxy=None, ssl=trusting) as socket:
            await say(socket, "Hi")
            (await live.engine.turn(0)).end()
            assert (await events_to_end(socket))[-1]["type"] == "response.completed"
        async with httpx.AsyncClient(verify=trusting, trust_env=False) as client:
            assert (await client.get(f"https://{live.address}/healthz")).status_code == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(url, proxy=None, ssl=ssl.create_default_context())
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        async with asyncio.timeout(10):
            assert not (await reader.read()).startswith(b"HTTP")
        writer.close()


def turns_from(address: str) -> dict[str, str]:
    return {"x-forwarded-for": address}


@pytest.mark.parametrize("trusted", [True, False])
async def test_an_address_is_what_a_trusted_proxy_says_and_what_anybody_else_says_is_nothing(
    tmp_path: Path, trusted: bool
) -> None:
    proxies = ("127.0.0.0/8",) if trusted else ("10.0.0.0/8",)
    async with (
        live_server(tmp_path, connections_per_address=1, trusted_proxies=proxies) as live,
        live.connect(additional_headers=turns_from("203.0.113.1")),
    ):
        with pytest.raises(InvalidStatus, match="429"):
            await live.connect(additional_headers=turns_from("203.0.113.1"))
        elsewhere = live.connect(additional_headers=turns_from("203.0.113.2"))
        if not trusted:
            with pytest.raises(InvalidStatus, match="429"):
                await elsewhere
            return
        async with elsewhere:
            pass


async def test_what_a_client_writes_before_its_proxy_does_is_not_believed(tmp_path: Path) -> None:
    async with (
        live_server(tmp_path, connections_per_address=1, trusted_proxies=("127.0.0.1",)) as live,
        live.connect(additional_headers=turns_from("198.51.100.1, 203.0.113.1")),
    ):
        with pytest.raises(InvalidStatus, match="429"):
            await live.connect(additional_headers=turns_from("198.51.100.2, 203.0.113.1"))


@pytest.mark.parametrize("value", ["", "not an address", "x" * 5000, "203.0.113.1:http", "[::1", "\xff, ,", "1.2.3.4,"])
async def test_a_forwarded_header_that_makes_no_sense_harms_nobody(tmp_path: Path, value: str) -> None:
    async with live_server(tmp_path, trusted_proxies=("127.0.0.1",)) as live:
        headers = [(b"x-forwarded-for", value.encode("latin-1")), (b"x-forwarded-proto", value.encode("latin-1"))]
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://{live.address}/v1/models", headers=headers)
        assert answer.status_code == 200, answer.text
        assert json.loads(answer.content)["object"] == "list"
