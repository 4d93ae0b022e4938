import pytest

from imgcls.config.composition import compose, plain
from imgcls.errors import UserError
from imgcls.launch.sagemaker.options import check_job

FINE = ["data=digits", "launch=sagemaker"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch.instance_type=g4dn.xlarge"], "such as ml.g4dn.xlarge"),
        (["launch.instance_type=ml.trn1.2xlarge"], "CPUs and NVIDIA GPUs"),
        (["launch.instance_count=0"], "from 1 to 100"),
        (["launch.instance_count=two"], "from 1 to 100"),
        (["launch.max_runtime=5"], "from 60"),
        (["launch.spot=maybe"], "must be true or false"),
        (["launch.poll=0"], "above 0"),
        (["launch.framework_version=latest"], "a version such as 2.14"),
        (["launch.framework_version=2.5.1"], "imgcls needs PyTorch 2.8 or newer"),
        (["launch.framework_version=2.10"], "Write 2.10 as 2.10.0"),
        (["launch.bucket=s3://mine/x"], "not a valid bucket name"),
        (["launch.role='arn:aws:iam::12:role/x'"], "must be a role name or an ARN"),
        (["+launch.tags.imgcls=x"], "are reserved"),
        (["+launch.environment.SM_MODEL_DIR=x"], "does not begin with SM_"),
        (["launch.wheels=/nowhere"], "holds no wheels"),
        (["trainer.accelerator=gpu", "launch.instance_type=ml.m5.xlarge"], "has no GPU"),
        (["trainer.accelerator=cpu"], "that you would pay for"),
        (["trainer.accelerator=mps"], "no Apple GPUs"),
        (["trainer.num_nodes=3", "launch.instance_count=2"], "must be 1 or launch.instance_count=2"),
        (["launch.network_isolation=true", "model.pretrained=true"], "cannot download pretrained weights"),
        (["launch.network_isolation=true"], "launch.wheels=FOLDER"),
        (["launch.subnets=[subnet-1]"], "belong together"),
        (["launch.spot=true", "launch.keep_alive=600"], "cannot be kept"),
        (["launch.spot=true", "launch.max_wait=60"], "includes the training"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_uploaded(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as raised:
        check_job(plain(compose([*FINE, *words])))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["launch.instance_type=ml.m5.xlarge", "trainer.accelerator=cpu"],
        ["launch.spot=true", "launch.max_wait=90000"],
        ["launch.network_isolation=true", "launch.image=123456789012.dkr.ecr.eu-west-1.amazonaws.com/own:1"],
        ["launch.role=arn:aws:iam::123456789012:role/team/trainer", "+launch.tags.team=vision"],
    ],
)
def test_what_can_be_right_passes(words: list[str]) -> None:
    check_job(plain(compose([*FINE, *words])))
