"""One request, through whichever node answers."""

import asyncio
import socket

import pytest
from aiohttp import web

from cluster import access
from cluster.access import DEFAULT_URLS, Unreachable, request, url_of, urls_or_default
from cluster.client_errors import OutcomeUnknown
from node.api.limits import ApiLimits
from tests.cluster.fake_http import answering, hanging_up, serving

NOBODY = "http://127.0.0.1:9"
PATH = ("GET", "/v1/info")


async def test_a_node_that_is_down_is_passed_over() -> None:
    async with serving({PATH: (200, {"version": "1"})}) as up:
        reply = await request("GET", [NOBODY, up.url], "/v1/info")
    assert (reply.url, reply.status, reply.body) == (up.url, 200, {"version": "1"})


async def test_a_node_that_cannot_serve_now_is_passed_over() -> None:
    async with (
        serving({PATH: (503, {"code": "not_ready"})}) as busy,
        serving({PATH: (200, {})}) as up,
    ):
        assert (await request("GET", [busy.url, up.url], "/v1/info")).url == up.url
        only = await request("GET", [NOBODY, busy.url], "/v1/info")
        assert (only.status, only.body) == (503, {"code": "not_ready"})


async def test_an_answer_that_is_no_json_object_is_no_answer() -> None:
    async with (
        serving({PATH: (200, "hello")}) as other,
        serving({PATH: (200, [])}) as odd,
        serving({PATH: (200, {})}) as up,
    ):
        reply = await request("GET", [other.url, odd.url, up.url], "/v1/info")
        assert reply.url == up.url


def test_every_page_of_a_node_fits_into_what_is_read() -> None:
    """Also where all that it holds are characters which JSON writes as six."""
    limits = ApiLimits()
    stored = limits.page_bytes_max + limits.body_bytes_max  # the last one is a snapshot
    assert 6 * stored < access.BODY_BYTES_MAX


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_an_answer_without_end_is_read_up_to_a_limit(
    is_chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(asked: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        if is_chunked:
            answer.enable_chunked_encoding()
        else:
            answer.content_length = 1 << 40
        await answer.prepare(asked)
        while True:
            await answer.write(b" " * 65_536)

    monkeypatch.setattr(access, "BODY_BYTES_MAX", 1 << 20)
    async with answering(endless) as url:
        with pytest.raises(Unreachable, match="longer than 1,048,576 bytes") as caught:
            await request("GET", [url], "/v1/info")
    assert caught.value.words == "no node gave an answer that can be read"


async def test_other_refusals_are_answers() -> None:
    async with serving({PATH: (409, {"code": "x"})}) as first, serving({}) as second:
        reply = await request("GET", [first.url, second.url], "/v1/info")
        assert reply.status == 409 and second.asked == []


async def test_silence_is_told_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = "http://{}:{}".format(*silent.getsockname())
        with pytest.raises(Unreachable, match=f"^{url}: no answer in time$"):
            await request("GET", [url], "/v1/info", timeout_s=0.2)


@pytest.mark.parametrize("silent", [1, 2])
async def test_all_nodes_together_take_no_longer_than_they_may(silent: int) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        url = "http://{}:{}".format(*frozen.getsockname())
        async with serving({PATH: (200, {})}) as up:
            urls = [*[url] * silent, up.url]
            began = loop.time()
            reply = await request("GET", urls, "/v1/info", timeout_s=2, together=True)
            assert reply.url == up.url and loop.time() - began < 2
        began = loop.time()
        with pytest.raises(Unreachable, match="no answer in time"):
            await request("GET", [url, *urls[:-1]], "/v1/info", timeout_s=1, together=True)
        assert loop.time() - began < 1.9


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_a_change_whose_answer_is_lost_is_open(method: str) -> None:
    change = (method, "/v1/info")
    busy = {"code": "no_leader", "detail": "there is none"}
    async with hanging_up() as lost, serving({change: (503, busy)}) as refusing:
        for others in ([], [NOBODY], [refusing.url]):
            with pytest.raises(OutcomeUnknown) as caught:
                await request(method, [lost, *others], "/v1/info")
            assert caught.value.code == "outcome_unknown" and caught.value.stored
            assert lost in caught.value.detail
        assert f"{refusing.url}: there is none" in caught.value.detail
        with pytest.raises(Unreachable):
            await request("GET", [lost, NOBODY], "/v1/info")


async def test_an_answer_tells_whether_an_earlier_try_may_have_been_carried_out() -> None:
    change = ("DELETE", "/v1/info")
    async with hanging_up() as lost, serving({change: (404, {"code": "none"})}) as up:
        assert (await request("DELETE", [lost, up.url], "/v1/info")).perhaps_stored
        assert not (await request("DELETE", [NOBODY, up.url], "/v1/info")).perhaps_stored


async def test_a_change_that_was_sent_to_nobody_is_certainly_not_stored() -> None:
    change = ("PUT", "/v1/info")
    async with serving({change: (503, {"code": "no_leader"})}) as refusing:
        reply = await request("PUT", [refusing.url, NOBODY], "/v1/info")
    assert (reply.status, reply.perhaps_stored) == (503, False)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        url = "http://{}:{}".format(*full.getsockname())
        with socket.create_connection(full.getsockname()):  # and nobody else is let in
            for together in (True, False):
                with pytest.raises(Unreachable):
                    await request("PUT", [url], "/v1/info", timeout_s=0.2, together=together)


async def test_where_nobody_answers_every_reason_is_told() -> None:
    with pytest.raises(Unreachable) as caught:
        await request("GET", [NOBODY, "http://127.0.0.1:10"], "/v1/info", timeout_s=2)
    assert set(caught.value.reasons) == {NOBODY, "http://127.0.0.1:10"}
    assert set(caught.value.reasons.values()) == {"Connection refused"}


async def test_what_is_wrong_with_tls_is_told_in_its_own_words() -> None:
    async with serving({}) as plain:
        url = plain.url.replace("http:", "https:")
        with pytest.raises(Unreachable, match="wrong version number"):
            await request("GET", [url], "/v1/info")


def test_addresses_come_from_options_then_the_environment_then_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("EX_ESDB_URL", raising=False)
    assert urls_or_default(None) == list(DEFAULT_URLS)
    monkeypatch.setenv("EX_ESDB_URL", "http://a:1/, b:2")
    assert urls_or_default(None) == ["http://a:1", "http://b:2"]
    assert urls_or_default(["http://c:3"]) == ["http://c:3"]


@pytest.mark.parametrize("text", ["ftp://a:1", "http://", "a:b", "http://a:70000", "a:0"])
def test_what_is_no_address_is_said_before_anybody_is_asked(text: str) -> None:
    with pytest.raises(ValueError, match="is no address of a node"):
        url_of(text)
