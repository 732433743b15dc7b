"""Streams from the hub: each slot asks for its own shards."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.data.streaming.support import write_shards
from tests.support.fake_hub import serve

PROGRAM = """
import json, os, urllib.error, urllib.request
from tests.data.streaming.support import one_pass, stream_of
for kind in ("jsonl", "parquet"):
    stream = stream_of(f"owner/{kind}")
    for slot in range(2):
        print(json.dumps(one_pass(stream, slot, 2)))
        try:
            urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/next")
        except urllib.error.HTTPError:
            pass
"""


def test_slots_share_the_rows_of_the_hub_and_fetch_their_own_files(tmp_path: Path) -> None:
    with serve() as hub:
        for kind in ("jsonl", "parquet"):
            rows = write_shards(tmp_path / kind, kind, (12, 12, 12, 12))
            hub.commit("dataset", f"owner/{kind}", tmp_path / kind)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            env={**os.environ, **hub.environment(tmp_path / "home")},
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    lines, parquet = map(json.loads, done.stdout.splitlines()[:2]), done.stdout.splitlines()[2:]
    assert sorted(itertools.chain(*lines)) == sorted(rows)
    assert sorted(itertools.chain(*map(json.loads, parquet))) == sorted(rows)
    first, second, *_ = "\n".join(hub.requests).split("GET /next")
    files = [set(re.findall(r"GET \S+/resolve/\S+/(\S+)", part)) for part in (first, second)]
    assert len(files[0] - {"train-000.jsonl"}) <= 2  # which tells the columns
    assert len(files[1]) == 2
    assert len(files[0] | files[1]) == 4
