"""The fields of SageMaker Debugger; the service itself is closed to new customers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import imgcls
from imgcls.config.composition import compose, plain
from imgcls.errors import UserError
from imgcls.launch.sagemaker.debugger import check_python, debugger_fields, rule_statuses
from imgcls.launch.sagemaker.outputs import fetch_reports
from tests.aws_account import Jobs, needs_sdk
from tests.launch.sagemaker.test_training_job import launch, source

pytestmark = needs_sdk


def options(*words: str) -> dict[str, Any]:
    return plain(compose(["data=digits", "launch=sagemaker", *words]))["launch"]["debugger_options"]


def fields(*words: str, region: str = "eu-west-1") -> dict[str, Any]:
    return debugger_fields(options(*words), job="imgcls-x-1", output="s3://b/debugger", region=region)


def test_the_rules_of_the_reference_systems() -> None:
    made = fields()
    names = [one["RuleConfigurationName"] for one in made["DebugRuleConfigurations"]]
    assert names == ["VanishingGradient", "Overfit", "Overtraining", "PoorWeightInitialization", "LossNotDecreasing"]
    assert [one["RuleConfigurationName"] for one in made["ProfilerRuleConfigurations"]] == [
        "LowGPUUtilization",
        "ProfilerReport",
    ]
    assert all("amazonaws.com" in one["RuleEvaluatorImage"] for one in made["DebugRuleConfigurations"])
    assert made["DebugRuleConfigurations"][0]["RuleParameters"]["rule_to_invoke"] == "VanishingGradient"
    hook = made["DebugHookConfig"]
    assert hook["S3OutputPath"] == "s3://b/debugger"
    assert hook["HookParameters"] == {"train.save_interval": "100", "eval.save_interval": "10"}
    collections = [one["CollectionName"] for one in hook["CollectionConfigurations"]]
    assert {"losses", "gradients"} <= set(collections)
    assert len(collections) == len(set(collections)), "CreateTrainingJob refuses a collection twice"
    assert made["ProfilerConfig"]["ProfilingIntervalInMilliseconds"] == 500


def test_any_other_rule_with_parameters_and_actions() -> None:
    prefix = "launch.debugger_options"
    made = fields(
        f"+{prefix}.rules.DeadRelu={{threshold_layer:0.4}}",
        f"+{prefix}.rules.StalledTraining={{threshold:600}}",
        f"+{prefix}.rules.StepOutlier={{stddev:4}}",
        f"{prefix}.actions=[stop,'email:a@example.com']",
        f"{prefix}.save_interval.train=1",
    )
    rules = {one["RuleConfigurationName"]: one["RuleParameters"] for one in made["DebugRuleConfigurations"]}
    assert rules["DeadRelu"]["threshold_layer"] == "0.4"
    assert rules["StalledTrainingRule"]["threshold"] == "600"
    assert "imgcls-x-1" in rules["DeadRelu"]["action_json"]
    assert "a@example.com" in rules["Overfit"]["action_json"]
    outlier = [one for one in made["ProfilerRuleConfigurations"] if one["RuleConfigurationName"] == "StepOutlier"]
    assert outlier[0]["RuleParameters"]["stddev"] == "4"
    assert made["DebugHookConfig"]["HookParameters"]["train.save_interval"] == "1"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+launch.debugger_options.rules.DeadReLU={}", "Did you mean DeadRelu"),
        ("+launch.debugger_options.rules.TreeDepth={}", "no such rule"),
        ("+launch.debugger_options.rules.BatchSize={colour:1}", "unexpected keyword argument 'colour'"),
        ("launch.debugger_options.actions=[call]", "expected stop, email:ADDRESS or sms:NUMBER"),
        ("launch.debugger_options.save_interval.eval=0", "must be a number of steps"),
        ("launch.debugger_options.system_interval=300", "system_interval=300"),
    ],
)
def test_what_is_wrong_is_refused(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fields(word)


def test_regions_without_debugger_are_refused() -> None:
    with pytest.raises(UserError, match="SageMaker Debugger is not available in mx-central-1"):
        fields(region="mx-central-1")


def test_the_request_gets_the_fields_and_the_container_smdebug(
    account: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="imgcls")
    words = ["data=digits", "launch=sagemaker", "launch.wait=false", "launch.debugger=true"]
    with pytest.raises(
        UserError, match=r"2\.11 and newer do not support smdebug\. Use launch\.framework_version=2\.9\.0"
    ):
        launch(account, tmp_path / "new", words)
    with pytest.raises(UserError, match=r"Python 3\.13 of AWS's image\. Use launch\.framework_version=2\.9\.0"):
        launch(account, tmp_path / "new", [*words, "launch.framework_version=2.10.0"])
    launch(account, tmp_path / "run", [*words, "launch.framework_version=2.9.0"])
    (request,) = account.requests
    for name in ("DebugHookConfig", "DebugRuleConfigurations", "ProfilerConfig", "ProfilerRuleConfigurations"):
        assert request[name]
    files = source(account, request)
    lines = files["requirements.txt"].decode().splitlines()
    assert "smdebug==1.0.34" in lines
    assert [line for line in lines if line.startswith("numpy")] == ["numpy<2.3"]
    assert b'"smdebug": true' in files["job.json"]
    assert "closed to new customers" in caplog.text
    assert request["AlgorithmSpecification"]["ContainerArguments"][1].count("exec") == 1
    check_python("own/image:latest")


def test_what_the_rules_found_comes_back(account: Jobs, tmp_path: Path) -> None:
    cloud = account.cloud()
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="bucket")
    key = "jobs/imgcls-x-1/rule-output/ProfilerReport/profiler-output/profiler-report.html"
    s3.put_object(Bucket="bucket", Key=key, Body=b"<p>report</p>")
    s3.put_object(Bucket="bucket", Key="jobs/imgcls-x-1/rule-output/ProfilerReport/x.ipynb", Body=b"{}")
    described = {
        "TrainingJobName": "imgcls-x-1",
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/jobs/"},
        "DebugRuleEvaluationStatuses": [
            {"RuleConfigurationName": "Overfit", "RuleEvaluationStatus": "IssuesFound", "StatusDetails": "at\nstep 5"}
        ],
    }
    assert rule_statuses(described) == [("Overfit", "IssuesFound", "at step 5")]
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    fetch_reports(cloud, described, tmp_path / "debug" / "sagemaker")
    (page,) = imgcls.load(tmp_path).profiler_reports()
    assert "report" in page._repr_html_()
    assert not list(tmp_path.rglob("*.ipynb"))
