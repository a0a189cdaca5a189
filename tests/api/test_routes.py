"""The router finds the same again, remembers within its bound, and never what was refused."""

from __future__ import annotations

import pytest

from node.api import routes
from node.api.answers import Answer
from node.api.routes import Reply, Route, Router
from node.errors import InvalidRequest, MethodNotAllowed, RouteMissing


async def _nobody(*_: object) -> Answer:
    raise AssertionError("is not called")


def _route(method: str, path: str) -> Route:
    return Route(method, path, _nobody, "", (Reply(200, ""),))


STREAM = _route("GET", "/v1/stores/{store}/streams/{stream}")
APPEND = _route("POST", "/v1/stores/{store}/streams/{stream}")
STORES = _route("GET", "/v1/stores")


@pytest.fixture
def router() -> Router:
    return Router([STREAM, APPEND, STORES])


def test_a_path_leads_to_its_route_and_names_the_first_time_and_later(router: Router) -> None:
    for _ in range(2):
        found = router.find("GET", "/v1/stores/main/streams/a%20b")
        assert found.route is STREAM
        assert found.names() == ["main", "a b"]
        found = router.find("POST", "/v1/stores/main/streams/a%20b")
        assert found.route is APPEND
        assert router.find("HEAD", "/v1/stores").route is STORES


def test_what_is_refused_is_refused_every_time(router: Router) -> None:
    for _ in range(2):
        with pytest.raises(RouteMissing):
            router.find("GET", "/v1/nothing")
        with pytest.raises(MethodNotAllowed):
            router.find("PUT", "/v1/stores")
        with pytest.raises(InvalidRequest):
            router.find("GET", "/v1/stores/MAIN/streams/s").names()


def test_it_remembers_no_more_than_its_bound(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "REMEMBERED_MAX", 3)
    for number in range(10):
        path = f"/v1/stores/main/streams/{number}"
        assert router.find("GET", path).names() == ["main", str(number)]
        assert 1 <= len(router._remembered) <= 3
    long = "/v1/stores/main/streams/" + "x" * routes.REMEMBERED_LENGTH_MAX
    remembered = dict(router._remembered)
    with pytest.raises(InvalidRequest):
        router.find("GET", long).names()
    assert router._remembered == remembered
