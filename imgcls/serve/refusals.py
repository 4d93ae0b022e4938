"""The answer to a request that cannot be answered with classes."""

from __future__ import annotations

import json


class Refusal(Exception):  # noqa: N818 - refusing a request is not an error of the server
    """Why a request is refused.

    Attributes:
        status: the HTTP status, 4xx or 5xx.
        sentence: one sentence for the client.
        retry_after: seconds until another attempt may succeed; None: it will not.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, " ".join(sentence.split()), retry_after

    @property
    def body(self) -> bytes:
        """`{"error": sentence}`."""
        return json.dumps({"error": self.sentence}, ensure_ascii=False).encode()
