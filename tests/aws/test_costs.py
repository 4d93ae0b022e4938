"""What jobs may cost, by the list of prices."""

from __future__ import annotations

import json
from typing import Any

from imgcls.aws.costs import describe_cost, remaining_hours


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
