"""Exit 0 when this pod's vLLM holds every version that the control plane wants there.

A pod that was ready stays so while the control plane is away: routers serve on from their last table.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

MARK = Path(os.environ.get("READY_MARK", "/tmp/was-ready"))  # noqa: S108 - the pod's own
TOKEN = Path(os.environ.get("TOKEN_FILE", "/run/secrets/adapterhub/api_token"))


def get(url: str, **headers: str) -> bytes:
    """Return the body of the answer. Raises OSError."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=3) as answer:  # noqa: S310
        return bytes(answer.read())


def missing(engine: str) -> list[str] | None:
    """Return the versions that the control plane misses here; None while it does not know this engine."""
    url = f"{os.environ['CONTROL_PLANE']}/api/v1/clusters/{os.environ['CLUSTER']}/state/"
    # The control plane is asked past its front, which would have said that it took the call over TLS.
    headers = {"Authorization": f"Bearer {TOKEN.read_text().strip()}", "X-Forwarded-Proto": "https"}
    rows = json.loads(get(url, **headers))
    return next((row["missing"] for row in rows if row["url"] == engine and row["is_healthy"]), None)


def main() -> int:
    """Print why the pod is not ready, and return 1; or return 0."""
    engine = f"http://{os.environ['POD_IP']}:{os.environ.get('PORT', '8000')}"
    get(f"{engine}/health")
    try:
        names = missing(engine)
    except OSError as error:
        sys.stdout.write(f"The control plane does not answer ({error}).\n")
        return 0 if MARK.exists() else 1
    if names is None or names:
        sys.stdout.write("Not known yet.\n" if names is None else f"Not loaded yet: {', '.join(names)}.\n")
        MARK.unlink(missing_ok=True)
        return 1
    MARK.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
