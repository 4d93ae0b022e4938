"""What a job that runs may cost at most, by AWS's own price list."""

from __future__ import annotations

import json
from datetime import datetime
from importlib import import_module
from typing import Any

ONE_TRY = {"total_max_attempts": 1}  # nobody waits long for a hint
PRICE_LIST_REGION = "us-east-1"  # where the Price List service is, for all regions


def hours(job: dict[str, Any], now: float) -> float:
    """Machine hours that the job of the description may still run until it is stopped at its limit."""
    resources, limits = job["ResourceConfig"], job["StoppingCondition"]
    began: datetime | None = job.get("TrainingStartTime")
    gone = max(0.0, now - began.timestamp()) if began is not None else 0.0
    left = max(0.0, float(limits["MaxRuntimeInSeconds"]) - gone)
    return float(resources["InstanceCount"]) * left / 3600


def tuning_hours(search: dict[str, Any]) -> float:
    """Machine hours that the tuning job of the description may still use, if every trial takes as long as it may."""
    limits, trial = search["HyperParameterTuningJobConfig"]["ResourceLimits"], search["TrainingJobDefinition"]
    counts = search["TrainingJobStatusCounters"]
    ended = sum(counts.get(state, 0) for state in ("Completed", "NonRetryableError", "Stopped"))
    left = max(0, int(limits["MaxNumberOfTrainingJobs"]) - ended) * trial["StoppingCondition"]["MaxRuntimeInSeconds"]
    if "MaxRuntimeInSeconds" in limits:
        left = min(left, int(limits["MaxRuntimeInSeconds"]) * int(limits["MaxParallelTrainingJobs"]))
    return float(trial["ResourceConfig"]["InstanceCount"]) * left / 3600


def at_most(account: Any, job: dict[str, Any], machine_hours: float) -> str:
    """What `machine_hours` more may cost, in words; in hours alone where the price list cannot be asked."""
    kind = job["ResourceConfig"]["InstanceType"]
    text = f"at most {machine_hours:.1f} more hours of {kind}"
    price = hourly_price(account, kind)
    if price is None:
        return f"{text} (see https://aws.amazon.com/sagemaker/pricing)"
    spot = ", before the discount of a spot job" if job.get("EnableManagedSpotTraining") else ""
    return f"{text}, {machine_hours * price:.2f} USD at {price:.3f} USD an hour{spot}"


def hourly_price(account: Any, kind: str, component: str = "Training") -> float | None:
    """USD for an hour of the instance type in a training job, or in an endpoint (`component="Hosting"`).

    None where the price list is not to be had.
    """
    try:
        config = import_module("botocore.config").Config(connect_timeout=3, read_timeout=10, retries=ONE_TRY)
        pricing = account.session.client("pricing", region_name=PRICE_LIST_REGION, config=config)
        filters = {"regionCode": account.region, "instanceName": kind, "component": component}
        answer = pricing.get_products(
            ServiceCode="AmazonSageMaker",
            Filters=[{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in filters.items()],
        )
        prices = [_price(json.loads(text)) for text in answer["PriceList"]]
    except Exception:  # a hint: without permission, network or such a product the hours are said
        return None
    known = [price for price in prices if price]
    return min(known) if known else None


def _price(product: dict[str, Any]) -> float | None:
    """The on-demand price of an entry of the price list, by the hour."""
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension.get("unit", "").lower() in ("hrs", "hours", "hour"):
                return float(dimension["pricePerUnit"]["USD"])
    return None
