"""Reports reach the stream, through outages of Valkey and the end of the router."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving_client.router.reporting.spool import Spool
from tests.fakes.routing import make_table
from tests.fakes.stage import Engine, Router
from tests.waiting import wait_until


def test_every_answer_is_reported_once(router: Router) -> None:
    expected = {router.complete().headers["x-response-id"] for _ in range(20)}
    assert sorted(report["response_id"] for report in router.reported(20)) == sorted(expected)


def test_reports_outlive_an_outage(router: Router, engine: Engine, tmp_path: Path) -> None:
    spool = tmp_path / "outcomes.spool"
    router.valkey.stop()
    expected = {router.complete().headers["x-response-id"] for _ in range(5)}
    wait_until(lambda: spool.exists() and len(spool.read_bytes().splitlines()) == 5, what="the spool")
    router.valkey.start()
    assert {report["response_id"] for report in router.reported(5)} == expected
    wait_until(lambda: not spool.exists(), what="the spool to go")


def test_a_spool_of_an_earlier_run_is_sent_without_traffic(router: Router, tmp_path: Path) -> None:
    Spool(tmp_path / "outcomes.spool").append([b'{"response_id":"old"}'])
    assert router.reported() == [{"response_id": "old"}]


def test_a_crash_leaves_no_half_report(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append([b'{"a":1}', b'{"a":2}'])
    whole = (tmp_path / "spool").read_bytes()
    for cut in range(len(whole)):
        (tmp_path / "spool").write_bytes(whole[:cut])
        assert [json.loads(line)["a"] for line in spool.read()] == [1, 2][: (cut + 1) // 8]


def test_the_spool_is_bounded_and_counts_what_it_lost(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=20)
    spool.append([b'{"a":1}', b'{"a":2}', b'{"a":3}'])
    spool.append([b'{"a":4}'])
    assert spool.read() == [b'{"a":1}', b'{"a":2}']
    assert spool.dropped == 2


def test_a_spool_that_cannot_be_written_counts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spool = Spool(tmp_path / "file/spool")
    spool.append([b'{"a":1}'])
    assert spool.dropped == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_unit_is_never_told(router: Router, engine: Engine, stream: bool) -> None:
    router.publish(make_table(engine.url, generation=2, weight=50))
    router.complete(user="alice@example.org", stream=stream)
    assert "alice" not in json.dumps(router.reported())
