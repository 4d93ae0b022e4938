"""SageMaker Debugger's fields of a training job: hook, rules and profiler, which ModelTrainer lacks.

AWS closed Debugger to new customers on 2026-07-30; it continues for existing ones. Tuning jobs do not support it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from imgcls.errors import UserError, nearest
from imgcls.system.checks import check_value, choice
from imgcls.system.extras import need

CLOSED = (
    "SageMaker Debugger has been closed to new customers since July 2026: AWS refuses it in other accounts. "
    "imgcls's own rules watch every run without it (launch.debugger=false)."
)
REQUIREMENTS = ["smdebug==1.0.34", "numpy<2.3", "requests", "pandas"]  # of the tensor rules in the container
NEWEST_PYTHON = (3, 12)  # that can import smdebug
INTERVALS = (100, 200, 500, 1000, 5000, 60000)  # ms, of system metrics
DEFAULT_IMAGE = "DEFAULT_RULE_EVALUATOR_IMAGE"
FUNCTIONS = {"StalledTraining": "stalled_training_rule", "NLPSequenceRatio": "nlp_sequence_ratio"}
NOT_FOR_IMAGES = {"confusion", "tree_depth", "feature_importance_overweight", "create_xgboost_report"}


def debugger_fields(options: Mapping[str, Any], *, job: str, output: str, region: str) -> dict[str, Any]:
    """The fields of CreateTrainingJob.

    Args:
        options: `launch.debugger_options`: rules (name to parameters), actions, save_interval (mode to steps),
            collections, system_interval (ms).
        job: name of the job, which the action `stop` needs.
        output: S3 URI of the folder for tensors and profiles.
        region: region of the job.

    Raises:
        UserError: unknown rule or action, invalid interval, or region without Debugger.
    """
    sdk = need("sagemaker.core.debugger")
    rules, profiler_rules = _rules(sdk, options, job)
    for rule in (*rules, *profiler_rules):
        if rule.image_uri == DEFAULT_IMAGE:
            rule.image_uri = _image(sdk, rule.name, region)
    interval = options["system_interval"]
    check_value("launch.debugger_options.system_interval", interval, choice(*INTERVALS))
    profiler = sdk.ProfilerConfig(s3_output_path=output, system_monitor_interval_millis=interval)
    fields: dict[str, Any] = {"ProfilerConfig": profiler._to_request_dict()}
    if profiler_rules:
        fields["ProfilerRuleConfigurations"] = [rule.to_profiler_rule_config_dict() for rule in profiler_rules]
    if rules:
        fields["DebugRuleConfigurations"] = [rule.to_debugger_rule_config_dict() for rule in rules]
        hook = sdk.DebuggerHookConfig(
            s3_output_path=output,
            hook_parameters=_intervals(options["save_interval"]),
            collection_configs=_collections(sdk, options["collections"], rules),
        )
        fields["DebugHookConfig"] = hook._to_request_dict()
    return fields


def has_tensor_rules(options: Mapping[str, Any]) -> bool:
    """Whether smdebug must save tensors in the container; profiler rules need only SageMaker's measurements."""
    return any(not _is_profiler_rule(need("sagemaker.core.debugger"), str(name)) for name in options["rules"])


def check_python(image: str) -> None:
    """Raise UserError if AWS's `image` is not one that smdebug works in."""
    if "-amzn2023" in image:
        raise UserError(
            "launch.debugger=true: AWS's images with PyTorch 2.11 and newer do not support smdebug. "
            "Use launch.framework_version=2.9.0, or only profiler rules."
        )
    match = re.search(r"-py(\d)(\d+)", image)
    if match and (int(match[1]), int(match[2])) > NEWEST_PYTHON:
        raise UserError(
            f"launch.debugger=true: smdebug does not support Python {match[1]}.{match[2]} of AWS's image. "
            "Use launch.framework_version=2.9.0, or only profiler rules."
        )


def rule_statuses(description: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(rule, status, details) of a job with this `description`."""
    return [
        (rule["RuleConfigurationName"], rule["RuleEvaluationStatus"], " ".join(rule.get("StatusDetails", "").split()))
        for kind in ("Debug", "Profiler")
        for rule in description.get(f"{kind}RuleEvaluationStatuses", ())
    ]


def _rules(sdk: Any, options: Mapping[str, Any], job: str) -> tuple[list[Any], list[Any]]:
    rules, profiler_rules = [], []
    actions = _actions(sdk, options["actions"], job)
    for name, given in options["rules"].items():
        parameters = {key: _text(value) for key, value in (given or {}).items()}
        if _is_profiler_rule(sdk, name):
            try:
                base = getattr(sdk.rule_configs, name)(**dict(given or {}))
            except (TypeError, AssertionError) as error:
                raise UserError(f"launch.debugger_options.rules.{name}: {error}.") from error
            profiler_rules.append(sdk.ProfilerRule.sagemaker(base))
            continue
        function = FUNCTIONS.get(name) or re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        if function not in _tensor_rules(sdk):
            raise UserError(
                f"launch.debugger_options.rules.{name}: there is no such rule. {nearest(name, _rule_names(sdk))}"
            )
        rule = sdk.Rule.sagemaker(getattr(sdk.rule_configs, function)(), rule_parameters=parameters, actions=actions)
        rule.prepare_actions(job)
        rules.append(rule)
    return rules, profiler_rules


def _is_profiler_rule(sdk: Any, name: str) -> bool:
    rule = getattr(sdk.rule_configs, name, None)
    return isinstance(rule, type) and "profiler_rules" in rule.__module__


def _tensor_rules(sdk: Any) -> set[str]:
    return {
        name
        for name, value in vars(sdk.rule_configs).items()
        if isinstance(value, FunctionType) and "debugger_rules.builtin" in value.__module__
    } - NOT_FOR_IMAGES


def _rule_names(sdk: Any) -> list[str]:
    camel = ["".join(part.capitalize() for part in name.split("_")) for name in _tensor_rules(sdk)]
    return [*camel, *(name for name in dir(sdk.rule_configs) if _is_profiler_rule(sdk, name))]


def _actions(sdk: Any, options: Any, job: str) -> Any:
    """The actions when a rule fires (stop, email:ADDRESS, sms:NUMBER), or None."""
    actions = []
    for option in options:
        kind, _, recipient = str(option).partition(":")
        if kind == "stop":
            actions.append(sdk.rule_configs.StopTraining(job))
        elif kind in ("email", "sms") and recipient:
            action = sdk.rule_configs.Email if kind == "email" else sdk.rule_configs.SMS
            try:
                actions.append(action(recipient))
            except (ValueError, AssertionError) as error:
                raise UserError(f"launch.debugger_options.actions: {option}: {error}.") from error
        else:
            raise UserError(f"launch.debugger_options.actions: {option}: expected stop, email:ADDRESS or sms:NUMBER.")
    return sdk.rule_configs.ActionList(*actions) if actions else None


def _intervals(given: Mapping[str, Any]) -> dict[str, str]:
    """smdebug's names of the save intervals, in steps."""
    for mode, steps in given.items():
        if mode not in ("train", "eval", "predict", "global") or not isinstance(steps, int) or steps < 1:
            raise UserError(
                f"launch.debugger_options.save_interval.{mode}={steps}: must be a number of steps of train, eval, "
                "predict or global."
            )
    return {"save_interval" if mode == "global" else f"{mode}.save_interval": str(given[mode]) for mode in given}


def _collections(sdk: Any, names: Any, rules: list[Any]) -> list[Any]:
    """The tensors to save: those requested, and those that the rules read, each once."""
    merged: dict[str, dict[str, str]] = {str(name): {} for name in names}
    for rule in rules:
        for collection in rule.collection_configs:
            parameters = {k: v for k, v in (collection.parameters or {}).items() if "save_interval" not in k}
            merged.setdefault(collection.name, {}).update(parameters)
    return [sdk.CollectionConfig(name=name, parameters=parameters or None) for name, parameters in merged.items()]


def _image(sdk: Any, name: str, region: str) -> str:
    try:
        return str(sdk.get_rule_container_image_uri(name, region))
    except ValueError as error:
        raise UserError(
            f"launch.debugger=true: SageMaker Debugger is not available in {region}. imgcls's own rules do not need it."
        ) from error


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
