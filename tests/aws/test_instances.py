from imgcls.aws.instances import has_gpu, is_instance_type, needs_other_torch


def test_instance_types() -> None:
    assert [has_gpu(f"ml.{kind}") for kind in ("g5.xlarge", "p3.2xlarge", "g6e.12xlarge", "p5.48xlarge")] == [True] * 4
    assert [has_gpu(f"ml.{kind}") for kind in ("m5.xlarge", "c6i.large", "r5.large", "t3.medium")] == [False] * 4
    assert not has_gpu("ml.g5g.xlarge"), "an Arm machine, for which AWS has no such image"
    assert needs_other_torch("ml.inf2.xlarge")
    assert not is_instance_type("ml.g5")
