"""python -m serving_client.engine: serves a base model and its adapters until SIGTERM."""

from __future__ import annotations

import argparse
import sys

import torch
import uvicorn
from transformers.utils.logging import disable_progress_bar

from serving_client import log_lines
from serving_client.engine.api.app import create_app
from serving_client.engine.engine import Engine, Limits
from serving_client.engine.errors import ApiError, ModelUnusable
from serving_client.engine.model import open_model
from serving_client.engine.short_lived_thread import in_passing_thread

GRACE_S = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the options of the command line; invalid arguments end the process with status 2, as argparse does."""
    parser = argparse.ArgumentParser(prog="python -m serving_client.engine", description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--served-model-name", required=True, help="name of the base model for clients")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--max-loras", type=_positive, default=8, help="different adapters in one batch")
    parser.add_argument("--max-cpu-loras", type=_positive, default=32, help="adapters kept in memory")
    parser.add_argument("--max-lora-rank", type=_positive, default=64)
    parser.add_argument("--max-batch", type=_positive, default=32, help="requests that run at once")
    parser.add_argument("--max-model-len", type=_positive, default=2048, help="tokens of prompt and answer")
    parser.add_argument(
        "--lora-modules",
        nargs="*",
        type=_named,
        default=[],
        metavar="NAME=FOLDER",
        help="adapters that are loaded at the start",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of weights; default: float32, on a GPU bfloat16")
    parser.add_argument("--threads", type=_positive, help="threads of the model; default: PyTorch's choice")
    log_lines.add_option(parser)
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{text} is not positive")
    return number


def _named(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise ValueError(f"{text} is not NAME=FOLDER")
    return name, folder


def build_engine(options: argparse.Namespace) -> Engine:
    """Return an engine with the base model and the adapters of --lora-modules; its thread is not started.

    Raises ModelUnusable if the model or one of the adapters cannot be served.
    """
    limits = Limits(
        max_loras=options.max_loras,
        max_cpu_loras=max(options.max_cpu_loras, options.max_loras),
        max_lora_rank=options.max_lora_rank,
        max_batch=options.max_batch,
        threads=options.threads,
    )
    dtype = DTYPES[options.dtype or ("bfloat16" if options.device == "cuda" else "float32")]
    base = open_model(options.model, options.max_model_len, options.device, dtype)
    engine = Engine(options.served_model_name, base, limits)
    for name, folder in options.lora_modules:
        load(engine, name, folder)
    return engine


def load(engine: Engine, name: str, folder: str) -> None:
    """Load an adapter into the engine under the name. Raises ModelUnusable if it cannot be served."""
    try:
        engine.adapters.load(name, folder)
    except ApiError as error:
        raise ModelUnusable(f"The adapter in '{folder}' cannot be served as {name}: {error}") from error


def main(arguments: list[str]) -> int:
    """Serve until a signal ends the process and return 0.

    If the model or an adapter of the command line cannot be served, print the reason on stderr and return 2.
    """
    options = parse_arguments(arguments)
    log_lines.start("%(asctime)s %(levelname)s %(name)s: %(message)s", options.log_format)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        engine = in_passing_thread(lambda: build_engine(options))
    except ModelUnusable as error:
        sys.stderr.write(f"{error}\n")
        return 2
    app = create_app(engine)
    # Health checks every second would drown the log, so no access log.
    uvicorn.run(
        app, host=options.host, port=options.port, access_log=False, log_config=None, timeout_graceful_shutdown=GRACE_S
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
