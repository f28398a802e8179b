"""An OCI registry, reached by `oras` with the credentials of `docker login`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import TYPE_CHECKING, Any

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.oci.modelpack import MANIFEST, Blob
from adapterhub.core.counts import counted

if TYPE_CHECKING:
    from oras.container import Container
    from oras.provider import Registry

BLOCK, CHUNK_BYTES = 2**20, 16 * 2**20
TIMEOUT_S = 30
MOST_MANIFEST_BYTES = 4 * 2**20
REFUSALS = ("401", "403", "authentication", "nauthorized", "denied", "UNAUTHORIZED", "DENIED")


@contextmanager
def foreseen(reference: str) -> Iterator[None]:
    """Convert errors of the registry in the block to Ended: with NOT_ALLOWED if it refused the caller, else FAILED."""
    from requests import RequestException

    try:
        yield
    except (RequestException, ValueError) as error:
        text = str(error)
        is_refusal = any(word in text for word in REFUSALS)
        raise Ended(f"{reference}: {text[:500]}", Exit.NOT_ALLOWED if is_refusal else Exit.FAILED) from error


class Artifacts:
    """One repository of a registry. Its methods raise ValueError and requests' errors, see `foreseen`."""

    def __init__(self, reference: str, *, plain_http: bool) -> None:
        import oras.container
        import oras.provider

        self._container: Container = oras.container.Container(reference)
        host = self._container.registry
        asked_for = challenge_of(f"{'http' if plain_http else 'https'}://{host}/v2/")
        self._registry: Registry = oras.provider.Registry(host, insecure=plain_http, auth_backend=asked_for)
        # The library repeats each failure, refused passwords too, for two minutes; a push that is repeated goes on.
        once = type(self._registry).do_request.__wrapped__
        self._registry.do_request = MethodType(once, self._registry)
        self._registry.auth.load_configs(self._container)
        if asked_for == "basic" and not hasattr(self._registry.auth, "_basic_auth"):
            raise ValueError(f"authentication is needed: run `docker login {host}` first.")

    @property
    def place(self) -> str:
        """Return the repository without tag or digest."""
        return f"{self._container.registry}/{self._container.api_prefix}"

    def push(self, path: Path, media_type: str, name: str) -> Blob:
        """Upload a file, unless the repository has its content, and return it as a layer."""
        with path.open("rb") as stream:
            digest = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
        blob = Blob(name, digest, path.stat().st_size, media_type)
        # The library reads what is not sent in chunks into memory as a whole.
        is_large = blob.size > CHUNK_BYTES
        answer = self._registry.upload_blob(
            str(path), self._container, blob.descriptor(), do_chunked=is_large, chunk_size=CHUNK_BYTES
        )
        require_ok(answer, f"the upload of {name}")
        return blob

    def push_json(self, content: dict[str, Any], media_type: str) -> dict[str, Any]:
        """Upload a JSON object and return its descriptor."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "content.json"
            path.write_text(json.dumps(content, indent=2, sort_keys=True))
            blob = self.push(path, media_type, path.name)
        return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}

    def push_manifest(self, manifest: dict[str, Any]) -> str:
        """Put the manifest under the reference and return its digest."""
        answer = self._registry.upload_manifest(manifest, self._container)
        require_ok(answer, "the manifest")
        return str(answer.headers["Docker-Content-Digest"])

    def manifest(self) -> tuple[bytes, str]:
        """Fetch the manifest that the reference names; return its bytes and their digest.

        Raises ValueError if the registry refuses or has none, if the manifest is over MOST_MANIFEST_BYTES,
        or if the reference has a digest that is not that of the bytes.
        """
        url = f"{self._registry.prefix}://{self._container.manifest_url()}"
        answer = self._registry.do_request(url, "GET", headers={"Accept": MANIFEST}, stream=True)
        require_ok(answer, "the manifest")
        content = bounded(answer, MOST_MANIFEST_BYTES)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if (named := self._container.digest) and named != digest:
            raise ValueError(f"The registry gave the manifest {digest}, not {named}.")
        return content, digest

    def text(self, digest: str, size: int) -> bytes:
        """Return the bytes of a small blob, compared with its digest and size."""
        answer = self._registry.get_blob(self._container, digest, stream=True)
        require_ok(answer, f"the blob {digest[:19]}")
        content = bounded(answer, size)
        require_content(digest, size, hashlib.sha256(content).hexdigest(), len(content))
        return content

    def fetch(self, blob: Blob, target: Path) -> None:
        """Write a blob to the file `target`, compared with its digest and size."""
        answer = self._registry.get_blob(self._container, blob.digest, stream=True)
        require_ok(answer, f"the blob of {blob.path}")
        size, digest = 0, hashlib.sha256()
        with answer, target.open("wb") as sink:
            for block in answer.iter_content(BLOCK):
                size += len(block)
                if size > blob.size:
                    raise ValueError(f"{blob.path} is longer than the {counted(blob.size, 'byte')} of its descriptor.")
                digest.update(block)
                sink.write(block)
        require_content(blob.digest, blob.size, digest.hexdigest(), size)


def challenge_of(url: str) -> str:
    """Return what the registry asks for, `basic` or `token`, as oras names it."""
    import requests

    with requests.get(url, timeout=TIMEOUT_S, stream=True) as answer:
        return "basic" if answer.headers.get("WWW-Authenticate", "").lower().startswith("basic") else "token"


def bounded(answer: Any, most: int) -> bytes:
    """Return the body of an answer. Raises ValueError if it is over `most` bytes."""
    content = b""
    with answer:
        for block in answer.iter_content(BLOCK):
            content += block
            if len(content) > most:
                raise ValueError(f"The registry's answer is over {most} bytes.")
    return content


def require_content(digest: str, size: int, actual: str, actual_size: int) -> None:
    """Raise ValueError unless what was received is what its descriptor says."""
    if (digest, size) != (f"sha256:{actual}", actual_size):
        raise ValueError(
            f"The registry gave sha256:{actual[:12]}, {counted(actual_size, 'byte')}, not {digest[:19]}, "
            f"{counted(size, 'byte')}."
        )


def require_ok(answer: Any, what: str) -> None:
    """Raise ValueError for an answer that is no success, with the registry's own words."""
    if answer.status_code >= 300:
        raise ValueError(f"The registry refused {what} with {answer.status_code}: {answer.text[:300]}")
