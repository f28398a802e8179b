"""Child process that downloads a snapshot from a hub; if the hub never answers, the process can be killed.

    python -m registry.base_models.download_process REPOSITORY REVISION FOLDER

Exit 0: the files are in FOLDER. Exit 3: the hub does not deliver them, and the last line of output says why.
"""

from __future__ import annotations

import os
import sys

from adapterhub.jobs.child import REFUSED

FILES = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]


def main(repository: str, revision: str, folder: str) -> int:
    """Download the snapshot of `repository` into the folder and return 0; an empty `revision` is the hub's default.

    If the hub does not deliver it, print the reason to stdout and return REFUSED.
    """
    # A child is offline unless it is there to ask a hub.
    os.environ |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(repository, revision=revision or None, local_dir=folder, allow_patterns=FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        sys.stdout.write(f"{str(error).strip().splitlines()[0]}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
