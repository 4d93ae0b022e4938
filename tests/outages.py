"""Lets AWS fail at each call of a command, in turn, and checks what the user is told."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from imgcls.errors import UserError
from imgcls.launch.rehearsal.aws import Call


def _refused(code: str, message: str) -> Callable[[Call], Exception]:
    def error(call: Call) -> Exception:
        from botocore.exceptions import ClientError

        response = {
            "Error": {"Code": code, "Message": f"{message} ({call.operation})"},
            "ResponseMetadata": {"HTTPStatusCode": 400},
        }
        return ClientError(response, call.operation)  # type: ignore[arg-type]

    return error


def _unreachable(call: Call) -> Exception:
    from botocore.exceptions import EndpointConnectionError

    return EndpointConnectionError(endpoint_url=f"https://{call.service}.example ({call.operation})")


FAILURES: dict[str, Callable[[Call], Exception]] = {
    "denied": _refused("AccessDeniedException", "User x is not authorized"),
    "throttled": _refused("ThrottlingException", "Rate exceeded"),
    "expired": _refused("ExpiredTokenException", "The security token included in the request is expired"),
    "network": _unreachable,
}
MOST_LINES = 5  # the reason, and what is still billed


def failing(aws: Any, operation: str, kind: str, after: int = 0) -> list[Call]:
    """Let all calls of `operation` but the first `after` fail; the list receives those that have failed."""
    failed: list[Call] = []
    passed = itertools.count()

    def refuse(call: Call) -> None:
        if call.operation == operation and next(passed) >= after:
            failed.append(call)
            raise FAILURES[kind](call)

    aws.refuse = refuse
    return failed


def work(aws: Any) -> None:
    """Let AWS work again."""
    aws.refuse = lambda call: None


def _places(operation: str, count: int) -> int:
    return min(2, count) if operation.startswith("Describe") else 1


def outages(
    aws: Any, command: Callable[[str], object], optional: Collection[str] = (), kinds: Iterable[str] = FAILURES
) -> Iterator[tuple[str, str, str]]:
    """Run `command` once, then with each operation that it has called failing, and each that describes something
    failing from its second call on, too; the kinds of failures take turns.

    Checks that it ends with a `UserError` of few lines which has AWS's words; without an `optional` operation it may
    succeed instead.

    Args:
        aws: the account.
        command: runs it on something new, of this name.
        optional: operations that it can do without.
        kinds: of failures.

    Yields:
        name, operation and message of each error, while AWS works again, and its calls are those of this attempt.
    """
    aws.calls.clear()
    command("n0")
    counts = Counter(call.operation for call in aws.calls if call.who == "person")
    places = [(operation, after) for operation, count in counts.items() for after in range(_places(operation, count))]
    choice = itertools.cycle(kinds)
    for number, (operation, after) in enumerate(places, 1):
        name, kind = f"n{number}", next(choice)
        aws.calls.clear()
        failed = failing(aws, operation, kind, after)
        try:
            command(name)
        except UserError as error:
            message = str(error)
        else:
            message = ""
        finally:
            work(aws)
        where = f"{operation}, call {after + 1}, {kind}: {message!r}"
        if not failed:
            continue  # of the first time only, such as the creation of a bucket
        if operation in optional and not message:
            continue
        assert message, f"{where}: it was not noticed"
        assert operation in message, where
        assert len(message.splitlines()) <= MOST_LINES, where
        assert all(len(line) < 400 for line in message.splitlines()), where
        yield name, operation, message
