"""What can go wrong for a client, as one tree.

    ClientError
    ├── Refused             a definite no: the request is wrong, or the state is not as it says
    │   ├── WrongExpectedVersion, EventIdReused, NotFound, Deleted
    │   ├── SubscriptionExists
    │   └── InvalidRequest
    ├── LineageChanged      the cluster goes on in another history; nothing was stored
    ├── Unavailable         no node could take it in time; certainly not stored
    └── OutcomeUnknown      a change was sent and its answer never came; perhaps stored

Two questions matter to whoever catches one. `stored`: may the change be in the store? And `retry`:
can the same call succeed later, as it is? After `OutcomeUnknown` repeat an append with the same
events: their ids make sure that they are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ClientError(Exception):
    """Something went wrong. `code` is the API's, `fields` are the members of its problem."""

    retry: ClassVar[bool] = False

    def __init__(
        self, detail: str, code: str = "", fields: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.fields = dict(fields or {})
        self.stored = False

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.code else self.detail


class Refused(ClientError):
    """A definite no."""


class InvalidRequest(Refused):
    """The request breaks a rule or a limit of the API."""


class WrongExpectedVersion(Refused):
    """The stream is not where the writer expected it: read it again, then decide."""

    @property
    def stream(self) -> str:
        """The stream that differs."""
        return str(self.fields.get("stream", ""))

    @property
    def current(self) -> int:
        """The version it has; -1 if it does not exist."""
        return int(self.fields.get("current", -1))


class EventIdReused(Refused):
    """An event id is stored already, with other content or elsewhere."""


class NotFound(Refused):
    """There is no such store, stream, checkpoint or subscription."""


class SubscriptionExists(Refused):
    """There is a subscription of this name that differs in what cannot be changed."""

    @property
    def field(self) -> str:
        """What differs: "wanted" or "start_after"."""
        return str(self.fields.get("field", ""))


class Deleted(Refused):
    """The stream was deleted for ever."""


class LineageChanged(ClientError):
    """An operator had the cluster go on without members, and it follows another lineage than that
    of the position to go on from. Read from the start: other events may stand where some were."""

    @property
    def before(self) -> str:
        """The lineage that the position is of."""
        return str(self.fields.get("before", ""))

    @property
    def now(self) -> str:
        """The one that the cluster follows."""
        return str(self.fields.get("now", ""))


class Unavailable(ClientError):
    """No node could serve the request within its time."""

    retry = True


class OutcomeUnknown(ClientError):
    """Whether a change was stored could not be learned within its time."""

    retry = True

    def __init__(
        self, detail: str, code: str = "", fields: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(detail, code, fields)
        self.stored = True


_BY_CODE: dict[str, type[ClientError]] = {
    "wrong_expected_version": WrongExpectedVersion,
    "event_id_reused": EventIdReused,
    "stream_deleted": Deleted,
    "subscription_exists": SubscriptionExists,
    "outcome_unknown": OutcomeUnknown,
}
_BY_STATUS: dict[int, type[ClientError]] = {
    400: InvalidRequest,
    404: NotFound,
    408: Unavailable,
    413: InvalidRequest,
    429: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def of_problem(status: int, problem: object) -> ClientError:
    """The error that a problem answer tells of; a proxy's may be no object, and tells nothing."""
    problem = problem if isinstance(problem, Mapping) else {}
    code = str(problem.get("code", ""))
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, Unavailable if status >= 500 else Refused)
    return kind(str(problem.get("detail", f"HTTP status {status}")), code, problem)
