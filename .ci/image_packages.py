"""The packages of an image without Docker: an environment of what its lock file names, lent by the one that runs this.

`python .ci/image_packages.py FOLDER` writes FOLDER/app.cdx.json and FOLDER/router.cdx.json, the list of each image's
packages with their licences, as the Dockerfile does in the image.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("app", "router")
LISTER = ROOT / ".venv-sbom/bin/python"


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for image in IMAGES:
        with tempfile.TemporaryDirectory() as scratch:
            write_list(environment(image, Path(scratch) / "venv"), folder / f"{image}.cdx.json")
    return 0


def write_list(packages: Path, file: Path) -> None:
    command = [str(LISTER), "-m", "cyclonedx_py", "environment", str(packages), "--output-file", str(file)]
    subprocess.run(command, check=True)  # noqa: S603 - our own arguments


def environment(image: str, folder: Path) -> Path:
    """A virtual environment in the folder that holds the image's packages and no others."""
    venv.create(folder)
    [packages] = folder.glob("lib/python3*/site-packages")
    owners = Counter(top for installed in distributions() for top in {file.parts[0] for file in files(installed)})
    for installed in packages_of(image):
        lend(installed, owners, packages)
    return folder


def packages_of(image: str) -> list[Distribution]:
    """What the image installs on a machine like this one. Raises SystemExit when another version is installed here."""
    cuda = [requirement for requirement in requirements("cuda") if image == "app" and is_installed(requirement.name)]
    return [
        installed_distribution(requirement)
        for requirement in (*cuda, *requirements(image))
        if not requirement.marker or requirement.marker.evaluate()
    ]


def requirements(lock: str) -> Iterator[Requirement]:
    for line in (ROOT / f"requirements/{lock}.lock").read_text().splitlines():
        if line[:1].isalnum():
            yield Requirement(line.removesuffix("\\"))


def is_installed(name: str) -> bool:
    """False on a machine without a GPU for what only torch's build for CUDA brings."""
    return any(distributions(name=name))


def installed_distribution(requirement: Requirement) -> Distribution:
    installed = next(iter(distributions(name=requirement.name)), None)
    if installed is None or not requirement.specifier.contains(installed.version):
        version = installed and installed.version
        raise SystemExit(f"The lock files ask for {requirement}, and {version} is installed here: run `make install`.")
    return installed


def lend(installed: Distribution, owners: Counter[str], packages: Path) -> None:
    """Link the distribution's folders and modules; of a folder that others share (`google`) only its own files."""
    own = {PurePath(file.parts[0]) if owners[file.parts[0]] == 1 else PurePath(file) for file in files(installed)}
    for name in own:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).symlink_to(str(installed.locate_file(name)))


def files(installed: Distribution) -> Iterator[PurePath]:
    """What it has in site-packages itself: no scripts, no bytecode of single modules."""
    return (file for file in installed.files or () if file.parts[0] not in ("..", "__pycache__"))


if __name__ == "__main__":
    sys.exit(main())
