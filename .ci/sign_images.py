"""Sign an image by its digest, and verify that without a network.

    sign_images.py sign   --key KEY.pem IMAGE@sha256:... [--sbom FILE] --out FOLDER
    sign_images.py verify --public-key PUBLIC.pem IMAGE@sha256:... FOLDER

The payload is that of `cosign sign` ("simple signing"): the image's name and the digest of its manifest; the digest of
its list of packages stands under `optional`. The signature is ECDSA over P-256 with SHA-256, in base64, so that
`openssl dgst -verify` and `cosign verify-blob --key` read it. Make a key with
`openssl ecparam -name prime256v1 -genkey -noout`, keep it offline, and publish its public half.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

IMAGE = re.compile(r"([\w.:/-]+)@(sha256:[0-9a-f]{64})")
PAYLOAD, SIGNATURE = "payload.json", "payload.sig"


class Refused(Exception):
    """Raised with the sentence that says why."""


def parts_of(image: str) -> tuple[str, str]:
    """Name and digest of an image. A tag may be moved, and is refused."""
    match = IMAGE.fullmatch(image)
    if match is None:
        raise Refused(f"{image!r} has no digest: name the image as NAME@sha256:..., as `docker push` prints it.")
    return match[1], match[2]


def payload(image: str, sbom: Path | None) -> bytes:
    name, digest = parts_of(image)
    packages = {"sbom-sha256": hashlib.sha256(sbom.read_bytes()).hexdigest()} if sbom else None
    critical = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": critical, "optional": packages}, separators=(",", ":"), sort_keys=True).encode()


def sign(image: str, key_file: Path, sbom: Path | None, folder: Path) -> None:
    key = load_pem_private_key(key_file.read_bytes(), password=None)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise Refused(f"{key_file} is no key on the curve P-256.")
    text = payload(image, sbom)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAYLOAD).write_bytes(text)
    (folder / SIGNATURE).write_bytes(base64.b64encode(key.sign(text, ECDSA(SHA256()))))


def verify(image: str, public_key: Path, sbom: Path | None, folder: Path) -> None:
    name, digest = parts_of(image)
    key = load_pem_public_key(public_key.read_bytes())
    if not isinstance(key, EllipticCurvePublicKey):
        raise Refused(f"{public_key} is no public key on the curve P-256.")
    text = (folder / PAYLOAD).read_bytes()
    try:
        key.verify(base64.b64decode((folder / SIGNATURE).read_bytes()), text, ECDSA(SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise Refused(f"{folder} was not signed with this key, or was changed.") from error
    signed = json.loads(text)
    signed_image = (
        signed["critical"]["identity"]["docker-reference"],
        signed["critical"]["image"]["docker-manifest-digest"],
    )
    if signed_image != (name, digest):
        raise Refused(f"{folder} signs {signed_image[0]}@{signed_image[1]}, another image.")
    if sbom and (signed["optional"] or {}).get("sbom-sha256") != hashlib.sha256(sbom.read_bytes()).hexdigest():
        raise Refused(f"{sbom} is not the list of packages that was signed.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("sign", "verify"))
    parser.add_argument("image")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--public-key", type=Path)
    parser.add_argument("--sbom", type=Path)
    given = parser.parse_args()
    folder = given.out or given.folder
    key = given.key if given.verb == "sign" else given.public_key
    if folder is None or key is None:
        parser.error("name the folder and the key")
    try:
        (sign if given.verb == "sign" else verify)(given.image, key, given.sbom, folder)
    except (Refused, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
