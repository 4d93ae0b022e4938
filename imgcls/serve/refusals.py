"""The answer to a request that cannot be answered with classes."""

from __future__ import annotations

import json
import os

BATCH = "IMGCLS_BATCH"
"""Set to `true` in a batch transform of SageMaker, which ends a whole job with the first answer that is not 200."""


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

    def in_batch(self) -> bytes | None:
        """The body of an answer with status 200 in a batch: what is wrong with the image; None: it is no batch."""
        if self.status >= 500 or os.environ.get(BATCH) != "true":
            return None
        return json.dumps({"predictions": [{"error": self.sentence}]}, ensure_ascii=False).encode()
