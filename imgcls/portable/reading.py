"""Decodes many images in threads, a few batches ahead of the model that needs them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from imgcls.images.decoding import BadPicture
from imgcls.images.preprocessing import Preprocessing
from imgcls.system.machine import own_cores

BATCH = 32
BATCHES_AHEAD = 4  # decoded before they are needed


def read_batches(
    files: Sequence[str], preprocessing: Preprocessing, batch_size: int | None = None
) -> Generator[tuple[Sequence[str], list[np.ndarray | str]], None, None]:
    """Files in batches, in their order, each file with its pixels.

    The pixels are uint8 (S, S, 3) from `preprocessing.pixels`; or the reason why the image cannot be read.
    """

    def read(file: str) -> np.ndarray | str:
        try:
            return preprocessing.pixels(preprocessing.open(file))
        except BadPicture as error:
            return str(error)

    batch_size = batch_size or BATCH
    starts = iter(range(0, len(files), batch_size))
    with ThreadPoolExecutor(own_cores(), thread_name_prefix="imgcls-read") as pool:
        pending: deque[tuple[Sequence[str], list[Future[np.ndarray | str]]]] = deque()

        def submit(batches: int) -> None:
            for start in itertools.islice(starts, batches):
                batch = files[start : start + batch_size]
                pending.append((batch, [pool.submit(read, file) for file in batch]))

        try:
            submit(BATCHES_AHEAD)
            while pending:
                batch, futures = pending.popleft()
                pixels = [future.result() for future in futures]
                submit(1)
                yield batch, pixels
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
