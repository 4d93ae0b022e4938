"""The most that jobs can cost, by AWS's price list, and what they are billed for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from typing import Any

NO_RETRIES = {"total_max_attempts": 1}  # a hint is not worth waiting for
PRICE_LIST_REGION = "us-east-1"  # the Price List service of all regions


def remaining_hours(job: dict[str, Any], now: float) -> float:
    """Instance hours until the job with this description reaches its time limit."""
    resources, limits = job["ResourceConfig"], job["StoppingCondition"]
    began: datetime | None = job.get("TrainingStartTime")
    elapsed = max(0.0, now - began.timestamp()) if began is not None else 0.0
    left = max(0.0, float(limits["MaxRuntimeInSeconds"]) - elapsed)
    return float(resources["InstanceCount"]) * left / 3600


def remaining_tuning_hours(search: dict[str, Any]) -> float:
    """Instance hours of the tuning job with this description if every remaining trial reaches its time limit."""
    limits, trial = search["HyperParameterTuningJobConfig"]["ResourceLimits"], search["TrainingJobDefinition"]
    counts = search["TrainingJobStatusCounters"]
    ended = sum(counts.get(state, 0) for state in ("Completed", "NonRetryableError", "Stopped"))
    left = max(0, int(limits["MaxNumberOfTrainingJobs"]) - ended) * trial["StoppingCondition"]["MaxRuntimeInSeconds"]
    if "MaxRuntimeInSeconds" in limits:
        left = min(left, int(limits["MaxRuntimeInSeconds"]) * int(limits["MaxParallelTrainingJobs"]))
    return float(trial["ResourceConfig"]["InstanceCount"]) * left / 3600


def describe_cost(account: Any, job: dict[str, Any], instance_hours: float) -> str:
    """The maximum cost of `instance_hours` more; only the hours if the price list cannot be read."""
    kind = job["ResourceConfig"]["InstanceType"]
    text = f"up to {instance_hours:.1f} more hours of {kind}"
    price = hourly_price(account, kind)
    if price is None:
        return f"{text} (see https://aws.amazon.com/sagemaker/pricing)"
    spot = ", before the discount of a spot job" if job.get("EnableManagedSpotTraining") else ""
    return f"{text}, {instance_hours * price:.2f} USD at {price:.3f} USD per hour{spot}"


def describe_bill(jobs: Sequence[dict[str, Any]]) -> str | None:
    """What ended jobs with these descriptions, on equal instances, are billed for together, and what spot saved.

    None if that is not known.
    """
    known = [job for job in jobs if job.get("BillableTimeInSeconds") is not None]
    if not known:
        return None
    billed = sum(int(job["BillableTimeInSeconds"]) for job in known)
    trained = sum(int(job.get("TrainingTimeInSeconds") or 0) for job in known)
    resources = known[0]["ResourceConfig"]
    count = int(resources["InstanceCount"])
    text = f"Billed: {billed} s of {f'{count} x ' if count > 1 else ''}{resources['InstanceType']}"
    if len(jobs) > 1:
        text += f" in {len(known)} jobs"
    if known[0].get("EnableManagedSpotTraining") and trained:
        text += f"; spot instances saved {1 - billed / trained:.0%} of {trained} s"
    return f"{text}."


def hourly_price(account: Any, kind: str, component: str = "Training") -> float | None:
    """USD per hour of an instance in a training job or endpoint (`component="Hosting"`); None if it is unknown."""
    try:
        config = import_module("botocore.config").Config(connect_timeout=3, read_timeout=10, retries=NO_RETRIES)
        pricing = account.session.client("pricing", region_name=PRICE_LIST_REGION, config=config)
        filters = {"regionCode": account.region, "instanceName": kind, "component": component}
        answer = pricing.get_products(
            ServiceCode="AmazonSageMaker",
            Filters=[{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in filters.items()],
        )
        prices = [_price(json.loads(text)) for text in answer["PriceList"]]
    except Exception:  # only a hint: without it the hours are printed
        return None
    known = [price for price in prices if price]
    return min(known) if known else None


def _price(product: dict[str, Any]) -> float | None:
    """The on-demand price per hour of an entry of the price list."""
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension.get("unit", "").lower() in ("hrs", "hours", "hour"):
                return float(dimension["pricePerUnit"]["USD"])
    return None
