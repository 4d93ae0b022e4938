"""What is refused in a list of shards and of their images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imgcls.data.sharding.cache import Shard
from imgcls.data.sharding.index import Index
from imgcls.data.sharding.listing import ShardList, read_list

LISTED = {"shards": {"a.tar": {"bytes": 1}}, "arrays": f"images-{16 * '0'}.safetensors", "bytes": 1, "sha256": ""}


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": None},
        {"sha256": 3},
        {"arrays": None},
        *({"shards": {"a.tar": shard}} for shard in ({"bytes": None}, {"bytes": -1}, {"bytes": 1, "images": 0.5})),
        *({"shards": {name: {"bytes": 1}}} for name in ("shards.json", "../a.tar", "/a.tar", "a\0.tar")),
    ],
)
def test_a_list_of_wrong_types_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "shards.json"
    file.write_text(json.dumps(LISTED))
    assert read_list(file).shards == {"a.tar": Shard(1)}
    file.write_text(json.dumps(LISTED | change))
    with pytest.raises(ValueError, match=r"shards.json"):
        read_list(file)


@pytest.mark.parametrize(("start", "size"), [(512, 489), (-1, 10), (512, -1)])
def test_places_outside_of_the_shards_are_refused(start: int, size: int, tmp_path: Path) -> None:
    for starts, sizes in (([0, 512], [10, 488]), ([0, start], [10, size])):
        index = Index(1000, ["a.png", "b.png"], starts, sizes, ["0", "1"], widths=[1, 1], heights=[1, 1])
        ShardList.of([("a.tar", index)]).write(tmp_path)
        if sizes[1] == 488:
            assert ShardList.read(tmp_path).sizes.tolist() == sizes
    with pytest.raises(ValueError, match="places outside of the shards"):
        ShardList.read(tmp_path)
