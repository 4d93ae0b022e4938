"""Rules that say what is wrong with a training, by the names, parameters and default thresholds of SageMaker Debugger.

A rule is a pure function of a Record, so the same rules watch a run while it trains and look at it afterwards. Where
SageMaker's definition would also fire in a healthy training of today (noisy losses of mini-batches, small gradients of
a network with batch norms), the stricter reading is taken and the docstring says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from imgcls.debug.observations import Observation, Record

NO_ISSUES, ISSUES, FAILED = "NoIssuesFound", "IssuesFound", "Error"
MOST_LAYERS = 8  # that are named in an outcome


@dataclass(frozen=True)
class Outcome:
    """What a rule found."""

    rule: str
    status: str = NO_ISSUES
    sentence: str = ""
    """What is wrong, in numbers of this run."""
    advice: str = ""
    """What to do about it."""
    steps: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    datapoints: int = 0
    """How many values the rule looked at."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def as_sagemaker(self) -> dict[str, Any]:
        """The content of SageMaker's file of a rule."""
        return {
            "RuleTriggered": len(self.steps) if self.steps else int(self.status == ISSUES),
            "Violations": len(self.steps) if self.steps else int(self.status == ISSUES),
            "Details": {"sentence": self.sentence, "advice": self.advice, "steps": self.steps, "layers": self.layers},
            "Datapoints": self.datapoints,
            "RuleParameters": ", ".join(f"{name}:{value}" for name, value in self.parameters.items()),
        }


class Rule(ABC):
    """A condition that a healthy training does not meet; it looks at a Record, or at a Profile."""

    advice: ClassVar[str]

    @property
    def name(self) -> str:
        """SageMaker's name."""
        return type(self).__name__

    @abstractmethod
    def find(self, record: Any) -> Outcome:
        """What is found in `record`."""

    def check(self, record: Any) -> Outcome:
        """`find`, with a fault of the rule itself as the outcome `Error`."""
        try:
            return self.find(record)
        except Exception as error:  # a rule must never end a training
            return Outcome(self.name, FAILED, f"The rule failed: {type(error).__name__}: {error}")

    def _healthy(self, datapoints: int) -> Outcome:
        return Outcome(self.name, datapoints=datapoints, parameters=asdict(self))  # type: ignore[call-overload]

    def _issue(self, sentence: str, datapoints: int, steps: Iterable[int] = (), layers: Iterable[str] = ()) -> Outcome:
        return Outcome(
            self.name,
            ISSUES,
            sentence,
            self.advice,
            tuple(dict.fromkeys(steps)),
            tuple(dict.fromkeys(layers)),
            datapoints,
            asdict(self),  # type: ignore[call-overload]
        )

    def _layers(
        self,
        record: Record,
        values: Callable[[Observation], Mapping[str, float]],
        wrong: Callable[[float], bool],
        sentence: str,
        in_a_row: int = 1,
    ) -> Outcome:
        """Fires where a layer is wrong `in_a_row` times.

        `sentence` has {count}, {s} and {are} of the layers, and {layer}, {value} and {step} of the first.
        """
        found, runs = [], dict[str, int]()
        for one in record.observations:
            for layer, value in values(one).items():
                runs[layer] = runs.get(layer, 0) + 1 if wrong(value) else 0
                if runs[layer] >= in_a_row:
                    found.append((one.step, layer, value))
        looked_at = sum(len(values(one)) for one in record.observations)
        if not found:
            return self._healthy(looked_at)
        layers = list(dict.fromkeys(layer for _, layer, _ in found))
        step, layer, value = found[0]
        one_only = len(layers) == 1
        number = {"count": len(layers), "s": "" if one_only else "s", "are": "is" if one_only else "are"}
        words = sentence.format(**number, layer=layer, value=value, step=step)
        return self._issue(words, looked_at, (step for step, _, _ in found), layers)


def some(names: Sequence[str]) -> str:
    """The first few of `names`, for a sentence."""
    more = f" and {len(names) - MOST_LAYERS} more" if len(names) > MOST_LAYERS else ""
    return ", ".join(names[:MOST_LAYERS]) + more
