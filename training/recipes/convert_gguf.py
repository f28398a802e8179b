"""Convert a GGUF file to a folder that transformers loads: `python -m training.recipes.convert_gguf FILE.gguf OUT_DIR`.

transformers reads the file. The folder's configuration names the release of transformers that wrote it, so another
release gives the folder another digest: a base model that is registered keeps its folder and is not converted again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from gguf import GGUFReader


class Unsupported(ValueError):
    """Raised when the file is not a GGUF, or transformers cannot read its architecture; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    """Convert the file that the arguments name to a folder; None takes those of the command line.

    Return the exit status: 0, or 2 with a message on standard error if it cannot be converted.
    """
    parser = argparse.ArgumentParser(prog="python -m training.recipes.convert_gguf", description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    try:
        convert(options.gguf, options.output)
    except (Unsupported, OSError) as error:
        sys.stderr.write(f"{options.gguf}: {error}\n")
        return 2
    return 0


def convert(source: Path, output: Path) -> None:
    """Write the model to the new folder `output`, in float32 and in one step: a failure leaves no `output`.

    Raises Unsupported, and FileExistsError if `output` exists.
    """
    if output.exists():
        raise FileExistsError(f"{output} already exists: remove it, or name another folder.")
    require_gguf(source)
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_folder(source, part)
    part.rename(output)


def require_gguf(source: Path) -> None:
    """Check that the file exists and is a GGUF. Raises Unsupported: transformers' own errors do not say so."""
    if not source.is_file():
        raise Unsupported("There is no such file.")
    try:
        GGUFReader(source)
    except (ValueError, IndexError) as error:
        raise Unsupported(f"This is not a GGUF file: {error}.") from None


def write_folder(source: Path, folder: Path) -> None:
    """Write the weights, configuration and tokenizer of the GGUF file into the folder.

    Raises Unsupported if transformers cannot read the file.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place, name = str(source.parent), source.name
    dense = GgufConfig(dequantize=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, quantization_config=dense)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    except ValueError as error:
        raise Unsupported(f"transformers cannot read it: {error}") from None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    # save_pretrained lets the owner alone read the weights; an engine may run as another user.
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)


if __name__ == "__main__":
    sys.exit(main())
