"""Where the shards of a data set are: S3, a web server, the Hugging Face hub, or a folder, whose files are copied."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import StoredFile, fetch_file, is_remote, make_client, split_folder
from imgcls.data.download import MissingFileError, download, public_address, read_range
from imgcls.errors import UserError, first_line
from imgcls.system.files import atomic_path

WEB, HUB = ("http://", "https://"), "hf://"
HUB_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?((?:/[^/]+)*)/?")


class Origin(Protocol):
    """A folder that may be far away."""

    @property
    def address(self) -> str:
        """For messages, without secrets."""

    def fetch(self, name: str, target: Path, size: int | None = None) -> None:
        """Copy the file `name`, of `size` bytes if that is known, to `target`, complete or not at all.

        Raises:
            MissingFileError: there is no such file.
            UserError: it cannot be read, has another size, or `target` cannot be written.
        """

    def read(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes of the file `name`, from byte `start` on. Raises MissingFileError, UserError."""


def is_address(root: object) -> bool:
    """Whether `root` is the address of an origin, and no path."""
    return is_remote(root) or is_on_web(root)


def is_on_web(root: object) -> bool:
    """Whether `root` is an address of a web server, or of the Hugging Face hub."""
    return isinstance(root, str) and root.startswith((*WEB, HUB))


def open_origin(root: str) -> Origin:
    """The origin at `root`: s3://bucket/prefix, https://host/path, hf://datasets/user/name[@revision][/path], a path.

    Raises UserError for an address that is not valid, or needs a package that is not installed.
    """
    if is_remote(root):
        split_folder(root, "data.root")
        return Bucket(root.rstrip("/"))
    if root.startswith(HUB):
        return _on_hub(root)
    return Web(root) if root.startswith(WEB) else Folder(Path(root).expanduser())


@dataclass(frozen=True)
class Folder:
    """A folder whose files are better copied as a whole: of a network, or of SageMaker's FastFile mode."""

    folder: Path

    @property
    def address(self) -> str:
        """The path."""
        return str(self.folder)

    def fetch(self, name: str, target: Path, size: int | None = None) -> None:
        """See Origin."""
        source = self.folder / name
        if not source.is_file():
            raise MissingFileError(f"{source}: no such file.")
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
            if size is not None and temporary.stat().st_size != size:
                raise UserError(f"{source} has {temporary.stat().st_size:,} bytes instead of {size:,}.")

    def read(self, name: str, start: int, size: int) -> bytes:
        """See Origin."""
        try:
            with (self.folder / name).open("rb", buffering=0) as opened:
                opened.seek(start)
                return opened.read(size)
        except OSError as error:
            raise UserError(f"{self.folder / name} cannot be read: {error.strerror}.") from error


@dataclass(frozen=True)
class Bucket:
    """A folder in S3."""

    address: str

    @cached_property
    def _client(self) -> Any:
        return make_client("data.root=s3://…")

    def _key(self, name: str) -> tuple[str, str]:
        bucket, prefix = split_folder(self.address)
        return bucket, f"{prefix}/{name}" if prefix else name

    def fetch(self, name: str, target: Path, size: int | None = None) -> None:
        """See Origin."""
        bucket, key = self._key(name)
        with self._explained(name):
            head = self._client.head_object(Bucket=bucket, Key=key)
            if size is not None and head["ContentLength"] != size:
                found = f"{head['ContentLength']:,} bytes instead of {size:,}"
                raise UserError(f"{self.address}/{name} is not the file that was indexed: it has {found}.")
            stored = StoredFile(bucket, key, name, head["ContentLength"], head["ETag"], head["LastModified"])
            fetch_file(self._client, stored, target)

    def read(self, name: str, start: int, size: int) -> bytes:
        """See Origin."""
        bucket, key = self._key(name)
        with self._explained(name):
            answer = self._client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + size - 1}")
            content: bytes = answer["Body"].read()
        return content

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            with explain_refusals(f"read data.root={self.address}/{name}"):
                yield
        except UserError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code in ("404", "NoSuchKey"):
                raise MissingFileError(f"{self.address}/{name}: no such file.") from error
            raise


@dataclass(frozen=True)
class Web:
    """A folder of a web server; the query of its address, such as a signature, is sent with each name."""

    url: str
    secret_headers: Mapping[str, str] | None = None
    """Sent to this server, and not to where it redirects."""

    @property
    def address(self) -> str:
        """Without the query and a password."""
        return public_address(self.url).rstrip("/")

    def _url(self, name: str) -> str:
        place, question, query = self.url.partition("?")
        return f"{place.rstrip('/')}/{name}{question}{query}"

    def fetch(self, name: str, target: Path, size: int | None = None, sha256: str | None = None) -> None:
        """See Origin; a file of another `sha256` is refused as well."""
        download(self._url(name), target, size=size, sha256=sha256, headers=self.secret_headers, bar=False)

    def read(self, name: str, start: int, size: int) -> bytes:
        """See Origin."""
        return read_range(self._url(name), start, size, headers=self.secret_headers)


class HubFile(NamedTuple):
    """What the hub says of a file."""

    bytes: int
    version: str
    """Changes with the content."""
    sha256: str | None
    """None for a small file, which is in git."""


@dataclass(frozen=True)
class Hub(Web):
    """A folder of a data set on the Hugging Face hub."""

    name: str = ""
    """Of the data set."""
    revision: str | None = None
    folder: str = ""

    def parquet_files(self) -> dict[str, HubFile]:
        """The Parquet files, by their paths from the folder. Raises UserError."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        options = {"path_in_repo": self.folder or None, "recursive": True, "revision": self.revision}
        try:
            found = [*HfApi().list_repo_tree(self.name, repo_type="dataset", **options)]  # type: ignore[arg-type]
        except Exception as error:  # of requests or of httpx, by the version of the package
            raise UserError(f"data.root={self.address} cannot be listed: {first_line(error)}.") from error
        start = len(f"{self.folder}/") if self.folder else 0
        files = {
            file.path[start:]: HubFile(file.size, file.blob_id, file.lfs.sha256 if file.lfs is not None else None)
            for file in found
            if isinstance(file, RepoFile) and file.path.endswith(".parquet")
        }
        if outside := [name for name in files if ".." in name.split("/")]:
            raise UserError(f"data.root={self.address} has a file outside of its folder: {outside[0]}.")
        return files


def _on_hub(root: str) -> Hub:
    """The files of a data set on the hub, with the user's token."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    found = HUB_ADDRESS.fullmatch(root)
    if found is None:
        raise UserError(f"data.root={root}: expected hf://datasets/user/name, @revision and a folder may follow.")
    name, revision, folder = found.groups()
    url = hf_hub_url(name, f"{folder.strip('/')}/-".strip("/"), repo_type="dataset", revision=revision)
    headers = build_hf_headers()
    secret = {key: headers[key] for key in headers if key.lower() == "authorization"}
    return Hub(url.removesuffix("-"), secret, name, revision, folder.strip("/"))
