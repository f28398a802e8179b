"""Export of a version with a signature bundle that sigstore's package `model-signing` can verify.

The key is an operator's elliptic-curve key (P-256, P-384 or P-521), because the bundle format does not support Ed25519,
which the installation signs with. Needs the extra `adapterhub[sigstore]`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adapterhub.core.errors import Invalid, Unavailable
from registry.models import AdapterVersion

BUNDLE = "model.sig"


def write_signed(version: AdapterVersion, target: Path, private_key: Path) -> Path:
    """Copy the stored files to the new folder `target`, sign them there and return the path of the bundle.

    Raises ArtifactError if the files or the version's own signature are not valid, Unavailable without the package
    model-signing, and Invalid for a key that cannot sign a bundle.
    """
    signing = package().signing
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise Invalid(f"{private_key} is not an elliptic-curve key without a password: {error}", field="key") from error
    folder = version.fetch(target)
    config.set_hashing_config(hashing(folder / BUNDLE)).sign(folder, folder / BUNDLE)
    return folder / BUNDLE


def require_signed_by(folder: Path, public_key: Path) -> None:
    """Check that the folder holds exactly the files that were signed with the key of `public_key`.

    Raises Invalid if it does not, and Unavailable without the package model-signing.
    """
    config = package().verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        config.set_hashing_config(hashing(folder / BUNDLE)).verify(folder, folder / BUNDLE)
    except (ValueError, OSError) as error:
        raise Invalid(f"{folder} is not what was signed: {error}", field="folder") from error


def hashing(bundle: Path) -> Any:
    """Return the settings that hash every file of the folder but the bundle, as the package's own command does.

    Raises Unavailable if the package is missing.
    """
    return package().hashing.Config().set_ignored_paths(paths=[bundle], ignore_git_paths=True)


def package() -> Any:
    """Import and return the package model-signing. Raises Unavailable if it is not installed."""
    if not find_spec("model_signing"):
        raise Unavailable("The package model-signing is not installed: `pip install adapterhub[sigstore]`.")
    import model_signing

    return model_signing
