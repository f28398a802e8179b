"""The address of a source of replicas, as a cluster names it.

`dns://host:port` asks for A and AAAA records, `srv://_service._tcp.name` for SRV records, and
`kubernetes://namespace/selector?port=name` follows the EndpointSlices that a selector of labels chooses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from adapterhub.core.errors import Invalid

HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62}\.?)+", re.I)
NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9][\w.-]{0,62}(=[\w.-]{1,63})?")
MEANING = "Where replicas are found: dns://, srv:// or kubernetes://; empty: they are added by hand."
FORMS = "dns://host:port, srv://_http._tcp.name or kubernetes://namespace/label=value?port=name"


class Kind(StrEnum):
    """The kinds of sources: addresses of a name in DNS, SRV records of a service, and EndpointSlices of Kubernetes."""

    DNS = "dns"
    SRV = "srv"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True)
class Source:
    """A source of replicas, by its kind.

    `name` is the host whose addresses DNS has, the name of SRV records, or the Kubernetes namespace. `port` is a number
    as text for DNS; for Kubernetes the name of a port, "" for the only one; for SRV "". `selector` are the labels that
    choose EndpointSlices, joined by commas, else "".
    """

    kind: Kind
    name: str
    port: str = ""
    selector: str = ""


def parse(text: str) -> Source:
    """Return the source at an address. Raises ValueError, which says what is wrong, for another form."""
    kind, separator, rest = text.strip().partition("://")
    if not separator or kind not in list(Kind):
        raise ValueError(f"{text!r} names no source of replicas: give {FORMS}.")
    match Kind(kind):
        case Kind.DNS:
            return host_and_port(rest)
        case Kind.SRV:
            require(HOST, rest, "a name such as _http._tcp.vllm.example.org")
            return Source(Kind.SRV, rest.lower())
        case Kind.KUBERNETES:
            return slices(rest)


def require_source(address: str) -> None:
    """Raise Invalid unless the address is that of a source of replicas, or empty."""
    try:
        _ = address and parse(address)
    except ValueError as error:
        raise Invalid(str(error), field="discovery", code="bad_discovery") from None


def host_and_port(text: str) -> Source:
    """Parse HOST:PORT as the source of a host's A and AAAA records. Raises ValueError for another form."""
    host, _, port = text.rpartition(":")
    require(HOST, host, "host:port, such as vllm.example.org:8000")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} has no port from 1 to 65535: give host:port.")
    return Source(Kind.DNS, host.lower(), str(int(port)))


def slices(text: str) -> Source:
    """Parse NAMESPACE/LABELS, or NAMESPACE/LABELS?port=NAME, as a source of EndpointSlices.

    Raises ValueError, which says what is wrong, for another form.
    """
    place, _, query = text.partition("?")
    namespace, _, selector = place.partition("/")
    require(NAMESPACE, namespace, "the namespace first, as in kubernetes://ml/adapterhub.io/fleet=llama")
    labels = selector.split(",")
    for label in labels:
        require(LABEL, label, "label=value, separated by commas, after the namespace")
    name, _, port = query.partition("=")
    if query and (name != "port" or not NAMESPACE.fullmatch(port)):
        raise ValueError(f"{query!r} is no port of a Service: give ?port= and its name.")
    return Source(Kind.KUBERNETES, namespace, port, ",".join(labels))


def require(form: re.Pattern[str], text: str, wanted: str) -> None:
    """Raise ValueError, which says what was `wanted`, unless the whole text is of the form."""
    if not form.fullmatch(text):
        raise ValueError(f"{text!r} is not {wanted}.")


def url_of(address: str, port: int) -> str:
    """Return the URL of an engine at an IP address, which may be of version 4 or 6, and a port."""
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
