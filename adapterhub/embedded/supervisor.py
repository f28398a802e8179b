"""The supervisor: starts everything in order, restarts what dies, and stops everything together."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import Layout
from adapterhub.embedded.lock import FileLock, Locked
from adapterhub.embedded.logs import LogFile, Terminal
from adapterhub.embedded.options import Options
from adapterhub.embedded.postgres import EmbeddedPostgres
from adapterhub.embedded.probes import LogProbe
from adapterhub.embedded.process import Child, ProcessSpec, stop_all
from adapterhub.embedded.process_list import PROJECT, Plan, Step, child_environment, full_plan, reachable_host
from adapterhub.embedded.restarted_process import Supervised
from adapterhub.embedded.service import Service
from adapterhub.embedded.startup_checks import check_database, check_ports, check_redis, check_space
from adapterhub.embedded.valkey import EmbeddedValkey

TICK_S = 0.1
STEP_POLL_S = 1.0
GRACE_S = 10.0
LOCK_WAIT_S = 0.5
READY_S = 600.0


class Supervisor:
    """The supervisor of one data folder's processes: it starts them in order, restarts what dies, and stops all.

    Call `start` from a thread that outlives the processes: they end with it. `plan` is by default the whole product.
    """

    def __init__(self, options: Options, plan: Plan | None = None, terminal: Terminal | None = None) -> None:
        self.options = options
        self.plan = plan or full_plan(options)
        self._layout = Layout(options.home)
        self._terminal = terminal or Terminal()
        self._lock = FileLock(lock_path(options.home))
        self._services: list[Service] = []
        self._processes: list[Supervised] = []
        # Held while children are started or stopped, so that nothing is restarted during a stop.
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @property
    def url(self) -> str:
        """Return the address of the web process."""
        return f"http://{reachable_host(self.options.host)}:{self.options.port}"

    @property
    def pids(self) -> dict[str, int]:
        """Return the process ids by process name, including those of Postgres and Valkey."""
        services = {service.name: service.pid for service in self._services}
        return services | {process.spec.name: process.child.pid for process in self._processes}

    def start(self) -> None:
        """Check the settings, then start everything; return when all processes run, before they are ready.

        Raises StartError, with nothing left running.
        """
        self._check_external()
        self._take_lock()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until every process has answered.

        Raises StartError for one that has not within `timeout_s`, or gave up.
        """
        deadline = time.monotonic() + timeout_s
        while missing := [process for process in self._processes if not process.ready]:
            self._raise_for_lost(missing, deadline)
            time.sleep(TICK_S)

    def supervise_forever(self) -> None:
        """Block until `stop` is called."""
        self._stopping.wait()

    def stop(self) -> None:
        """Stop all processes at once, then Valkey and Postgres, and wait for them. May be called twice."""
        self._stopping.set()
        with self._turn:
            stop_all([process.child for process in self._processes], GRACE_S)
            for service in reversed(self._services):
                service.stop()
        # Ended last: the kernel kills the processes that a thread has started when that thread ends.
        if self._watcher.is_alive():
            self._watcher.join()
        self._lock.release()

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def _check_external(self) -> None:
        for variable, url in (
            ("DATABASE_URL", self.options.database_url),
            ("DATABASE_OWNER_URL", self.options.database_owner_url),
            ("DATABASE_SIGNER_URL", self.options.database_signer_url),
        ):
            if url:
                check_database(variable, url)
        if self.options.redis_url:
            check_redis(self.options.redis_url)
        check_space(self.options.home)

    def _take_lock(self) -> None:
        self._layout.create()
        try:
            self._lock.acquire(LOCK_WAIT_S)
        except Locked as locked:
            raise StartError(
                f"AdapterHub already runs with the data folder {self.options.home} (pid {locked.pid}): "
                "stop it with `make stop` first."
            ) from locked

    def _start(self) -> None:
        check_ports(self.options.host, self.plan.ports)
        self._start_services()
        for step in self.plan.steps:
            self._run_step(step)
        for spec in self.plan.processes:
            self._processes.append(self._supervised(spec))
        self._watcher.start()

    def _start_services(self) -> None:
        wanted: list[Service] = []
        wanted += [] if self.options.database_url else [EmbeddedPostgres(self.options.home)]
        wanted += [] if self.options.redis_url else [EmbeddedValkey(self.options.home)]
        for service in wanted:
            began = time.monotonic()
            self._services.append(service)
            service.start()
            self._terminal.say(f"{service.name} ready ({time.monotonic() - began:.1f} s)")

    def _run_step(self, step: Step) -> None:
        began = time.monotonic()
        spec = ProcessSpec(step.name, step.argv, child_environment(self.options), LogProbe(""), PROJECT)
        child = Child(spec, LogFile(self._layout.logs / f"{step.name}.log"), self._terminal.sink(step.name))
        try:
            while not child.wait_until(time.monotonic() + STEP_POLL_S):
                pass
        finally:
            child.kill()
        if child.exit_code() != 0:
            log = self._layout.logs / f"{step.name}.log"
            raise StartError(f"{step.failure}; see {log}. Its last output: {child.last_words()}")
        self._terminal.say(f"{step.name} done ({time.monotonic() - began:.1f} s)")

    def _supervised(self, spec: ProcessSpec) -> Supervised:
        log = LogFile(self._layout.logs / f"{spec.name}.log")
        return Supervised(spec, self._terminal, log, self._terminal.sink(spec.name))

    def _watch(self) -> None:
        while not self._stopping.wait(TICK_S):
            with self._turn:
                if not self._stopping.is_set():
                    self._look_after_all_or_say_why()

    def _look_after_all_or_say_why(self) -> None:
        """Check all processes and report an error instead of raising it.

        The watcher thread must not end: the processes that it has restarted would end with it.
        """
        try:
            self._look_after_all()
        except (StartError, OSError) as refused:
            self._terminal.say(str(refused))
            self._stopping.wait(1.0)

    def _look_after_all(self) -> None:
        for service in self._services:
            if not service.is_running():
                self._terminal.say(f"{service.name} ended; starting it again")
                service.start()
        for process in self._processes:
            process.check()

    def _raise_for_lost(self, missing: list[Supervised], deadline: float) -> None:
        for process in missing:
            if process.gave_up or time.monotonic() > deadline:
                log = self._layout.logs / f"{process.spec.name}.log"
                last_words = process.child.last_words()
                raise StartError(
                    f"The process {process.spec.name} does not come up; see {log}. Its last output: {last_words}"
                )


def lock_path(home: Path) -> Path:
    """Return the path of the file that the supervisor of a data folder locks, with its process id in it."""
    return Layout(home).run / "supervisor.lock"
