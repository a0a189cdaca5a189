"""One request, through whichever node answers."""

import socket

import pytest

from cluster.access import DEFAULT_URLS, Unreachable, request, url_of, urls_or_default
from tests.cluster.fake_http import serving

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


async def test_other_refusals_are_answers() -> None:
    async with serving({PATH: (409, {"code": "x"})}) as first, serving({}) as second:
        reply = await request("GET", [first.url, second.url], "/v1/info")
        assert reply.status == 409 and second.asked == []


async def test_silence_is_told_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = "http://{}:{}".format(*silent.getsockname())
        with pytest.raises(Unreachable, match=f"^{url}: no answer in time$"):
            await request("GET", [url], "/v1/info", timeout_s=0.2)


async def test_where_nobody_answers_every_reason_is_told() -> None:
    with pytest.raises(Unreachable) as caught:
        await request("GET", [NOBODY, "http://127.0.0.1:10"], "/v1/info", timeout_s=2)
    assert set(caught.value.reasons) == {NOBODY, "http://127.0.0.1:10"}
    assert set(caught.value.reasons.values()) == {"Connection refused"}


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
