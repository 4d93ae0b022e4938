"""What jobs may cost, by the list of prices."""

from __future__ import annotations

import json
from typing import Any

from imgcls.aws.costs import describe_bill, describe_cost, remaining_hours


def test_costs_are_those_of_the_price_list() -> None:
    job = {
        "ResourceConfig": {"InstanceCount": 2, "InstanceType": "ml.g5.xlarge"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 7200},
    }
    assert remaining_hours(job, 0.0) == 4

    class Session:
        def client(self, service: str, **_: Any) -> Any:
            assert service == "pricing"
            return self

        def get_products(self, **_: Any) -> Any:
            dimension = {"x": {"unit": "Hrs", "pricePerUnit": {"USD": "1.5000000000"}}}
            return {"PriceList": [json.dumps({"terms": {"OnDemand": {"y": {"priceDimensions": dimension}}}})]}

    class Account:
        region = "eu-west-1"
        session: Any = Session()

    assert describe_cost(Account(), job, 4) == "up to 4.0 more hours of ml.g5.xlarge, 6.00 USD at 1.500 USD per hour"
    Account.session = None
    assert "https://aws.amazon.com/sagemaker/pricing" in describe_cost(Account(), job, 4)


def test_the_bill_says_what_spot_instances_saved() -> None:
    job = {"ResourceConfig": {"InstanceCount": 2, "InstanceType": "ml.g5.xlarge"}, "BillableTimeInSeconds": 300}
    assert describe_bill([job]) == "Billed: 300 s of 2 x ml.g5.xlarge."
    spot = {**job, "EnableManagedSpotTraining": True, "TrainingTimeInSeconds": 1000}
    assert describe_bill([spot]) == "Billed: 300 s of 2 x ml.g5.xlarge; spot instances saved 70% of 1000 s."
    both = "Billed: 600 s of 2 x ml.g5.xlarge in 2 jobs; spot instances saved 70% of 2000 s."
    assert describe_bill([spot, spot, {"ResourceConfig": {}}]) == both
    assert describe_bill([{"ResourceConfig": {}}]) is None
