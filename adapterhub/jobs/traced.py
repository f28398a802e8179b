"""`python -m adapterhub.jobs.traced TRACEPARENT MODULE ...`: run the module as a program in a span of that trace."""

from __future__ import annotations

import runpy
import sys

from serving_client import telemetry


def main() -> None:
    """Run the module in the command line inside a span of the trace that is given there."""
    traceparent, module = sys.argv[1:3]
    del sys.argv[:2]
    telemetry.start("job")
    with telemetry.working(module, traceparent) as span:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                telemetry.fail(span)
            raise


if __name__ == "__main__":
    main()
