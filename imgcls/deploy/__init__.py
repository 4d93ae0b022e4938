"""Models in Amazon SageMaker: endpoints, a Lambda function in front of them, and their IAM policies.

Imported by its command only; imports `sweeps`, `launch`, `serve`, `aws` and the layers below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def deploy(run: str | Path, **options: Any) -> None:
    """`python -m imgcls.deploy run=… …` for notebooks and programs.

    Args:
        run: the run folder.
        **options: the command's options, such as `target="rehearsal"` or `max_instances=3`.

    Raises:
        UserError: the run cannot be deployed, AWS refuses, or the endpoint's answers differ from the local model's.
    """
    from imgcls.deploy.__main__ import command

    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    command([f"run={run}", *(f"{name}={text}" for name, text in texts.items())])
