"""Whether what a configuration imports is in the container: in AWS's image, or installed by the job."""

from __future__ import annotations

import ast
import functools
import importlib.metadata as metadata
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.launch.sagemaker.bundle import source_files, targets

# The packages that all of AWS's training images of PyTorch 2.11 to 2.13 have, with CUDA and without, as the lock files
# in docker/pytorch of https://github.com/aws/deep-learning-containers say (read on 2026-11-29, commit e0ecedea of
# 2026-08-21). What those of 2.14 ask for by name is among them. Images of 2.8 to 2.10 have fewer.
NAMES = """
aiobotocore aiohappyeyeballs aiohttp aioitertools aiosignal alembic annotated-doc annotated-types
antlr4-python3-runtime anyio apsw apswutils attrs bcrypt beartype beautifulsoup4 blinker blis bokeh boto3 botocore
brotli cachetools catalogue certifi cffi charset-normalizer click cloudpathlib cloudpickle confection contourpy
cryptography cycler cymem databricks-sdk deepdiff deepspeed dill docker einops fastai fastapi fastcore fastdownload
fastlite fastprogress fasttransform filelock flask flask-cors flatbuffers fonttools frozenlist fsspec gevent
geventhttpclient gitdb gitpython google-auth graphene graphql-core graphql-relay greenlet gunicorn h11 hjson httpcore
httptools httpx huey idna imageio importlib-metadata iniconfig inotify-simple invoke itsdangerous jinja2 jmespath
joblib json5 jsonschema jsonschema-specifications kiwisolver llvmlite mako markdown-it-py markupsafe matplotlib mdurl
ml-dtypes mlflow mlflow-skinny mlflow-tracing mmh3 mock mpmath msgpack multidict murmurhash narwhals nest-asyncio
networkx ninja numba numpy oauthlib omegaconf onnx onnxruntime opentelemetry-api opentelemetry-proto opentelemetry-sdk
opentelemetry-semantic-conventions orderly-set packaging pandas paramiko pillow pip platformdirs plotly pluggy
plum-dispatch preshed prettytable propcache protobuf psutil py-cpuinfo pyarrow pyasn1 pyasn1-modules pycparser
pydantic pydantic-core pyfunctional pygments pyiceberg pynacl pyparsing pyroaring pytest python-dateutil python-dotenv
python-fasthtml python-multipart python-rapidjson pytz pyyaml referencing requests retrying rich rpds-py s3fs
s3transfer sagemaker sagemaker-core sagemaker-mlflow sagemaker-mlops sagemaker-pytorch-training
sagemaker-schema-inference-artifacts sagemaker-serve sagemaker-train sagemaker-training schema scikit-learn scipy
seaborn setuptools shap shellingham six skops slicer smart-open smclarify smdebug-rulesconfig smmap soupsieve spacy
spacy-legacy spacy-loggers sqlalchemy sqlparse srsly starlette strictyaml sympy tabulate tblib tenacity thinc
threadpoolctl torch torchaudio torchvision tornado tqdm tritonclient typer typing-extensions typing-inspection tzdata
urllib3 uvicorn uvloop wasabi watchfiles wcwidth weasel websockets werkzeug wrapt xyzservices yarl zipp zope-event
zope-interface zstandard
"""
IMAGE = frozenset(NAMES.split())


def check_imports(config: Mapping[str, Any], code: Iterable[Path], requirements: Iterable[str]) -> None:
    """Raise UserError if the job's code imports a package that neither the image has nor the job installs.

    Args:
        config: the job's; its `_target_`s are imported too.
        code: the user's modules and packages, see `find_user_modules`.
        requirements: lines for pip, see `requirements_text`.
    """
    code = list(code)
    own = {path.stem if path.is_file() else path.name for path in code}
    ignored = own | set(sys.stdlib_module_names) | {"imgcls"}
    wanted = {target.partition(".")[0]: "the configuration" for target in targets(config)}
    for path in code:
        for file in [path] if path.is_file() else source_files(path):
            if file.suffix == ".py":
                wanted |= dict.fromkeys(_imports(file), str(file))
    wanted = {module: where for module, where in wanted.items() if module not in ignored}
    if not wanted:
        return  # what follows reads the metadata of all packages
    there = _with_dependencies([*IMAGE, *requirements])
    for module, where in wanted.items():
        packages = {_normalised(name) for name in _owners().get(module, [module])}
        if not packages & there:
            raise UserError(
                f"{where} needs {sorted(packages)[0]}, which AWS's image does not have, and nothing installs it. "
                "Name it in launch.requirements=FILE, or give launch.image=URI."
            )


def absent(requirements: Iterable[str]) -> dict[str, list[str]]:
    """The `packages` that are installed here but not in a container of AWS's image that installs `requirements`, and
    their `modules`."""
    there = _with_dependencies([*IMAGE, *requirements, "imgcls"])
    packages = {_normalised(found.name) for found in metadata.distributions() if found.name} - there
    modules = {module for module, names in _owners().items() if packages.issuperset(map(_normalised, names))}
    return {"modules": sorted(modules - set(sys.stdlib_module_names)), "packages": sorted(packages)}


def _imports(file: Path) -> Iterator[str]:
    """The top-level modules that are imported when `file` is, but for those whose absence it handles."""
    try:
        nodes = ast.parse(file.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError):
        return  # importing it fails here already
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """The packages here that have each top-level module."""
    return metadata.packages_distributions()


def _with_dependencies(requirements: Iterable[str]) -> set[str]:
    """The packages of `requirements`, and what they need as far as they are installed here."""
    found: set[str] = set()
    todo = [re.split(r"[^A-Za-z0-9._-]", line.strip())[0] for line in requirements]
    while todo:
        name = _normalised(todo.pop())
        if not name or name in found:
            continue
        found.add(name)
        todo += _needs(name)
    return found


@functools.cache
def _needs(name: str) -> list[str]:
    """The packages that an installed one needs; none if it is not installed."""
    from packaging.requirements import Requirement

    try:
        parsed = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [line.name for line in parsed if line.marker is None or line.marker.evaluate({"extra": ""})]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
