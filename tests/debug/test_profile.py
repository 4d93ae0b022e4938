"""Every profile rule on series with a known outcome, and the files in SageMaker's formats."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hydra.utils import instantiate

import imgcls
from imgcls.callbacks.timing import StepTime
from imgcls.debug.profile import Profile, quantile, read_profile, summary, write_profile, write_steps
from imgcls.debug.profile_rules import LoadBalancing, LowGPUUtilization
from imgcls.debug.rules import ISSUES, NO_ISSUES, Rule
from imgcls.debug.sampler import Sample, SystemSampler, read_samples, write_samples

RULES: dict[str, Rule] = instantiate(imgcls.compose([]).debug.profile_rules, _convert_="all")
INFORMATIVE = ("OverallSystemUsage", "OverallFrameworkMetrics")
COUNT = 2000


def samples(
    gpu: list[float] | None = None,
    gpu_memory: list[float] | None = None,
    cpu: tuple[float, ...] = (95.0, 80.0),
    io_wait: float = 0.0,
    count: int = COUNT,
) -> tuple[Sample, ...]:
    """`gpu` and `gpu_memory` of one GPU, repeated to `count` samples half a second apart."""
    gpu, gpu_memory = gpu or [95.0], gpu_memory or [80.0]
    return tuple(
        Sample(
            1_600_000_000.0 + place / 2,
            cpu=cpu,
            io_wait=io_wait,
            memory=40.0,
            gpu=(gpu[place % len(gpu)],),
            gpu_memory=(gpu_memory[place % len(gpu_memory)],),
        )
        for place in range(count)
    )


def steps(count: int = 200, wait: float = 0.001, slow: int = 0) -> tuple[StepTime, ...]:
    """Steps of a tenth of a second and the `wait`; the first `slow` take two seconds more."""
    return tuple(StepTime(place, place / 10, wait, 0.03 + 2 * (place < slow), 0.06, 0.01) for place in range(count))


def two_gpus(second: float) -> tuple[Sample, ...]:
    return tuple(Sample(place / 2, (50.0,), gpu=(95.0, second), gpu_memory=(50.0, 50.0)) for place in range(COUNT))


HEALTHY = Profile(
    samples(),
    steps(),
    {"initialisation": 30.0, "training": 900.0},
    {"workers": 8, "cores": 8, "held": "none", "store": "none", "batch_size": 64},
)
rising = [50.0 + 20.0 * place / COUNT for place in range(COUNT)]
SICK = {
    "LowGPUUtilization": Profile(samples(gpu=[40.0])),
    "CPUBottleneck": Profile(samples(gpu=[5.0], cpu=(99.0, 10.0))),
    "IOBottleneck": Profile(samples(gpu=[5.0], io_wait=60.0)),
    "BatchSize": Profile(samples(gpu=[40.0], gpu_memory=[20.0], cpu=(10.0, 30.0)), loader={"batch_size": 32}),
    "GPUMemoryIncrease": Profile(samples(gpu_memory=rising)),
    "LoadBalancing": Profile(two_gpus(15.0)),
    "StepOutlier": Profile(steps=steps(slow=11)),
    "MaxInitializationTime": Profile(phases={"initialisation": 1201.0}),
    "Dataloader": Profile(steps=steps(wait=0.1), loader={"workers": 1, "cores": 8, "held": "none", "store": "none"}),
}


@pytest.mark.parametrize("name", RULES)
def test_a_healthy_run_has_no_issues(name: str) -> None:
    outcome = RULES[name].check(HEALTHY)
    assert outcome.status == NO_ISSUES, outcome.sentence
    assert outcome.datapoints > 0
    assert bool(outcome.sentence) == (name in INFORMATIVE)


@pytest.mark.parametrize("name", [name for name in RULES if name not in INFORMATIVE])
def test_a_sick_run_is_detected(name: str) -> None:
    outcome = RULES[name].check(SICK[name])
    assert outcome.status == ISSUES, outcome.sentence
    assert outcome.advice.endswith(".")


@pytest.mark.parametrize(
    ("name", "nearly"),
    [
        ("CPUBottleneck", Profile(samples(gpu=[5.0, 50.0], cpu=(99.0,)))),  # exactly half the samples
        ("IOBottleneck", Profile(samples(gpu=[5.0], io_wait=50.0))),
        ("BatchSize", Profile(samples(gpu=[40.0], gpu_memory=[75.0], cpu=(10.0,)))),
        ("GPUMemoryIncrease", Profile(samples(gpu_memory=[50.0 + 9.0 * place / COUNT for place in range(COUNT)]))),
        ("LoadBalancing", Profile(two_gpus(93.0))),
        ("StepOutlier", Profile(steps=steps(slow=10))),
        ("MaxInitializationTime", Profile(phases={"initialisation": 1199.0})),
        ("Dataloader", Profile(steps=steps(wait=0.01), loader={"workers": 1, "cores": 8})),
        ("Dataloader", Profile(steps=steps(wait=0.1)[:40], loader={"workers": 1, "cores": 8})),  # 4 s in all
        ("LowGPUUtilization", Profile(samples(gpu=[40.0], count=1000))),  # only warm-up
    ],
)
def test_just_below_the_threshold_is_no_issue(name: str, nearly: Profile) -> None:
    assert RULES[name].check(nearly).status == NO_ISSUES


def test_sentences_hold_the_numbers_of_the_run() -> None:
    waiting = RULES["Dataloader"].check(SICK["Dataloader"])
    assert "waited for images during 50% of each step" in waiting.sentence
    assert "data.store=memory would save up to 50%" in waiting.advice
    assert "1 threads on 8 cores" in waiting.advice
    assert "data.batch_size=64 (now 32)" in RULES["BatchSize"].check(SICK["BatchSize"]).advice
    assert RULES["StepOutlier"].check(SICK["StepOutlier"]).steps == tuple(range(11))
    fluctuating = LowGPUUtilization(patience=0).check(Profile(samples(gpu=[95.0] * 9 + [2.0])))
    assert "in 4 its utilisation fluctuated" in fluctuating.sentence
    apart = LoadBalancing(patience=0, threshold=0.8).check(Profile(two_gpus(15.0)))
    assert f"{math.sqrt(math.log(2)):.2f} apart" in apart.sentence
    assert "data wait 1%" in RULES["OverallFrameworkMetrics"].check(HEALTHY).sentence
    assert "CPU 88%" in RULES["OverallSystemUsage"].check(HEALTHY).sentence


WAITING = {"IOBottleneck": samples(gpu=[5.0], io_wait=60.0), "CPUBottleneck": samples(gpu=[5.0], cpu=(99.0,))}


@pytest.mark.parametrize("rule", ["Dataloader", "LowGPUUtilization", "StepOutlier", *WAITING])
@pytest.mark.parametrize(
    ("loader", "text"),
    [
        ({"store": "auto", "held": "memory"}, "already decoded and in memory"),
        ({"store": "memory", "held": "memory"}, "already decoded and in memory"),
        ({"store": "auto", "held": "features"}, "features of the frozen backbone"),
        ({"store": "auto", "held": "disk"}, "read from disk; data.store=memory would save"),
        ({"store": "auto", "held": "none"}, "neither disk nor memory has room"),
        ({"store": "none", "held": "none"}, "data.store=memory would save"),
        ({}, "data.store=memory would save"),
    ],
    ids=str,
)
def test_no_advice_proposes_what_the_run_already_does(rule: str, loader: dict[str, str], text: str) -> None:
    slow = [StepTime(place, place / 10, 2.0 if place < 11 else 0.1, 0.03, 0.06, 0.01) for place in range(200)]
    profile = Profile(WAITING.get(rule, samples(gpu=[40.0])), tuple(slow), loader=loader)
    outcome = RULES[rule].check(profile)
    assert outcome.status == ISSUES
    assert text in outcome.advice
    if loader.get("held") in ("memory", "features"):
        assert "data.store" not in outcome.advice


def test_samples_are_written_as_sagemaker_does(tmp_path: Path) -> None:
    written = samples(count=3)
    write_samples(tmp_path, written)
    file = next(tmp_path.glob("system/incremental/2020091312/*.algo-1.json"))
    first = json.loads(file.read_text().splitlines()[0])
    assert first == {
        "Type": "cpu",
        "Name": "cpu0",
        "Dimension": "CPUUtilization",
        "Value": 95.0,
        "NodeId": "algo-1",
        "Timestamp": 1_600_000_000.0,
    }
    assert tuple(read_samples(tmp_path)) == written
    file.write_text(file.read_text()[:-20])  # another program's writer was killed
    assert len(read_samples(tmp_path)) == 3


def test_a_sagemaker_jobs_profile_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "system" / "incremental" / "2023010100"
    folder.mkdir(parents=True)
    lines = []
    for place in range(1200):
        for kind, name, dimension, value in (
            ("cpu", "cpu0", "CPUUtilization", 99),
            ("cpu", "cpu10", "CPUUtilization", 1),
            ("cpu", "cpu2", "CPUUtilization", 2),
            ("gpu", "gpu0", "GPUUtilization", 3),
            ("gpu", "gpu0", "GPUMemoryUtilization", 4),
            ("memory", "", "MemoryUsedPercent", 5),
        ):
            event = {"Type": kind, "Name": name, "Dimension": dimension, "Value": value, "NodeId": "algo-1"}
            lines.append(json.dumps({**event, "Timestamp": 1672531200.0 + place}))
    (folder / "1672532400000000.algo-1.json").write_text("\n".join(lines) + "\n")
    profile = read_profile(tmp_path)
    assert profile.samples[0].cpu == (99.0, 2.0, 1.0)
    assert profile.samples[0].memory == 5.0
    content = write_profile(tmp_path, profile, RULES)
    fired = {outcome["rule"] for outcome in content["rules"] if outcome["status"] == ISSUES}
    assert fired == {"LowGPUUtilization", "CPUBottleneck", "BatchSize"}
    single = json.loads((tmp_path / "rules" / "CPUBottleneck.json").read_text())
    assert single["RuleTriggered"] == 1
    assert single["Datapoints"] == 200


def test_the_summary_has_the_sections_of_the_report() -> None:
    content = summary(HEALTHY)
    assert content["summary"]["initialisation"] == {"seconds": 30.0, "share": 0.0323}
    assert {row["name"]: row["p50"] for row in content["system"]}["GPU 0"] == 95.0
    assert content["steps"]["count"] == 200
    assert content["steps"]["parts"]["backward"] == {"seconds": 0.06, "share": 0.5941}
    assert len(content["timeline"]) == 400
    assert summary(Profile())["system"] == []


def test_quantiles_are_interpolated() -> None:
    assert [quantile([4.0, 1.0, 3.0, 2.0], share) for share in (0.0, 0.5, 1.0)] == [1.0, 2.5, 4.0]
    assert quantile([], 0.5) == 0.0


def test_repeated_steps_count_once(tmp_path: Path) -> None:
    write_steps(tmp_path, steps(6))
    write_steps(tmp_path, [StepTime(place, 9.0, 0.0, 1.0, 1.0, 1.0) for place in (4, 5, 6)])
    read = read_profile(tmp_path).steps
    assert [step.batch for step in read] == [0, 1, 2, 3, 4, 5, 6]
    assert [step.began for step in read[4:]] == [9.0, 9.0, 9.0]


def test_the_machine_is_sampled(tmp_path: Path) -> None:
    sampler = SystemSampler(tmp_path, seconds=0.01)
    sampler.start()
    sampler.end()
    sampled = read_samples(tmp_path)
    assert sampled
    assert 0 < sampled[-1].memory <= 100
    assert sampled[-1].cpu
