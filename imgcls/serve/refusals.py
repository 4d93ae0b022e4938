"""What a request is answered with when it cannot be answered with classes."""

from __future__ import annotations

import json


class Refusal(Exception):  # noqa: N818 - to refuse a request is no error of the server
    """A request that is not answered, and why.

    Attributes:
        status: of HTTP, 4xx or 5xx.
        sentence: for the client; one sentence.
        retry_after: seconds after which to try again, where that helps.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, " ".join(sentence.split()), retry_after

    @property
    def body(self) -> bytes:
        """`{"error": sentence}`."""
        return json.dumps({"error": self.sentence}, ensure_ascii=False).encode()
