from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from adapterhub.embedded import restarted_process
from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.logs import Terminal
from adapterhub.embedded.process_list import Plan
from adapterhub.embedded.supervisor import Supervisor
from tests.embedded.fakes import alive, free_port, options, plan, program, step
from tests.waiting import wait_until


def test_all_run_when_ready_and_none_after_the_stop(home: Path) -> None:
    with Supervisor(options(home), plan(free_port())) as hub:
        hub.wait_ready(20)
        pids = hub.pids
        assert set(pids) == {"postgres", "valkey", "web", "worker"}
        assert all(map(alive, pids.values()))
        pids["grandchild"] = _grandchild(home)
    wait_until(lambda: not any(map(alive, pids.values())), 5, what="the end of all, the worker's own child included")


@pytest.mark.slow
def test_what_dies_is_started_again(home: Path) -> None:
    with Supervisor(options(home), plan(free_port())) as hub:
        hub.wait_ready(20)
        before, grandchild = hub.pids, _grandchild(home)
        for name in before:
            os.kill(before[name], signal.SIGKILL)
        wait_until(lambda: all(hub.pids[name] != before[name] and alive(hub.pids[name]) for name in before), 20)
        wait_until(lambda: not alive(grandchild), what="the end of what a killed worker left behind")
        hub.wait_ready(20)


@pytest.mark.slow
def test_lines_are_shown_with_the_name_and_kept_in_a_file(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Supervisor(options(home), plan(free_port())) as hub:
        hub.wait_ready(20)
    output = capfd.readouterr()
    assert output.out == ""
    expected = ["web         | listening", "migrate     | nothing to do", *(f"{name} ready (" for name in hub.pids)]
    assert [line for line in expected if line not in output.err] == []
    assert (home / "logs" / "web.log").read_text().startswith("listening\n")


@pytest.mark.slow
def test_a_failed_step_stops_the_start_and_leaves_nothing(home: Path) -> None:
    failing = Plan([step("migrate", "raise SystemExit('column missing')")])
    hub = Supervisor(options(home), failing, Terminal(quiet=True))
    with pytest.raises(StartError, match=r"The step migrate failed; see .*migrate\.log.*column missing"):
        hub.start()
    assert not any(map(alive, hub.pids.values()))


@pytest.mark.slow
def test_a_process_that_never_comes_up_is_named_with_its_last_words(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarted_process, "LONGEST_BACKOFF_S", 0.0)
    broken = Plan(processes=[program("web", "raise SystemExit('no such module')")])
    lost = pytest.raises(StartError, match=r"web does not come up; see .*web\.log.*no such module")
    with Supervisor(options(home), broken, Terminal(quiet=True)) as hub, lost:
        hub.wait_ready(20)


@pytest.mark.slow
def test_one_that_ignores_the_stop_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.embedded.supervisor.GRACE_S", 0.3)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('never said', flush=True); time.sleep(600)"
    with Supervisor(options(home), Plan(processes=[program("deaf", code)]), Terminal(quiet=True)) as hub:
        hub.wait_ready(20)
        pid = hub.pids["deaf"]
    assert not alive(pid)


@pytest.mark.slow
def test_a_second_start_on_the_same_folder_is_refused(home: Path) -> None:
    refusal = pytest.raises(StartError, match=rf"already runs .*{home} \(pid {os.getpid()}\).*make stop")
    with Supervisor(options(home), Plan(), Terminal(quiet=True)), refusal:
        Supervisor(options(home), Plan(), Terminal(quiet=True)).start()


def _grandchild(home: Path) -> int:
    last = [line for line in (home / "logs" / "worker.log").read_text().splitlines() if line.startswith("child ")][-1]
    return int(last.split()[1])
