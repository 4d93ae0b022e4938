"""Models in Amazon SageMaker: endpoints, a Lambda function in front, and what AWS must allow for them.

Imported by its own command; imports `sweeps`, `launch`, `serve`, `aws` and what is below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def deploy(run: str | Path, **options: Any) -> None:
    """`python -m imgcls.deploy run=… …` in a notebook or a program.

    Args:
        run: the run's folder.
        **options: of the command, such as `target="rehearsal"` or `max_instances=3`.

    Raises:
        UserError: what cannot be deployed, what AWS refuses, or an endpoint that answers otherwise than the model here.
    """
    from imgcls.deploy.__main__ import command

    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    command([f"run={run}", *(f"{name}={text}" for name, text in texts.items())])
