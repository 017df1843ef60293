"""Getting files from the web, politely and safely: pictures into memory, raw files into resumable downloads.

May import aiohttp, tqdm and settings. Nothing but http and https; no private address unless allowed; no cookies; no proxy from
the environment; redirects are followed by hand, each one checked; sizes are counted, whatever the server says of them.
"""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import json
import os
import random
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver
from tqdm import tqdm
from yarl import URL

from recbole_vlm2rec import __version__
from recbole_vlm2rec.prepare.settings import Settings

REDIRECTS = 5
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})
_PIECE = 1 << 16
_PATIENCE = 10
"""A picture that keeps coming, a byte now and then, is given up after so many times `timeout`."""


class FetchError(OSError):
    """A URL that gave nothing usable. `reason`: short, the same for the same cause; `transient`: another try may help."""

    def __init__(self, reason: str, transient: bool = False):
        super().__init__(reason)
        self.reason, self.transient = reason, transient


class Fetcher:
    """`async with Fetcher(settings) as fetcher: data = await fetcher.get(url)`.

    Args:
        settings: limits, politeness and patience.
        backoff: seconds before the second try of a request; they double with each further one, with jitter.
        resolver: how names become addresses; for tests.
    """

    def __init__(self, settings: Settings, backoff: float = 1.0, resolver: AbstractResolver | None = None):
        self.settings, self.backoff = settings, backoff
        self._resolver = resolver
        self._hosts: dict[str, _Host] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Fetcher:
        settings = self.settings
        resolver = self._resolver or ThreadedResolver()
        # The limits on connections are ours (`_Host`), so that waiting for a turn does not count as waiting for the server.
        connector = aiohttp.TCPConnector(
            resolver=resolver if settings.allow_private else _PublicResolver(resolver), limit=0, ttl_dns_cache=300
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": f"recbole_vlm2rec/{__version__} (research; item pictures)", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, connect=settings.timeout, sock_read=settings.timeout),
        )
        return self

    async def __aexit__(self, *_) -> None:
        await self._session.close()

    async def get(self, url: str) -> bytes:
        """The body, of at most `settings.max_bytes` decoded bytes. Raises FetchError."""
        patience = self.settings.timeout * _PATIENCE

        async def once() -> bytes:
            try:
                return await asyncio.wait_for(self._get(url), patience)
            except asyncio.TimeoutError as error:
                raise FetchError("timed out", transient=True) from error

        return await self._retrying(once)

    async def download(self, url: str, path: Path, progress: Callable[[int, int | None], None] | None = None) -> None:
        """Writes the body to `path`, by way of `path.part`, which an interrupted download is gone on from.

        `progress` is called with the bytes that are here and, where the server says, how many there will be. A name in `.gz` must
        be a whole gzip file. Raises FetchError, and OSError where the file cannot be written.
        """
        part, about = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
        progress = progress or (lambda here, expected: None)
        before = -1

        def stuck() -> bool:
            """Tries are counted only as long as nothing more arrives."""
            nonlocal before
            size = part.stat().st_size if part.exists() else 0
            still, before = size <= before, size
            return still

        await self._retrying(lambda: self._download(url, part, about, progress), stuck)
        if path.suffix == ".gz":
            try:
                await asyncio.get_running_loop().run_in_executor(None, _check_gzip, part)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                part.unlink()
                about.unlink(missing_ok=True)
                raise FetchError(f"not a whole gzip file ({error}); removed, the same command fetches it again") from error
        os.replace(part, path)
        about.unlink(missing_ok=True)

    async def _retrying(self, once: Callable[[], Awaitable], stuck: Callable[[], bool] = lambda: True):
        tried = 0
        while True:
            try:
                return await once()
            except FetchError as error:
                tried = tried + 1 if stuck() else 1
                if not error.transient or tried > self.settings.retries:
                    raise
            await asyncio.sleep(self.backoff * 2 ** (tried - 1) * random.uniform(0.5, 1.5))

    async def _get(self, url: str) -> bytes:
        limit = self.settings.max_bytes
        async with self._open(url, {}) as response:
            if response.content_length is not None and response.content_length > limit:
                raise FetchError(f"more than {limit} bytes")
            decode = _decoder(response.headers.get("Content-Encoding", "identity").lower())
            body = bytearray()
            async for piece in response.content.iter_chunked(_PIECE):
                body += decode(piece, limit + 1 - len(body))
                if len(body) > limit:
                    raise FetchError(f"more than {limit} bytes")
            return bytes(body)

    async def _download(self, url: str, part: Path, about: Path, progress: Callable[[int, int | None], None]) -> None:
        have, headers = _resume(url, part, about)
        async with self._open(url, headers, accepted=(200, 206, 416)) as response:
            if response.status == 416:  # what lies here is not the beginning of what the server has
                part.unlink(missing_ok=True)
                raise FetchError("the server has another file than the one begun", transient=True)
            going_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if response.status == 206 and not going_on:
                part.unlink(missing_ok=True)
                raise FetchError("the server sent another part than the one asked for", transient=True)
            if not going_on:
                have = 0
                validator = _validator(response.headers)
                about.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
            expected = None if response.content_length is None else have + response.content_length
            with open(part, "ab" if going_on else "wb") as file:
                progress(have, expected)
                async for piece in response.content.iter_chunked(_PIECE):
                    file.write(piece)
                    have += len(piece)
                    progress(have, expected)
        if expected is not None and part.stat().st_size != expected:
            raise FetchError("cut short", transient=True)

    @asynccontextmanager
    async def _open(self, url: str, headers: dict[str, str], accepted=(200,)) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer at the end of all redirects. Raises FetchError for every way in which there may be none."""
        seen: set[URL] = set()
        current = self._checked(url)
        while True:
            if current in seen or len(seen) > REDIRECTS:
                raise FetchError("redirects in a circle" if current in seen else f"more than {REDIRECTS} redirects")
            seen.add(current)
            host = self._hosts.setdefault(current.host, _Host(self.settings.per_host))
            async with host.slots:
                await host.turn(self.settings.pause)
                try:
                    async with self._session.get(current, headers=headers, allow_redirects=False) as response:
                        if response.status not in _MOVED:
                            if response.status not in accepted:
                                self._heed(host, response)
                                raise FetchError(str(response.status), response.status in TRANSIENT)
                            yield response
                            return
                        target = response.headers.get("Location", "")
                except FetchError:
                    raise
                except asyncio.TimeoutError as error:
                    raise FetchError("timed out", transient=True) from error
                except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as error:
                    raise FetchError("no valid TLS certificate") from error
                except aiohttp.ClientConnectorError as error:
                    if isinstance(error.os_error, FetchError):
                        raise error.os_error from None
                    raise FetchError("cannot connect", transient=True) from error
                except aiohttp.ClientPayloadError as error:
                    raise FetchError("cut short", transient=True) from error
                except aiohttp.InvalidURL as error:
                    raise FetchError("not a URL") from error
                except (aiohttp.ClientError, ConnectionError) as error:
                    raise FetchError("connection lost", transient=True) from error
            current = self._checked(target, current)

    def _checked(self, url: str, base: URL | None = None) -> URL:
        """The URL, or FetchError for one that must not be asked for."""
        word = "redirects to " if base else ""
        try:
            parsed = URL(url) if base is None else base.join(URL(url))
            host = parsed.host
        except ValueError as error:
            raise FetchError(f"{word}not a URL") from error
        if base is not None and not url:
            raise FetchError("redirects to nowhere")
        if parsed.scheme not in ("http", "https"):
            raise FetchError(f"{word}{parsed.scheme}: is not http or https" if parsed.scheme else f"{word}not a URL")
        if not host:
            raise FetchError(f"{word}not a URL")
        if not self.settings.allow_private:
            # aiohttp asks no resolver about addresses that are written out.
            try:
                address = ipaddress.ip_address(host.partition("%")[0])
            except ValueError:
                pass
            else:
                if not _is_public(address):
                    raise FetchError(f"{word}private address {host} (see --allow-private)")
        return parsed

    def _heed(self, host: _Host, response: aiohttp.ClientResponse) -> None:
        """Retry-After, in seconds or as a date, makes every request to the host wait."""
        said = response.headers.get("Retry-After", "")
        if not said or response.status not in TRANSIENT:
            return
        try:
            seconds = float(said)
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(said) - datetime.now(timezone.utc)).total_seconds()
            except (TypeError, ValueError):
                return
        host.hold(min(max(seconds, 0.0), self.settings.max_wait))


class _Host:
    """Whose turn it is at one host."""

    def __init__(self, slots: int):
        self.slots = asyncio.Semaphore(slots)
        self._free_at = 0.0

    async def turn(self, pause: float) -> None:
        clock = asyncio.get_running_loop().time
        while (wait := self._free_at - clock()) > 0:
            await asyncio.sleep(wait)
        self._free_at = clock() + pause

    def hold(self, seconds: float) -> None:
        self._free_at = max(self._free_at, asyncio.get_running_loop().time() + seconds)


class _PublicResolver(AbstractResolver):
    """Addresses are judged here, where the connection is made with the very ones that were judged."""

    def __init__(self, resolver: AbstractResolver):
        self._resolver = resolver

    async def resolve(self, host, port=0, family=0):
        found = await self._resolver.resolve(host, port, family)
        for entry in found:
            if not _is_public(ipaddress.ip_address(entry["host"].partition("%")[0])):
                raise FetchError(f"private address {entry['host']} (see --allow-private)")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    inner = [address]
    if address.version == 6:
        inner += [embedded for embedded in (address.ipv4_mapped, address.sixtofour) if embedded is not None]
        if address in ipaddress.ip_network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped is not None:
            inner = inner[1:]
    return all(each.is_global and not each.is_multicast for each in inner)


def _decoder(encoding: str) -> Callable[[bytes, int], bytes]:
    """(piece, most bytes wanted) -> decoded bytes; a bomb is decoded no further than the limit."""
    if encoding in ("", "identity"):
        return lambda piece, most: piece
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchError(f"content encoding {encoding}")
    stream = zlib.decompressobj(wbits=47)

    def decode(piece: bytes, most: int) -> bytes:
        try:
            return stream.decompress(piece, most)
        except zlib.error as error:
            raise FetchError("damaged content encoding") from error

    return decode


def _resume(url: str, part: Path, about: Path) -> tuple[int, dict[str, str]]:
    """Bytes that are here already, and the headers that ask for the rest of the same file."""
    try:
        known = json.loads(about.read_text(encoding="utf-8"))
        have = part.stat().st_size
    except (OSError, ValueError):
        return 0, {}
    if not have or not isinstance(known, dict) or known.get("url") != url or not known.get("validator"):
        return 0, {}
    return have, {"Range": f"bytes={have}-", "If-Range": known["validator"]}


def _validator(headers) -> str | None:
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _check_gzip(file: Path) -> None:
    with gzip.open(file) as stream:
        while stream.read(1 << 20):
            pass


def download_all(urls: dict[Path, str], settings: Settings, fetcher: Callable[[Settings], Fetcher] = Fetcher) -> None:
    """Downloads each URL to its path, one after the other, with a bar in bytes.

    Raises FetchError naming the URL and the way out.
    """

    async def all_of_them() -> None:
        async with fetcher(settings) as session:
            for path, url in urls.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                with tqdm(desc=f"Download {path.name}", unit="B", unit_scale=True, mininterval=0.5) as bar:

                    def show(here: int, expected: int | None, bar: tqdm = bar) -> None:
                        bar.total = expected
                        bar.update(here - bar.n)

                    try:
                        await session.download(url, path, show)
                    except FetchError as error:
                        raise FetchError(
                            f"{url} cannot be downloaded: {error.reason}. The same command goes on from what has arrived; or "
                            f"fetch the file in another way and put it into {path.parent}"
                        ) from error

    asyncio.run(all_of_them())
