"""A real DNS server on loopback: addresses, services, names that are gone, and a server that is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dnslib import AAAA, QTYPE, RCODE, RR, SRV, A, DNSRecord
from dnslib.server import BaseResolver, DNSServer

from registry.replica_sources import dns_records
from registry.replica_sources.address import parse
from registry.replica_sources.dns_records import Dns, LookupFailed
from tests.builders.ports import free_ports


class Zone(BaseResolver):  # type: ignore[misc]
    """Answers from `records`, (name, kind) -> values; SERVFAIL for everything while `is_ill`."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[object]] = {}
        self.is_ill = False

    def resolve(self, request: DNSRecord, handler: object) -> DNSRecord:
        reply, name = request.reply(), str(request.q.qname).rstrip(".")
        if self.is_ill:
            reply.header.rcode = RCODE.SERVFAIL
        elif not any(known == name for known, _ in self.records):
            reply.header.rcode = RCODE.NXDOMAIN
        kind = QTYPE[request.q.qtype]
        for value in self.records.get((name, kind), []) if not self.is_ill else []:
            reply.add_answer(RR(name, request.q.qtype, rdata=value, ttl=1))
        return reply


@pytest.fixture
def zone() -> Zone:
    return Zone()


@pytest.fixture
def dns(zone: Zone) -> Iterator[Dns]:
    [port] = free_ports(1)
    servers = [DNSServer(zone, address="127.0.0.1", port=port, tcp=tcp) for tcp in (False, True)]
    for server in servers:
        server.start_thread()
    yield Dns([f"127.0.0.1:{port}"])
    for server in servers:
        server.stop()
        server.server.server_close()


def test_every_address_of_a_name_is_a_replica(dns: Dns, zone: Zone) -> None:
    zone.records["vllm.test", "A"] = [A("10.0.0.2"), A("10.0.0.1")]
    zone.records["vllm.test", "AAAA"] = [AAAA("fd00::1")]
    source = parse("dns://vllm.test:8000")
    assert dns.urls(source) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000"]
    zone.records["vllm.test", "A"] = [A("10.0.0.3")]
    assert "http://10.0.0.3:8000" in dns.urls(source), "nothing is remembered"


def test_a_service_names_targets_and_ports(dns: Dns, zone: Zone) -> None:
    name = "_http._tcp.vllm.test"
    zone.records[name, "SRV"] = [SRV(0, 10, 8000, "one.test"), SRV(0, 10, 8001, "two.test")]
    zone.records["one.test", "A"] = [A("10.0.0.1")]
    zone.records["two.test", "A"] = [A("10.0.0.2"), A("10.0.0.3")]
    urls = ["http://10.0.0.1:8000", "http://10.0.0.2:8001", "http://10.0.0.3:8001"]
    assert dns.urls(parse(f"srv://{name}")) == urls


def test_a_name_that_is_gone_names_nobody_and_an_ill_server_tells_nothing(dns: Dns, zone: Zone) -> None:
    assert dns.urls(parse("dns://nobody.test:8000")) == []
    zone.is_ill = True
    with pytest.raises(LookupFailed, match=r"DNS does not tell A of vllm\.test"):
        dns.urls(parse("dns://vllm.test:8000"))


def test_a_server_that_is_away_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_records, "LIFETIME_S", 0.3)
    [port] = free_ports(1)
    with pytest.raises(LookupFailed, match="does not tell"):
        Dns([f"127.0.0.1:{port}"]).urls(parse("dns://vllm.test:8000"))
