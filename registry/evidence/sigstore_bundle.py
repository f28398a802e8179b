"""A version's folder with a signature bundle in the layout of sigstore's `model-signing`, for those who verify so.

The key is an operator's elliptic one (P-256, P-384 or P-521): the bundle knows no Ed25519, with which the installation
signs. Needs the extra `adapterhub[sigstore]`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adapterhub.core.errors import Invalid, Unavailable
from registry.models import AdapterVersion

BUNDLE = "model.sig"


def write_signed(version: AdapterVersion, target: Path, private_key: Path) -> Path:
    """The stored files in the new folder `target`, and their signature beside them; its path.

    Raises ArtifactError, Unavailable without the package, and Invalid for a key that signs no bundle.
    """
    signing = package().signing
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise Invalid(f"{private_key} is no elliptic key without a password: {error}", field="key") from error
    folder = version.fetch(target)
    config.set_hashing_config(hashing(folder / BUNDLE)).sign(folder, folder / BUNDLE)
    return folder / BUNDLE


def require_signed_by(folder: Path, public_key: Path) -> None:
    """Raises Invalid unless the folder holds just the files that the key signed."""
    config = package().verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        config.set_hashing_config(hashing(folder / BUNDLE)).verify(folder, folder / BUNDLE)
    except (ValueError, OSError) as error:
        raise Invalid(f"{folder} is not what was signed: {error}", field="folder") from error


def hashing(bundle: Path) -> Any:
    """Every file of the folder but the bundle itself, as the package's own command reads it."""
    return package().hashing.Config().set_ignored_paths(paths=[bundle], ignore_git_paths=True)


def package() -> Any:
    if not find_spec("model_signing"):
        raise Unavailable("The package model-signing is not installed: `pip install adapterhub[sigstore]`.")
    import model_signing

    return model_signing
