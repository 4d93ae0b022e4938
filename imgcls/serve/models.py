"""The models of a server: several by their names, added and removed while it runs, with a share for a canary."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from functools import partial

from imgcls.errors import UserError
from imgcls.serve.current import Current
from imgcls.serve.predictor import Predictor
from imgcls.serve.refusals import Refusal
from imgcls.serve.service import Service

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,62}", re.ASCII)


class Models:
    """Models by name, the oldest first. Requests that name none get the newest, or the one before it.

    Args:
        models: at least one.
        load: loads the model of a folder, for `add`; None: none can be added.
        canary: the share of the requests without a name that the newest gets, where there are several.
    """

    def __init__(
        self, models: Mapping[str, Current], load: Callable[[str], Predictor] | None = None, canary: float = 1.0
    ) -> None:
        self._models, self._load, self._canary = dict(models), load, canary
        self._asked = 0

    @property
    def names(self) -> list[str]:
        """The oldest first."""
        return list(self._models)

    @property
    def service(self) -> Service:
        """That of the newest model."""
        return self.find(self.names[-1]).service

    def find(self, name: str) -> Current:
        """The model `name`. Raises Refusal, 404, if there is none."""
        if name not in self._models:
            raise Refusal(404, f"There is no such model. Models: {', '.join(self._models)}.")
        return self._models[name]

    def choose(self) -> str:
        """The name of the model for the next request without one; the shares hold for any number of requests."""
        self._asked += 1
        gets_newest = int(self._asked * self._canary) > int((self._asked - 1) * self._canary)
        return self.names[-1 if gets_newest or len(self._models) == 1 else -2]

    async def reload(self) -> None:
        """Load all models again. Raises Refusal, 409, if one cannot be loaded; its old one stays."""
        for current in list(self._models.values()):
            await current.reload()

    async def add(self, name: str, folder: str) -> None:
        """Load the model in `folder`, which then is the newest. Raises Refusal."""
        if not NAME.fullmatch(name):
            raise Refusal(400, "The name of a model has up to 63 letters, digits, dots, hyphens and underscores.")
        if self._load is None or name in self._models:
            raise Refusal(409, f"There is a model {name} already." if self._load else "No model can be added.")
        try:
            predictor = await asyncio.to_thread(self._load, folder)
        except UserError as error:
            log.error("The model was not loaded: %s", error)
            raise Refusal(400, "The model was not loaded; see the server's log.") from error
        limits, metrics = self.service.limits, self.service.metrics
        self._models[name] = Current(Service(predictor, limits, metrics), partial(self._load, folder))

    async def remove(self, name: str) -> None:
        """Remove a model after the last answer to a request that has begun. Raises Refusal."""
        leaving = self.find(name)
        if len(self._models) == 1:
            raise Refusal(409, "The last model cannot be removed.")
        del self._models[name]
        await leaving.drain()

    async def close(self) -> None:
        """Finish the accepted requests, then end the threads."""
        for current in self._models.values():
            await current.close()
