"""What SageMaker reads from a job's log: one regular expression for each value of imgcls's metric line."""

from __future__ import annotations

import re
from collections.abc import Iterable

NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?"  # what `metric_line` writes, without nan and inf
LONGEST_REGEX = 500  # CreateTrainingJob refuses longer ones
MOST_DEFINITIONS = 40  # of a job


def metric_definitions(names: Iterable[str]) -> list[dict[str, str]]:
    """The metric definitions of CreateTrainingJob for the metrics `names`, as `imgcls.rows.metric_line` prints them.

    An epoch in which a metric is not finite has no value of it.

    >>> metric_definitions(["val/loss"])[0]["Name"]
    'val/loss'

    Raises ValueError for more metrics, or longer names, than SageMaker takes.
    """
    definitions = [{"Name": name, "Regex": _regex(name)} for name in dict.fromkeys(names)]
    if len(definitions) > MOST_DEFINITIONS:
        raise ValueError(f"{len(definitions)} metrics, but a job has at most {MOST_DEFINITIONS}")
    for definition in definitions:
        if len(definition["Regex"]) > LONGEST_REGEX:
            raise ValueError(f"the name of the metric {definition['Name']!r} is too long for SageMaker")
    return definitions


def _regex(name: str) -> str:
    return rf"imgcls epoch=[0-9]+ (?:.* )?{re.escape(name)}=({NUMBER})(?:\s|$)"
