"""Rules that find what is wrong with a training, with the names, parameters and defaults of SageMaker Debugger.

A rule is a pure function of a Record, so the same rules watch a run while it trains and check it again afterwards.
Where SageMaker's definition would also fire in a healthy modern training (noisy losses of mini-batches, small gradients
of a network with batch norms), a stricter one is used and the docstring says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from imgcls.debug.observations import Observation, Record

NO_ISSUES, ISSUES, FAILED = "NoIssuesFound", "IssuesFound", "Error"
MAX_NAMED_LAYERS = 8


@dataclass(frozen=True)
class Outcome:
    """The result of checking a rule."""

    rule: str
    status: str = NO_ISSUES
    sentence: str = ""
    """What is wrong, with this run's numbers."""
    advice: str = ""
    """How to fix it."""
    steps: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    datapoints: int = 0
    """Number of values the rule checked."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def as_sagemaker(self) -> dict[str, Any]:
        """The content of the file that SageMaker writes for a rule."""
        violations = len(self.steps) or int(self.status == ISSUES)
        return {
            "RuleTriggered": violations,
            "Violations": violations,
            "Details": {"sentence": self.sentence, "advice": self.advice, "steps": self.steps, "layers": self.layers},
            "Datapoints": self.datapoints,
            "RuleParameters": ", ".join(f"{name}:{value}" for name, value in self.parameters.items()),
        }


class Rule(ABC):
    """A condition that a healthy training does not meet, checked on a Record or a Profile."""

    advice: ClassVar[str]

    @property
    def name(self) -> str:
        """SageMaker's name of the rule."""
        return type(self).__name__

    @abstractmethod
    def find(self, record: Any) -> Outcome:
        """Check `record` and return the outcome."""

    def check(self, record: Any) -> Outcome:
        """Call `find`; a bug in the rule becomes the outcome `Error`."""
        try:
            return self.find(record)
        except Exception as error:  # a rule must never end a training
            return Outcome(self.name, FAILED, f"The rule failed: {type(error).__name__}: {error}")

    def _healthy(self, datapoints: int) -> Outcome:
        return Outcome(self.name, datapoints=datapoints, parameters=asdict(self))  # type: ignore[call-overload]

    def _issue(
        self,
        sentence: str,
        datapoints: int,
        steps: Iterable[int] = (),
        layers: Iterable[str] = (),
        advice: str | None = None,
    ) -> Outcome:
        return Outcome(
            self.name,
            ISSUES,
            sentence,
            self.advice if advice is None else advice,
            tuple(dict.fromkeys(steps)),
            tuple(dict.fromkeys(layers)),
            datapoints,
            asdict(self),  # type: ignore[call-overload]
        )

    def _check_layers(
        self,
        record: Record,
        values: Callable[[Observation], Mapping[str, float]],
        is_wrong: Callable[[float], bool],
        sentence: str,
        patience: int = 1,
    ) -> Outcome:
        """Fires if the value of a layer is wrong in `patience` observations in a row.

        `sentence` may name {count}, {layers} and the word forms {s}, {are} and {do} of all these layers, and {layer},
        {value} and {step} of the first one.
        """
        datapoints, hits = 0, []
        in_a_row: Counter[str] = Counter()
        for observation in record.observations:
            measured = values(observation)
            datapoints += len(measured)
            for layer, value in measured.items():
                in_a_row[layer] = in_a_row[layer] + 1 if is_wrong(value) else 0
                if in_a_row[layer] >= patience:
                    hits.append((observation.step, layer, value))
        if not hits:
            return self._healthy(datapoints)
        layers = list(dict.fromkeys(layer for _, layer, _ in hits))
        forms = {"s": "", "are": "is", "do": "does"} if len(layers) == 1 else {"s": "s", "are": "are", "do": "do"}
        step, layer, value = hits[0]
        text = sentence.format(count=len(layers), layers=some(layers), layer=layer, value=value, step=step, **forms)
        return self._issue(text, datapoints, (step for step, _, _ in hits), layers)


def some(names: Sequence[str]) -> str:
    """The first few of `names`, for a sentence."""
    more = f" and {len(names) - MAX_NAMED_LAYERS} more" if len(names) > MAX_NAMED_LAYERS else ""
    return ", ".join(names[:MAX_NAMED_LAYERS]) + more
