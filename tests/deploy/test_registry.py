"""Versions are registered with what is known of them, approved and deployed; batches answer as the local model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from imgcls import portable
from imgcls.deploy.__main__ import command
from imgcls.errors import UserError
from imgcls.portable.certificate import file_digests
from tests.aws_account import needs_moto
from tests.conftest import DAMAGED_PNG
from tests.deploy.conftest import ROLE, Account

pytestmark = needs_moto
REGISTER = ["register", "run=runs/dogs", "name=dogs", "image=own/image:1"]
DEPLOY = ["package=dogs", "name=front", "poll=0.01", ROLE, "pictures=pictures", "samples=1"]


def test_a_version_is_registered_approved_and_deployed(
    account: Account, run: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "model").unlink()
    shutil.copytree(model, run / "model")
    (run / "report.html").write_text("<html>")
    certificate = {"passed": True, "sha256": file_digests(run / "model")}
    (run / "model" / "certificate.json").write_text(json.dumps(certificate))
    (run / "model" / "reference.npz").write_text("numbers")
    (run / "metrics.json").write_text('{"test/accuracy": 0.875, "test/macro_f1": 0.8}')
    job = {"base": "imgcls-b", "where": "sagemaker", "region": "us-east-1", "bucket": "b", "prefix": "p"}
    (run / "job.json").write_text(json.dumps({**job, "job": "imgcls-b-20260101"}))
    command(REGISTER)
    command(REGISTER)  # the same model again
    assert "imgcls-dogs/1 is registered" in capsys.readouterr().out
    [request] = account.sent("CreateModelPackage")
    notes = request["CustomerMetadataProperties"]
    assert notes["training-job"] == request["MetadataProperties"]["GeneratedBy"] == "imgcls-b-20260101"
    assert (notes["run"], notes["accuracy"], notes["classes"]) == ("dogs", "0.875", "3")
    s3 = account.cloud().client("s3")
    baseline = request["DriftCheckBaselines"]["ModelDataQuality"]["Statistics"]["S3Uri"]
    assert baseline == notes["reference.npz"]
    for uri in (notes["report.html"], notes["README.md"], notes["certificate.json"], baseline):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    quality = request["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"].removeprefix("s3://").partition("/")
    statistics = json.loads(s3.get_object(Bucket=quality[0], Key=quality[2])["Body"].read())
    assert statistics["multiclass_classification_metrics"]["accuracy"]["value"] == 0.875

    with pytest.raises(UserError, match=r"no version of imgcls-dogs is approved: .* approve package=imgcls-dogs/VERS"):
        command(DEPLOY)
    command(["reject", "package=dogs/1", "reason=blurred images"])
    with pytest.raises(UserError, match="this version was rejected"):
        command(["package=dogs/1", *DEPLOY[1:]])
    command(["approve", "package=dogs/1"])
    capsys.readouterr()
    command(["packages"])
    assert "imgcls-dogs/1  Approved" in (shown := capsys.readouterr().out)
    assert "accuracy 87.5%  run dogs  job imgcls-b-20260101" in shown
    command(DEPLOY)
    assert "1 of 1 image with the same top class" in capsys.readouterr().out
    container = account.sent("CreateModel")[-1]["PrimaryContainer"]
    assert container["ModelPackageName"].endswith("model-package/imgcls-dogs/1")
    assert set(container) == {"ModelPackageName", "Environment"}
    assert account.endpoints == ["imgcls-front"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["package=cats", *DEPLOY[1:]], "no model is registered as imgcls-cats"),
        (["package=dogs/7", *DEPLOY[1:]], "has no version 7; it has 1"),
        (["package=a/b/c", *DEPLOY[1:]], "must be NAME, NAME/VERSION or an ARN"),
        (["package=dogs", "run=runs/dogs"], "registered version, package=NAME"),
        (["package=dogs", "image=a/b:1"], "Leave image and framework_version out"),
        (["approve", "package=dogs"], "Give the version"),
        (["register"], "Give the run to register"),
        (["batch", "run=runs/dogs"], "Give the images"),
        (["batch", "s3://pictures/none", "run=runs/dogs", ROLE], "there are no images"),
        (
            ["batch", "s3://pictures", "run=runs/dogs", ROLE, "instance_type=ml.c8g.large"],
            "runs no batches on this type",
        ),
        (["batch", "none.csv", "run=runs/dogs", ROLE], "no such table"),
    ],
)
def test_what_cannot_be_deployed_is_said_in_a_line(account: Account, run: Path, words: list[str], message: str) -> None:
    command(REGISTER)
    account.cloud().client("s3").create_bucket(Bucket="pictures")
    with pytest.raises(UserError, match=message):
        command(words)
    assert not account.sent("CreateTransformJob")


def test_a_batch_answers_as_the_local_model_does(
    account: Account, run: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = account.cloud().client("s3")
    s3.create_bucket(Bucket="pictures")
    files = sorted((tmp_path / "pictures").iterdir())[:3]
    for file in files:
        s3.put_object(Bucket="pictures", Key=f"new/{file.stem}/a.jpg", Body=file.read_bytes())
    s3.put_object(Bucket="pictures", Key="new/damaged.png", Body=DAMAGED_PNG)
    s3.put_object(Bucket="pictures", Key="new/notes.txt", Body=b"no image")
    words = ["run=runs/dogs", "name=dogs", ROLE, "image=own/image:1", "poll=0.01", "top_k=2"]
    command(["batch", "s3://pictures/new", *words])
    said = capsys.readouterr().out
    assert "test: 3 answers are the local model's" in said
    assert "the answers to 4 images, 1 of them with an error" in said
    lines = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    answers = {line["file"]: line for line in lines}
    local = portable.load(model, engine="auto").top([Image.open(file) for file in files], 2)
    for file, expected in zip(files, local, strict=True):
        classes = answers[f"s3://pictures/new/{file.stem}/a.jpg"]["classes"]
        assert [entry["class"] for entry in classes] == [name for name, _ in expected]
        assert [entry["probability"] for entry in classes] == pytest.approx([p for _, p in expected], abs=1e-3)
    assert "error" in answers["s3://pictures/new/damaged.png"]

    (tmp_path / "table.csv").write_text(f"file,place\ns3://pictures/new/{files[0].stem}/a.jpg,roof\n")
    command(["batch", "table.csv", *words, "answers=answers.csv"])
    rows = Path("answers.csv").read_text().splitlines()
    assert rows[0] == "file,class,probability"
    assert rows[1].startswith(f"s3://pictures/new/{files[0].stem}/a.jpg,{local[0][0][0]},")
    command(["batch", "table.csv", *words, "answers=answers.csv"])  # finds the job of the last one
    assert len(account.sent("CreateTransformJob")) == 2


def test_a_batch_that_fails_says_why(account: Account, run: Path) -> None:
    s3 = account.cloud().client("s3")
    s3.create_bucket(Bucket="pictures")
    s3.put_object(Bucket="pictures", Key="a.jpg", Body=(Path("pictures") / "00.jpg").read_bytes())
    account.asked_fails = True
    with pytest.raises(UserError, match=r"ended as Failed: a.jpg: 500, .*out of memory.*TransformJobs"):
        command(["batch", "s3://pictures", "run=runs/dogs", "name=dogs", ROLE, "image=own/image:1", "poll=0.01"])
    assert not Path("answers.jsonl").exists()


def test_versions_are_removed_with_their_files(account: Account, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that an endpoint uses stays."""
    command([*REGISTER, "approve=true"])
    command([*DEPLOY, "test=false"])
    with pytest.raises(UserError, match=r"package=imgcls-dogs/1: the model imgcls-front-\w+ uses it\."):
        command(["delete", "package=dogs", "yes=true"])
    assert not account.sent("DeleteModelPackage")
    command(["delete", "name=front", "yes=true", "poll=0.01"])
    with pytest.raises(UserError, match="there is no terminal for the confirmation"):
        command(["delete", "package=dogs/1"])
    capsys.readouterr()
    command(["delete", "package=dogs/1", "yes=true"])
    assert "Removed imgcls-dogs/1." in capsys.readouterr().out
    assert len(account.sent("DeleteModelPackageGroup")) == 1, "its only version"
    bucket = "sagemaker-us-east-1-123456789012"
    assert not account.cloud().client("s3").list_objects_v2(Bucket=bucket, Prefix="imgcls/endpoints/").get("Contents")
    for words, said in (["package=dogs"], "no such model"), (["package=dogs", "--all"], "give it without"):
        with pytest.raises(UserError, match=said):
            command(["delete", *words, "yes=true"])
