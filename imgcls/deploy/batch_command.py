"""The action `batch` of `python -m imgcls.deploy`."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from imgcls.aws.account import Account
from imgcls.aws.instances import enumeration
from imgcls.deploy import batch
from imgcls.deploy.endpoint import Deployment, Plan
from imgcls.deploy.lookup import Values, connect
from imgcls.deploy.options import Options, create_options
from imgcls.deploy.requests import instance_type_of
from imgcls.deploy.source import Source, find_run, find_source
from imgcls.deploy.state import last_words
from imgcls.errors import UserError, nearest
from imgcls.serve.archive import write_archive

log = logging.getLogger("imgcls.deploy")


def run(values: Values, more: list[str]) -> None:
    """`batch s3://BUCKET/FOLDER | TABLE.csv run=DIR`."""
    given = dict(values)
    place, top_k, answers = (given.pop(name) for name in ("images", "top_k", "answers"))
    if place is None:
        raise UserError("Give the images: python -m imgcls.deploy batch s3://BUCKET/FOLDER run=DIR")
    options = create_options(given, more)
    if options.run:
        find_run(options.run)  # its errors are reported before AWS is asked
    account = connect(vars(options), options.role)
    source = find_source(account, options)
    transform(account, options, source, place, top_k=top_k, answers=Path(answers).expanduser())


def transform(account: Account, options: Options, source: Source, place: str, *, top_k: int = 5, answers: Path) -> None:
    """Classify the images in `place` by a job, test some of the answers and write all to the file `answers`.

    Raises UserError: AWS refuses, the job fails, or its answers differ from the local model's.
    """
    kind, count = instance_type_of(options, None), options.instance_count or 1
    offered = enumeration("TransformInstanceType")
    if offered and kind not in offered:
        raise UserError(f"instance_type={kind}: SageMaker runs no batches on this type. {nearest(kind, offered)}")
    images = batch.find_images(account, place)
    if not images.sent:
        raise UserError(f"{place}: all {len(images.uris)} images are larger than {batch.REQUEST_LIMIT >> 20} MB.")
    log.info("%d images with %d x %s, billed while the job runs.", len(images.sent), count, kind)
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        deployment = Deployment(account, Plan(source.name, options, source.folder.name, source.package))
        archive = None if source.package else write_archive(source.folder, Path(work) / "model.tar.gz")
        model = deployment.make_model(archive)
    manifest, folder = batch.write_manifest(account, source.name, images)
    output = f"{folder}/{model.rpartition('-')[2]}-{top_k}"
    request = batch.job_request(
        images, model=model, manifest=manifest, output=output, kind=kind, count=count, top_k=top_k, key=options.kms_key
    )
    job = batch.start(account, source.name, request, options.tags)
    if not options.wait:
        print(f"{job} is running and billed. Run the same command without wait=false for its answers.")
        return
    with last_words(
        f"{job} continues and is billed. Run the same command again for its answers; to stop it:\n"
        f"  aws sagemaker stop-transform-job --transform-job-name {job}"
    ):
        batch.follow(account, job, poll=options.poll)
    found = list(batch.read_answers(account, images, output))
    good = [(uri, answer) for uri, answer in found if "error" not in answer]
    if options.test and good:
        step = max(1, len(good) // options.samples)
        print(f"test: {batch.compare(account, source.model, good[::step][: options.samples], options.tolerance)}")
    batch.write_answers(answers, found)
    bad = f", {len(found) - len(good):,} of them with an error" if len(good) < len(found) else ""
    print(f"{answers}  the answers to {len(found):,} images{bad}; they are also in {output}")
