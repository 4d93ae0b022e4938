"""Two people never share a folder in S3 or an endpoint's name; a container finds what an earlier one has uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imgcls.aws.owner import caller_identity
from imgcls.aws.s3 import list_objects
from imgcls.deploy.names import name_of_run
from imgcls.launch.sagemaker.channels import upload_channels
from imgcls.system import cache
from tests.aws_account import Jobs, needs_moto

ACCOUNT = "123456789012"
STUDIO = f"arn:aws:sts::{ACCOUNT}:assumed-role/AmazonSageMaker-ExecutionRole-20260101T000000/SageMaker"


def session(role: str, name: str) -> str:
    return f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{name}"


def user(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:user/{name}"


def test_a_person_is_the_same_with_every_sign_in_and_role() -> None:
    developer, admin = ("AWSReservedSSO_Developer_1f2e3d", "AWSReservedSSO_Admin_4c5b6a")
    assert caller_identity(session(developer, "anna")) == caller_identity(session(admin, "anna"))
    assert caller_identity(session("data", "anna@example.org")) == caller_identity(session("ml", "anna@example.org"))
    people = [
        user("anna"),
        user("ben"),
        session(developer, "anna"),
        session(developer, "ben"),
        session("data", "x@y.z"),
    ]
    assert len({caller_identity(arn) for arn in people}) == len(people)


@pytest.mark.parametrize(
    "name", ["SageMaker", "i-0123456789abcdef0", "botocore-session-1790000000", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"]
)
def test_a_session_that_names_no_person_is_its_role(name: str) -> None:
    assert caller_identity(session("trainer", name)) == caller_identity(session("trainer", "another"))
    assert caller_identity(session("trainer", name)) != caller_identity(session("tester", name))


class People:
    """Uploads of a folder that has the same path for everybody."""

    def __init__(self, account: Jobs, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.account, self.folder, self.monkeypatch = account, folder, monkeypatch

    def cloud(self, arn: str) -> Any:
        cloud = self.account.cloud()
        cloud.identity = ACCOUNT, arn
        return cloud

    def upload(self, arn: str, home: Path, *images: str) -> str:
        """With the cache in this home and these images; where they are now."""
        self.monkeypatch.setenv("IMGCLS_CACHE", str(home))
        for file in self.folder.glob("*"):
            file.unlink()
        for name in images:
            (self.folder / name).write_text(name)
        return upload_channels(self.cloud(arn), {"data": {"root": self.folder}, "model": {"weights": None}})["data"]

    def stored(self, uri: str) -> set[str]:
        return {stored.path for stored in list_objects(self.account.cloud().client("s3"), uri.rstrip("/"))}

    def sent(self) -> int:
        """Files that were sent since the last question."""
        count = len([call for call in self.account.aws.calls if call.operation == "PutObject"])
        self.account.aws.calls.clear()
        return count


@pytest.fixture
def people(account: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> People:
    folder = tmp_path / "sagemaker-user" / "dogs"
    folder.mkdir(parents=True)
    return People(account, folder, monkeypatch)


@needs_moto
def test_two_people_in_studio_have_their_own_data_and_endpoints(people: People, tmp_path: Path) -> None:
    """Role, session, host, user and path are the same; the volumes of their spaces are not."""
    anna = people.upload(STUDIO, tmp_path / "anna", "1.jpg", "2.jpg")
    ben = people.upload(STUDIO, tmp_path / "ben", "3.jpg")
    assert people.stored(anna) == {"1.jpg", "2.jpg"}, "which a job of hers may be reading"
    assert people.stored(ben) == {"3.jpg"}
    names = []
    for home in ("anna", "ben", "anna"):
        people.monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / home))
        names.append(name_of_run(people.folder, people.cloud(STUDIO).caller_identity))
    assert names[0] == names[2] != names[1]
    people.sent()
    assert people.upload(STUDIO, tmp_path / "anna", "1.jpg", "4.jpg") == anna, "only what changed is uploaded"
    assert people.sent() == 1
    assert people.stored(anna) == {"1.jpg", "4.jpg"}


@needs_moto
def test_a_copied_cache_does_not_make_two_people_one(people: People, tmp_path: Path) -> None:
    """As of a machine's image, or on a drive that all share."""
    anna, ben = (people.upload(user(name), tmp_path / "home", f"{name}.jpg") for name in ("anna", "ben"))
    assert people.stored(anna) == {"anna.jpg"}
    assert people.stored(ben) == {"ben.jpg"}
    anna, ben = (name_of_run(people.folder, people.cloud(user(name)).caller_identity) for name in ("anna", "ben"))
    assert anna != ben


@needs_moto
def test_a_container_without_a_volume_finds_the_upload_of_the_last_one(people: People, tmp_path: Path) -> None:
    """Its cache is new, its host and the session of its role have random names."""
    people.monkeypatch.setattr(cache, "_goes_with_container", lambda file: True)
    people.monkeypatch.setattr("socket.gethostname", lambda: "3f2a9c0d1b77")
    first = people.upload(session("trainer", "0a1b"), tmp_path / "first", "1.jpg", "2.jpg")
    assert people.sent() == 2
    people.monkeypatch.setattr("socket.gethostname", lambda: "77d1b03f2a9c")
    assert people.upload(session("trainer", "2c3d"), tmp_path / "second", "1.jpg", "2.jpg") == first
    assert people.sent() == 0
    other = people.upload(session("trainer", "4e5f"), tmp_path / "third", "1.jpg", "3.jpg")
    assert people.stored(other) == {"1.jpg", "3.jpg"}
    assert people.stored(first) == {"1.jpg", "2.jpg"}, "which a job of the first one may be reading"
    assert people.upload(user("anna"), tmp_path / "fourth", "1.jpg", "2.jpg") not in (first, other)


def test_an_endpoint_of_a_container_without_a_volume_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_goes_with_container", lambda file: True)
    run, names = tmp_path / "dogs", []
    (run / "model").mkdir(parents=True)
    for home, model in (("first", "a"), ("second", "a"), ("third", "b")):
        monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / home))
        (run / "model" / "model.json").write_text(model)
        (run / "log.txt").write_text(home)
        names.append(name_of_run(run, caller_identity(STUDIO)))
    assert names[0] == names[1] != names[2]


@needs_moto
def test_weights_of_the_same_name_do_not_overwrite_each_other(account: Jobs, tmp_path: Path) -> None:
    """In Studio the paths are the same, too."""
    places, file = [], tmp_path / "best.safetensors"
    for content in ("anna", "ben", "anna"):
        file.write_text(content)
        config = {"data": {"root": "s3://pictures/dogs"}, "model": {"weights": str(file)}}
        places.append(upload_channels(account.cloud(), config)["weights"])
    assert places[0] == places[2] != places[1]
