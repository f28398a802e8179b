"""schemathesis walks the running instance from answer to request: no 5xx, every answer as described, nothing accepted
that the description forbids. `make soak` makes 5,000 calls.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
CALLS, CALLS_IN_SOAK = 250, 5000
# A token that is revoked, or a project that is archived, would end the walk.
ENDING = r".*/(revoke|archive|break-glass)/$"
STEPS, EXAMPLES = 20, 5
TAKES = 0.8
# A merged export loads torch first, on a machine that does other work too.
ANSWER_S = 120


class Known:
    """Puts names of things that exist into most requests: what is only made up seldom gets past 404 and 422."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.world, self.chance = world, random.Random(10)
        served = [version.served_name for version in world["versions"]]
        self.fields = {
            "project": ["eu"],
            "base_model": ["tiny"],
            "adapter": ["dora"],
            "cluster": ["cpu"],
            "alias": ["compliance"],
            "dataset": [world["pk"]["datasets"]],
            "version": served,
            "candidate": served,
            "expected_version": served,
            "rollout": [str(world["pk"]["rollouts"])],
            "response_id": [world["pk"]["responses"]],
        }

    def put(self, case: Any) -> None:
        kind = case.operation.path.removeprefix("/api/v1/").split("/")[0]
        for name in case.path_parameters or {}:
            known = self.world.get("pk" if name == "id" else name, {})
            if kind in known and self.chance.random() < TAKES:
                case.path_parameters[name] = str(known[kind])
        if case.operation.path.startswith("/api/v1/audit/") and self.chance.random() < TAKES:
            case.query = {**(case.query or {}), "project": "eu"}
        for name in case.body if isinstance(case.body, dict) else ():
            if name in self.fields and self.chance.random() < TAKES:
                case.body[name] = self.chance.choice(self.fields[name])


def report(failure: Exception, case: Any, response: Any) -> str:
    """Describe a failed check with the request that shows it again."""
    title = failure.title if isinstance(failure, Failure) else type(failure).__name__
    lines = [f"{case.operation.label}: {title}: {failure}", case.as_curl_command(), str(response.status_code)]
    return "\n".join([*lines, response.text[:500]])


@pytest.mark.slow
def test_no_walk_ends_in_a_fault(
    site: str, ci: str, world: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from registry.models import AdapterVersion

    schema = schemathesis.openapi.from_url(f"{site}/api/schema/?format=json")
    schema.config.update(headers={"Authorization": f"Bearer {ci}"}, request_timeout=ANSWER_S)
    schema.config.checks.negative_data_rejection.expected_statuses = ["4xx", "5xx"]
    known = Known({**world, "versions": AdapterVersion.objects.order_by("number")})
    answers: list[int] = []
    # The first of each kind, so that one fault does not hide the others.
    faults: dict[tuple[str, str], str] = {}

    # No router answers here, so that a test of answers has none.
    walked = schema.exclude(path_regex=ENDING).exclude(path="/api/v1/blind-tests/", method="POST")

    class Walk(walked.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            known.put(case)

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            answers.append(response.status_code)
            try:
                case.validate_response(response, checks=CHECKS)
            except FailureGroup as group:
                for failure in group.exceptions:
                    faults.setdefault((case.operation.label, type(failure).__name__), report(failure, case, response))

    wanted = CALLS_IN_SOAK if request.config.getoption("soak") else CALLS
    walks = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=True,
    )
    # The instance remembers, so that a walk whose beginning hypothesis repeats may meet other answers: no fault of the
    # API. The next walk begins elsewhere.
    for number in range(wanted):
        with contextlib.suppress(FlakyStrategyDefinition):
            seed(number)(Walk).run(settings=walks)
        if len(answers) >= wanted:
            break
    if faults:
        pytest.fail("\n\n".join(faults.values()))
    done = sum(200 <= answer < 300 for answer in answers)
    assert len(answers) >= wanted
    assert done > len(answers) / 5, f"{done} of {len(answers)} requests were carried out"
