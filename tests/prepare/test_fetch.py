"""Fetching from servers that misbehave in every way we know, all of them on this machine."""

import asyncio
import gzip
import ipaddress
import json
import socket
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

from recbole_vlm2rec.prepare.fetch import Fetcher, FetchError, _is_public, download_all
from recbole_vlm2rec.prepare.settings import Settings

LOCAL = Settings(allow_private=True, timeout=0.3, retries=3, max_bytes=10_000)


class Server:
    """Routes by name, on a port of its own; `asked` are the requests that came."""

    def __init__(self, **routes):
        self.routes, self.asked = routes, []

    async def __aenter__(self):
        async def answer(request):
            self.asked.append(request)
            return await self.routes[request.match_info["name"]](request)

        app = web.Application()
        app.router.add_get("/{name}", answer)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()


def fetch(path, settings=LOCAL, **routes):
    """(body, number of requests) of /path."""

    async def run():
        async with Server(**routes) as server, Fetcher(settings, backoff=0.001) as fetcher:
            return await fetcher.get(f"{server.url}/{path}"), len(server.asked)

    return asyncio.run(run())


def refused(path, settings=LOCAL, **routes):
    with pytest.raises(FetchError) as error:
        fetch(path, settings, **routes)
    return error.value.reason


def answering(*answers):
    """One answer after the other, the last one for ever; an answer is a status, a body, or a response to be made."""
    left = list(answers)

    async def handler(_):
        answer = left.pop(0) if len(left) > 1 else left[0]
        if callable(answer):
            return answer()
        return web.Response(status=answer) if isinstance(answer, int) else web.Response(body=answer)

    return handler


def test_a_body():
    assert fetch("a", a=answering(b"body")) == (b"body", 1)


@pytest.mark.parametrize("answers, requests", [((500, 500, b"ok"), 3), ((429, b"ok"), 2), ((503, b"ok"), 2), ((408, b"ok"), 2)])
def test_what_may_pass_is_tried_again(answers, requests):
    assert fetch("a", a=answering(*answers)) == (b"ok", requests)


@pytest.mark.parametrize("status, requests", [(404, 1), (403, 1), (410, 1), (500, 4), (429, 4), (204, 1)])
def test_a_status_is_the_reason_and_only_some_are_tried_again(status, requests):
    async def run():
        async with Server(a=answering(status)) as server, Fetcher(LOCAL, backoff=0.001) as fetcher:
            with pytest.raises(FetchError) as error:
                await fetcher.get(f"{server.url}/a")
            return error.value.reason, len(server.asked)

    assert asyncio.run(run()) == (str(status), requests)


@pytest.mark.parametrize("said", [
    lambda: "0.2",
    lambda: format_datetime(datetime.now(timezone.utc) + timedelta(seconds=1.2), usegmt=True),
])  # fmt: skip
def test_retry_after_makes_the_whole_host_wait(said):
    first = lambda: web.Response(status=429, headers={"Retry-After": said()})  # noqa: E731  (an answer to a request, read where it is used)

    async def run():
        async with Server(a=answering(first, b"ok"), b=answering(b"ok")) as server, Fetcher(LOCAL, backoff=0.0001) as fetcher:
            start = time.monotonic()
            one = asyncio.create_task(fetcher.get(f"{server.url}/a"))
            while not server.asked:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            await fetcher.get(f"{server.url}/b")
            other = time.monotonic() - start
            return await one, other

    body, waited = asyncio.run(run())
    assert body == b"ok" and waited > 0.1


def test_no_server_makes_us_wait_longer_than_allowed():
    start = time.monotonic()
    late = lambda: web.Response(status=429, headers={"Retry-After": "9999"})  # noqa: E731  (an answer to a request, read where it is used)
    assert fetch("a", replace(LOCAL, max_wait=0.05), a=answering(late, b"ok"))[0] == b"ok"
    assert time.monotonic() - start < 5


def test_a_server_that_hangs_is_given_up():
    async def hang(_):
        await asyncio.sleep(30)

    assert refused("a", replace(LOCAL, timeout=0.05, retries=1), a=hang) == "timed out"


def test_a_server_that_drips_is_given_up():
    async def drip(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x")
            await asyncio.sleep(0.02)

    assert refused("a", replace(LOCAL, timeout=0.03, retries=0), a=drip) == "timed out"


@pytest.mark.parametrize("location, reason", [
    ("file:///etc/passwd", "redirects to file: is not http or https"), ("ftp://host/x", "redirects to ftp: is not http or https"),
    ("javascript:alert(1)", "redirects to javascript: is not http or https"), ("", "redirects to nowhere"),
    ("http://[::1", "redirects to not a URL"), ("/a", "redirects in a circle"),
])  # fmt: skip
def test_redirects_that_are_not_followed(location, reason):
    assert refused("a", a=answering(lambda: web.Response(status=302, headers={"Location": location}))) == reason


def test_redirects_are_followed_but_not_for_ever():
    def to(name):
        return answering(lambda: web.Response(status=301, headers={"Location": f"/{name}"}))

    assert fetch("a", a=to("b"), b=to("c"), c=answering(b"end")) == (b"end", 3)
    chain = {f"n{number}": to(f"n{number + 1}") for number in range(10)}
    assert refused("n0", **chain) == "more than 5 redirects"


@pytest.mark.parametrize("url", [
    "http://127.0.0.1/x", "http://localhost/x", "http://10.0.0.1/x", "http://192.168.1.1/x", "http://169.254.169.254/latest",
    "http://[::1]/x", "http://[::ffff:127.0.0.1]/x", "http://[fd00::1]/x", "http://[fe80::1]/x", "http://0.0.0.0/x",
    "http://2130706433/x", "http://0x7f000001/x", "http://017700000001/x", "http://127.1/x", "http://[64:ff9b::7f00:1]/x",
    "http://[2002:7f00:1::]/x", "http://user:word@127.0.0.1/x", "http://224.0.0.1/x",
])  # fmt: skip
def test_private_addresses_are_not_asked(url):
    async def run():
        async with Fetcher(replace(LOCAL, allow_private=False, retries=0), backoff=0) as fetcher:
            await fetcher.get(url)

    with pytest.raises(FetchError) as error:
        asyncio.run(run())
    # aiohttp itself refuses addresses that are written in other ways than usual.
    unusual = url.split("/")[2] in ("2130706433", "0x7f000001", "017700000001", "127.1")
    assert error.value.reason.startswith("private address") or (unusual and error.value.reason == "not a URL")
    assert not error.value.transient


class Names(AbstractResolver):
    """Says of any name that it is here."""

    async def resolve(self, host, port=0, family=0):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self):
        pass


def test_a_public_name_of_a_private_address_is_not_asked_even_after_a_redirect():
    async def run():
        async with Server(a=answering(b"secret")) as server:
            url = server.url.replace("127.0.0.1", "pictures.example.com") + "/a"
            settings = replace(LOCAL, allow_private=False)
            async with Fetcher(settings, backoff=0, resolver=Names()) as fetcher:
                with pytest.raises(FetchError, match="private address 127.0.0.1"):
                    await fetcher.get(url)
            asked = len(server.asked)
            async with Fetcher(LOCAL, backoff=0, resolver=Names()) as fetcher:
                return asked, await fetcher.get(url)

    assert asyncio.run(run()) == (0, b"secret")


def test_a_redirect_to_a_private_address_is_not_followed():
    fetcher = Fetcher(replace(LOCAL, allow_private=False))
    start = fetcher._checked("http://pictures.example.com/a")
    for target in ("http://127.0.0.1/x", "//169.254.169.254/latest", "http://[::1]/"):
        with pytest.raises(FetchError, match="redirects to private address"):
            fetcher._checked(target, start)
    assert str(fetcher._checked("../b?c=d", start)) == "http://pictures.example.com/b?c=d"


def test_public_addresses_are_public():
    for address in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"):
        assert _is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "no url", "", "http://", "//host/x", "http://[::1"])
def test_what_is_no_web_address(url):
    async def run():
        async with Fetcher(LOCAL, backoff=0) as fetcher:
            await fetcher.get(url)

    with pytest.raises(FetchError, match="not http or https|not a URL"):
        asyncio.run(run())


def test_blanks_and_letters_of_any_script_in_urls():
    async def seen(request):
        return web.Response(text=request.match_info["name"])

    app_name = "ä b,日"

    async def run():
        async with Server(**{app_name: seen}) as server, Fetcher(LOCAL) as fetcher:
            return await fetcher.get(f"{server.url}/{app_name}")

    assert asyncio.run(run()).decode() == app_name


async def raw_server(answer, close=True):
    """A server that sends these bytes whatever is asked."""

    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if close:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"


PACKED = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("answer, close, expected", [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", True, "cut short"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", False, "timed out"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nlonger than it says", True, "connection lost"),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nno length", True, b"no length"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", True, "cut short"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", True, "more than 10000 bytes"),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 20_000, True, "more than 10000 bytes"),
    (PACKED % b"gzip" + gzip.compress(b"0" * 10**7), True, "more than 10000 bytes"),
    (PACKED % b"gzip" + gzip.compress(b"body"), True, b"body"),
    (PACKED % b"gzip" + b"no gzip", True, "damaged content encoding"),
    (PACKED % b"br" + b"body", True, "content encoding br"),
    (b"", True, "connection lost"),
    (b"no http at all\r\n\r\n", True, "connection lost"),
])  # fmt: skip
def test_servers_that_lie(answer, close, expected):
    async def run():
        server, url = await raw_server(answer, close)
        try:
            async with Fetcher(replace(LOCAL, timeout=0.1, retries=1), backoff=0.001) as fetcher:
                return await fetcher.get(url)
        except FetchError as error:
            return error.reason
        finally:
            server.close()

    assert asyncio.run(run()) == expected


def test_nobody_at_home():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"

        async def run():
            async with Fetcher(replace(LOCAL, retries=1), backoff=0.001) as fetcher:
                await fetcher.get(url)

        with pytest.raises(FetchError, match="cannot connect"):
            asyncio.run(run())


def test_at_most_so_many_at_one_host_and_never_sooner_than_the_pause():
    now = most = 0
    starts = []

    async def watched(_):
        nonlocal now, most
        starts.append(time.monotonic())
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return web.Response(body=b"x")

    async def run(settings):
        async with Server(a=watched) as server, Fetcher(settings) as fetcher:
            await asyncio.gather(*(fetcher.get(f"{server.url}/a") for _ in range(12)))

    asyncio.run(run(replace(LOCAL, per_host=3, timeout=5)))
    assert most == 3
    starts.clear()
    asyncio.run(run(replace(LOCAL, per_host=3, pause=0.02, timeout=5)))
    assert starts[-1] - starts[0] > 11 * 0.02 * 0.9


def ranged(content, tag='"one"', cut_at=None, ranges=True):
    """A file with ranges; its first answer breaks off after `cut_at` bytes."""
    cuts = [] if cut_at is None else [cut_at]

    async def handler(request):
        start, status, headers = 0, 200, {"ETag": tag}
        wanted = request.headers.get("Range")
        if wanted and ranges and request.headers.get("If-Range") == tag:
            start, status = int(wanted[6:-1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(content) - start
        await response.prepare(request)
        if cuts:
            await response.write(content[start : cuts.pop()])
            await asyncio.sleep(0.01)
            request.transport.close()
            return response
        await response.write(content[start:])
        return response

    return handler


def download(tmp_path, settings=LOCAL, name="file.bin", progress=None, **routes):
    async def run():
        async with Server(**routes) as server, Fetcher(settings, backoff=0.001) as fetcher:
            # The port may change between two calls; what was begun belongs to a URL.
            about = tmp_path / f"{name}.part.json"
            if about.exists():
                known = json.loads(about.read_text())
                about.write_text(json.dumps({**known, "url": f"{server.url}/a"}))
            await fetcher.download(f"{server.url}/a", tmp_path / name, progress)
            return server.asked

    return asyncio.run(run())


CONTENT = bytes(range(256)) * 2000


def test_a_download_that_breaks_off_goes_on_where_it_stopped(tmp_path):
    shown = []
    asked = download(tmp_path, progress=lambda *said: shown.append(said), a=ranged(CONTENT, cut_at=100_000))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [request.headers.get("Range") for request in asked] == [None, "bytes=100000-"]
    assert shown[-1] == (len(CONTENT), len(CONTENT)) and (100_000, len(CONTENT)) in shown
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]


def test_a_later_command_goes_on_too(tmp_path):
    with pytest.raises(FetchError, match="cut short"):
        download(tmp_path, replace(LOCAL, retries=0), a=ranged(CONTENT, cut_at=100_000))
    assert (tmp_path / "file.bin.part").stat().st_size == 100_000 and not (tmp_path / "file.bin").exists()
    asked = download(tmp_path, a=ranged(CONTENT))
    assert asked[0].headers["Range"] == "bytes=100000-" and (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("second", [{"tag": '"two"'}, {"ranges": False}])
def test_a_changed_file_or_a_server_without_ranges_begins_anew(tmp_path, second):
    with pytest.raises(FetchError):
        download(tmp_path, replace(LOCAL, retries=0), a=ranged(CONTENT, cut_at=100_000))
    other = CONTENT[::-1]
    download(tmp_path, a=ranged(other, **second))
    assert (tmp_path / "file.bin").read_bytes() == other


def test_a_gzip_file_must_be_whole(tmp_path):
    whole = gzip.compress(CONTENT)
    with pytest.raises(FetchError, match="not a whole gzip file"):
        download(tmp_path, name="x.gz", a=answering(whole[:-20]))
    assert not list(tmp_path.iterdir())
    download(tmp_path, name="x.gz", a=answering(whole))
    assert (tmp_path / "x.gz").read_bytes() == whole


def test_download_all_names_url_and_way_out(tmp_path):
    url = "http://127.0.0.1:9/none.gz"
    with pytest.raises(FetchError) as error:
        download_all({tmp_path / "raw" / "none.gz": url}, replace(LOCAL, retries=0))
    assert url in str(error.value) and "goes on from what has arrived" in str(error.value)
    assert f"put it into {tmp_path / 'raw'}" in str(error.value)
