"""An image is signed by its digest, and openssl alone says whether the signature holds."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.tools import requires

ROOT = Path(__file__).resolve().parents[2]
IMAGE = f"images.example.org/ml/adapterhub@sha256:{'ab' * 32}"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)


def run(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / ".ci/sign_images.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip()


def test_what_was_signed_is_verified_and_nothing_else(keys: tuple[str, str], tmp_path: Path) -> None:
    sbom, out = tmp_path / "sbom.cdx.json", tmp_path / "out"
    sbom.write_text("{}")
    assert run("sign", IMAGE, "--key", keys[0], "--sbom", str(sbom), "--out", str(out)) == (0, "")
    verify = ("verify", "--public-key", keys[1])
    assert run(*verify, IMAGE, str(out), "--sbom", str(sbom)) == (0, "")
    critical = json.loads((out / "payload.json").read_text())["critical"]
    assert critical["image"]["docker-manifest-digest"] == IMAGE.partition("@")[2]
    other = IMAGE.replace("ab", "cd")
    assert run(*verify, other, str(out)) == (1, f"{out} signs {IMAGE}, another image.")
    sbom.write_text('{"changed": 1}')
    assert "not the list of packages" in run(*verify, IMAGE, str(out), "--sbom", str(sbom))[1]
    (out / "payload.json").write_bytes((out / "payload.json").read_bytes().replace(b"ml", b"mk"))
    assert "was not signed with this key, or was changed" in run(*verify, IMAGE, str(out))[1]
    assert "has no digest" in run("sign", "adapterhub:0.3.0", "--key", keys[0], "--out", str(out))[1]


@requires("openssl")
def test_openssl_verifies_it_too(keys: tuple[str, str], tmp_path: Path) -> None:
    run("sign", IMAGE, "--key", keys[0], "--out", str(tmp_path))
    raw = tmp_path / "raw.sig"
    raw.write_bytes(base64.b64decode((tmp_path / "payload.sig").read_bytes()))
    command = ["openssl", "dgst", "-sha256", "-verify", keys[1], "-signature", str(raw), str(tmp_path / "payload.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "Verified OK")
