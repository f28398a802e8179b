"""Signature bundles of sigstore's layout, with the real package: ours verify with its command, and its ours with us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from django.core.management import CommandError, call_command

from adapterhub.core.errors import Invalid, Unavailable
from registry.evidence import sigstore_bundle
from registry.evidence.sigstore_bundle import BUNDLE, require_signed_by
from registry.models import AdapterVersion

Keys = tuple[Path, Path]


def written(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, folder: Path) -> Keys:
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return written(ec.generate_private_key(ec.SECP256R1()), tmp_path)


@pytest.fixture
def folder(version: AdapterVersion, keys: Keys, tmp_path: Path) -> Path:
    call_command("export_signed", version.served_name, str(tmp_path / "out"), "--key", str(keys[0]))
    return tmp_path / "out"


def command_of_the_package(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def flip(path: Path) -> None:
    raw = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def test_the_packages_own_command_verifies_it(folder: Path, keys: Keys) -> None:
    arguments = ("verify", "key", folder, "--signature", folder / BUNDLE, "--public_key", keys[1])
    done = command_of_the_package(*arguments)
    assert done.returncode == 0, done.stderr
    require_signed_by(folder, keys[1])
    flip(folder / "adapter_model.safetensors")
    assert command_of_the_package(*arguments).returncode != 0
    with pytest.raises(Invalid, match="adapter_model"):
        require_signed_by(folder, keys[1])


def test_what_the_packages_command_signed_is_verified(folder: Path, keys: Keys) -> None:
    (folder / BUNDLE).unlink()
    done = command_of_the_package("sign", "key", folder, "--signature", folder / BUNDLE, "--private_key", keys[0])
    assert done.returncode == 0, done.stderr
    require_signed_by(folder, keys[1])
    (folder / "more").write_text("a file that nobody signed")
    with pytest.raises(Invalid, match="more"):
        require_signed_by(folder, keys[1])


def test_another_key_did_not_sign_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    _, other = written(ec.generate_private_key(ec.SECP256R1()), tmp_path / "other")
    with pytest.raises(Invalid, match="not what was signed"):
        require_signed_by(folder, other)


def test_a_key_that_signs_no_bundle_is_refused_before_anything_is_written(
    version: AdapterVersion, tmp_path: Path
) -> None:
    private, _ = written(ed25519.Ed25519PrivateKey.generate(), tmp_path)
    with pytest.raises(CommandError, match="not an elliptic-curve key"):
        call_command("export_signed", version.served_name, str(tmp_path / "out"), "--key", str(private))
    assert not (tmp_path / "out").exists()


def test_without_the_package_it_says_what_to_install(folder: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sigstore_bundle, "find_spec", lambda _: None)
    with pytest.raises(Unavailable, match=r"adapterhub\[sigstore\]"):
        require_signed_by(folder, keys[1])
