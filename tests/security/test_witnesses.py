"""A trail forged by who owns database and key: witnesses outside know better, and a verdict says how far they reach."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.utils.timezone import now

from adapterhub.accounts.models import Project
from adapterhub.audit import checkpoints, tasks, verifier
from adapterhub.audit.export import export_lines, manifest_of, write_bundle
from adapterhub.audit.external import siem, witnesses
from adapterhub.audit.external.proof import judged
from adapterhub.audit.installation_key import public_key_pem, signed
from adapterhub.audit.models import AuditEvent, Checkpoint, Follower, Receipt
from adapterhub.audit.tags import Tag
from adapterhub.audit.verifier import MANIFEST_DOMAIN, link_hash
from adapterhub.core.actor import system
from adapterhub.embedded.postgres import EmbeddedPostgres
from tests.audit import tamper
from tests.builders.rest import client
from tests.tools import requires


def record(project: Project, count: int = 1) -> None:
    for number in range(count):
        with transaction.atomic():
            AuditEvent.record(
                Tag.PROJECT_CREATED, project, by=system("test"), project=project, after={"n": number, "x": 0.5}
            )


def forge(sequence: int) -> None:
    """Edit an event in its columns and in its bytes, and make every hash after it again."""
    tamper.rehash(sequence)
    tamper.as_owner(
        f"UPDATE {tamper.TABLE} SET after = replace(after::text, '0.5', '0.7')::jsonb WHERE sequence = {sequence}"  # noqa: S608
    )


@pytest.fixture
def trail(fresh_database: str, project: Project) -> Project:
    """Eight events, none of them signed."""
    shutil.rmtree(Path(django_settings.ARTIFACT_STORE) / "checkpoints", ignore_errors=True)
    record(project, 8)
    return project


@pytest.mark.threat("D33")
def test_checkpoints_come_by_themselves_by_count_and_by_time(trail: Project, settings: Any) -> None:
    tasks.checkpoint()
    events = AuditEvent.objects.filter(project=trail).count()
    assert Checkpoint.objects.get(project=trail).sequence == events
    record(trail, 99)
    tasks.checkpoint()
    assert Checkpoint.objects.filter(project=trail).count() == 1
    record(trail)
    tasks.checkpoint()
    assert Checkpoint.objects.filter(project=trail).last().sequence == events + 100
    settings.AUDIT_CHECKPOINT_AGE = dt.timedelta(0)
    tasks.checkpoint()
    assert Checkpoint.objects.filter(project=trail).count() == 3


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, settings: Any) -> str:
    """The address of a witness of each kind."""
    kind = request.param
    if kind == "file":
        (tmp_path / "worm").mkdir()
        return f"file://{tmp_path}/worm"
    if kind == "s3":
        store = request.getfixturevalue("bucket")
        return f"s3://{store.bucket}/witness"
    if kind == "postgres":
        return request.getfixturevalue("second_postgres")
    return request.getfixturevalue("authority")


@pytest.fixture
def second_postgres(postgres: EmbeddedPostgres, fresh_database: str) -> Iterator[str]:
    """Another database, of another owner than the application's role."""
    owner = connections.settings["owner"]
    name = f"witness_{fresh_database[-8:]}"
    with connections["owner"].cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
    yield f"postgres://{owner['USER']}@/{name}?host={owner['HOST']}"
    with connections["owner"].cursor() as cursor:
        cursor.execute(f'DROP DATABASE "{name}"')


@pytest.mark.threat("D33")
@pytest.mark.parametrize(
    "place", ["file", "s3", "postgres", pytest.param("tsa", marks=requires("openssl"))], indirect=True
)
@pytest.mark.slow
def test_what_the_owner_of_the_database_made_again_is_found(trail: Project, settings: Any, place: str) -> None:
    """History is edited, every hash and every checkpoint made again with the installation's own key."""
    settings.AUDIT_WITNESSES = [place]
    tasks.checkpoint()
    [proof] = judged(trail, []).proofs
    events = AuditEvent.objects.filter(project=trail).count()
    assert (proof.sequence, proof.trouble, judged(trail, []).faults) == (events, "", [])
    first = Checkpoint.objects.get(project=trail)
    forged_from = events - 3
    forge(forged_from)
    if not place.startswith("tsa"):
        # A time-stamp is kept in the database; it can be lost there, but not be made for another head.
        with connections["owner"].cursor() as cursor:
            for table in ("audit_receipt", "audit_checkpoint"):
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
                cursor.execute(f"DELETE FROM {table}")  # noqa: S608
    checkpoints.write(trail)
    verdict = judged(trail, [])
    assert [(fault.sequence, fault.kind) for fault in verdict.faults] == [(first.sequence, "rehash")]


@pytest.mark.threat("D33")
def test_a_verdict_says_how_far_proof_reaches(
    trail: Project, ci: str, tmp_path: Path, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forged after the newest checkpoint, the trail holds in itself: nobody outside can know."""
    (tmp_path / "worm").mkdir()
    settings.AUDIT_WITNESSES = [f"file://{tmp_path}/worm"]
    tasks.checkpoint()
    proved = AuditEvent.objects.filter(project=trail).count()
    record(trail, 3)
    forge(proved + 2)
    answer = client(ci).get("/api/v1/audit/verify/", {"project": "eu"}).json()
    assert (answer["ok"], answer["signed"], answer["witnessed"]) == (True, proved, proved)
    assert answer["by_chain_alone"] == answer["events"] - proved >= 3
    assert answer["proofs"][0]["witness"] == f"file:{tmp_path}/worm"
    call_command("audit_verify")
    output = capsys.readouterr().out
    assert f"eu: witnessed by file:{tmp_path}/worm: event {proved}, signed" in output
    assert f"events after {proved} are held by the chain alone" in output


@pytest.mark.threat("D33")
def test_the_stand_alone_verifier_says_it_too(trail: Project, tmp_path: Path) -> None:
    checkpoints.write(trail)
    last = AuditEvent.objects.filter(project=trail).count()
    record(trail, 2)
    (tmp_path / "events.jsonl").write_text("".join(export_lines(trail)))
    (tmp_path / "key.pem").write_bytes(public_key_pem())
    folder = Path(django_settings.ARTIFACT_STORE) / "checkpoints"
    verdict = verifier.verdict(tmp_path / "events.jsonl", folder, tmp_path / "key.pem")
    assert (verdict["ok"], verdict["witnessed"], verdict["by_chain_alone"]) == (True, last, 2)


@pytest.mark.threat("D33")
def test_without_a_witness_the_command_says_so(trail: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tasks.checkpoint()
    call_command("audit_verify")
    assert "eu: no witness outside: set ADAPTERHUB_AUDIT_WITNESSES" in capsys.readouterr().out


@pytest.mark.threat("D33")
def test_a_witness_that_is_away_holds_nobody_up_and_gets_all_later(
    trail: Project, tmp_path: Path, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AUDIT_WITNESSES = ["postgres://nobody@127.0.0.1:1/none", f"file://{tmp_path}/later/deep"]
    (tmp_path / "later").write_text("no folder")
    tasks.checkpoint()
    record(trail)
    assert "witness is away: postgres:127.0.0.1/none" in caplog.text
    assert "nobody@" not in caplog.text
    assert not Receipt.objects.exists()
    assert [bool(proof.trouble) for proof in judged(trail, []).proofs] == [True, True]
    (tmp_path / "later").unlink()
    (tmp_path / "later/deep").mkdir(parents=True)
    assert witnesses.witness_all() == Checkpoint.objects.count()
    assert judged(trail, []).witnessed == Checkpoint.objects.get(project=trail).sequence


@pytest.mark.threat("D33")
def test_receipts_cannot_be_changed_by_the_application(trail: Project, tmp_path: Path, settings: Any) -> None:
    settings.AUDIT_WITNESSES = [f"file://{tmp_path}"]
    tasks.checkpoint()
    for change in (lambda: Receipt.objects.update(witness="x"), lambda: Receipt.objects.all().delete()):
        with pytest.raises(Exception, match=r"append|refuse|permission"), transaction.atomic():
            change()


@pytest.mark.threat("D33")
@pytest.mark.parametrize(
    ("minutes", "fault"), [(-60, True), (60, True), (-2, False), (2, False)], ids=["past", "future", "slow", "fast"]
)
def test_time_runs_forward(trail: Project, minutes: int, fault: bool) -> None:
    event = AuditEvent(
        project=trail,
        at=now() + dt.timedelta(minutes=minutes),
        tag=Tag.PROJECT_CREATED,
        actor_name="test",
        auth_method="system",
        object_type="project",
        object_id="1",
        object_name="eu",
    )
    with transaction.atomic():
        event.append()
    kinds = [(fault.sequence, fault.kind) for fault in judged(trail, []).faults]
    assert kinds == ([(event.sequence, "time")] if fault else [])
    if fault:
        with pytest.raises(CommandError, match="not intact"):
            call_command("audit_verify")


@pytest.mark.threat("D33")
def test_an_event_from_before_its_checkpoint_is_dated_back(trail: Project) -> None:
    """Somebody appends an event of last week after the chain was signed."""
    checkpoints.write(trail)
    event = AuditEvent(
        project=trail,
        at=now() - dt.timedelta(days=7),
        tag=Tag.PROJECT_CREATED,
        actor_name="test",
        auth_method="system",
        object_type="request",
        object_id="1",
        object_name="eu",
    )
    with transaction.atomic():
        event.append()
    assert judged(trail, []).faults == [], "a read that was sealed later"
    event.object_type = "project"
    with transaction.atomic():
        event.pk = None
        event.append()
    assert [fault.kind for fault in judged(trail, []).faults] == ["time"]


def certificate(folder: Path, name: str, *, stamps: bool = False) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key: of a host, or of a time-stamping authority."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    purpose = ExtendedKeyUsageOID.TIME_STAMPING if stamps else ExtendedKeyUsageOID.SERVER_AUTH
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.now(dt.UTC) - dt.timedelta(days=1))
        .not_valid_after(dt.datetime.now(dt.UTC) + dt.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = (folder / f"{name}.pem", folder / f"{name}.key")
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[1].write_bytes(pem)
    return paths


@contextmanager
def over_tls(folder: Path, answer: Callable[[bytes, dict[str, str]], tuple[int, bytes]]) -> Iterator[tuple[int, Path]]:
    """An HTTPS server on localhost whose POSTs `answer` answers; its port and its certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, content = answer(body, dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    pem, key = certificate(folder, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1], pem
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def authority(tmp_path: Path, settings: Any) -> Iterator[str]:
    """A time-stamping authority: openssl behind HTTPS."""
    pem, key = certificate(tmp_path, "stamps", stamps=True)
    (tmp_path / "serial").write_text("01\n")
    (tmp_path / "tsa.cnf").write_text(
        f"[tsa]\ndefault_tsa = t\n[t]\nserial = {tmp_path}/serial\nsigner_cert = {pem}\nsigner_key = {key}\n"
        "signer_digest = sha256\ndefault_policy = 1.2.3.4\ndigests = sha256\naccuracy = secs:1\n"
        "ess_cert_id_chain = no\ness_cert_id_alg = sha256\n"
    )

    def stamped(query: bytes, _: dict[str, str]) -> tuple[int, bytes]:
        (tmp_path / "query.tsq").write_bytes(query)
        options = ["-config", str(tmp_path / "tsa.cnf"), "-queryfile", str(tmp_path / "query.tsq")]
        done = subprocess.run(
            ["openssl", "ts", "-reply", *options, "-out", str(tmp_path / "reply.tsr")],  # noqa: S607
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return 200, (tmp_path / "reply.tsr").read_bytes()

    with over_tls(tmp_path, stamped) as (port, tls):
        settings.AUDIT_TSA_CERTIFICATES, settings.AUDIT_CA = str(pem), str(tls)
        yield f"tsa://localhost:{port}/"


@pytest.mark.threat("D33")
@requires("openssl")
def test_a_stamp_of_another_authority_proves_nothing(
    trail: Project, tmp_path: Path, settings: Any, authority: str
) -> None:
    settings.AUDIT_WITNESSES = [authority]
    tasks.checkpoint()
    assert judged(trail, []).witnessed > 0
    (tmp_path / "other").mkdir()
    settings.AUDIT_TSA_CERTIFICATES = str(certificate(tmp_path / "other", "stamps", stamps=True)[0])
    assert judged(trail, []).witnessed == 0


def alone(bundle: Path, *arguments: str | Path) -> dict[str, Any]:
    """The verdict of the verifier as a program by itself, without AdapterHub."""
    program = shutil.copy(verifier.__file__, bundle.parent / "verifier.py")
    options = ["--checkpoints", bundle / "checkpoints", "--public-key", bundle / "public-key.pem", *arguments]
    done = subprocess.run([sys.executable, "-I", program, bundle, *options], capture_output=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


@pytest.mark.threat("D33")
@requires("openssl")
@pytest.mark.slow
def test_the_stand_alone_verifier_reads_the_time_stamps(
    trail: Project, tmp_path: Path, settings: Any, authority: str
) -> None:
    """The attack: who has key and database makes trail and checkpoints again; a stamp of the old head remains."""
    settings.AUDIT_WITNESSES = [authority]
    tasks.checkpoint()
    proved = Checkpoint.objects.filter(project=trail).latest("sequence").sequence
    record(trail, 2)
    write_bundle(trail, tmp_path / "bundle")
    roots = settings.AUDIT_TSA_CERTIFICATES
    outcome = alone(tmp_path / "bundle", "--tsa-certificates", roots)
    assert (outcome["ok"], outcome["stamped"], outcome["stamps_refused"]) == (True, proved, 0)
    assert abs(now() - dt.datetime.fromisoformat(outcome["stamped_at"])) < dt.timedelta(minutes=2)
    assert (outcome["sequence"], outcome["by_chain_alone"]) == (proved + 2, 2)
    assert "stamped" not in alone(tmp_path / "bundle")
    (tmp_path / "other").mkdir()
    other = certificate(tmp_path / "other", "stamps", stamps=True)[0]
    outcome = alone(tmp_path / "bundle", "--tsa-certificates", other)
    assert (outcome["stamped"], outcome["stamped_at"], outcome["stamps_refused"]) == (0, None, 1)
    forge(proved - 1)
    checkpoints.write(trail)
    write_bundle(trail, tmp_path / "forged")
    outcome = alone(tmp_path / "forged", "--tsa-certificates", roots)
    assert (outcome["ok"], outcome["fault"], outcome["sequence"]) == (False, "rehash", proved)


@pytest.mark.threat("D33")
@requires("openssl")
def test_a_stamp_holds_for_its_checkpoint_alone(trail: Project, tmp_path: Path, settings: Any, authority: str) -> None:
    """The attack: the stamp of an old checkpoint is put beside a new one."""
    settings.AUDIT_WITNESSES = [authority]
    tasks.checkpoint()
    settings.AUDIT_WITNESSES = []
    record(trail, 2)
    checkpoints.write(trail)
    bundle = tmp_path / "bundle"
    write_bundle(trail, bundle)
    [stamp] = bundle.rglob("*.tsr")
    older, newer = sorted((bundle / "checkpoints").rglob("*.json"))[-2:]
    assert stamp.name.startswith(older.name)
    stamp.rename(stamp.with_name(stamp.name.replace(older.name, newer.name)))
    (bundle / "manifest.json").write_bytes(signed(MANIFEST_DOMAIN, manifest_of(trail, bundle)))
    outcome = alone(bundle, "--tsa-certificates", settings.AUDIT_TSA_CERTIFICATES)
    assert (outcome["stamped"], outcome["stamps_refused"]) == (0, 1)


@pytest.mark.threat("D33")
def test_a_siem_gets_every_event_at_least_once_with_its_place(trail: Project, tmp_path: Path, settings: Any) -> None:
    taken: list[dict[str, Any]] = []
    statuses = iter([500, 200])

    def take(body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        assert headers["Authorization"] == "Bearer secret-of-the-siem"
        taken.extend(json.loads(line) for line in body.splitlines())
        return next(statuses, 200), b""

    with over_tls(tmp_path, take) as (port, tls):
        settings.AUDIT_SIEM, settings.AUDIT_CA = f"https://localhost:{port}/in", str(tls)
        settings.AUDIT_SIEM_TOKEN = "secret-of-the-siem"  # noqa: S105
        tasks.follow()
        assert not Follower.objects.filter(sequence__gt=0).exists(), "it was not taken"
        tasks.follow()
        sent_again = len(taken)
        tasks.follow()
        assert len(taken) == sent_again
        record(trail)
        tasks.follow()
    ours = [line for line in taken if line["chain"] == "eu"]
    events = AuditEvent.objects.filter(project=trail).count()
    assert [line["sequence"] for line in ours][-events:] == list(range(1, events + 1))
    for line in ours:
        assert link_hash(bytes.fromhex(line["prev"]), line["event"].encode()).hex() == line["hash"]
    assert Follower.objects.get(project=trail).sequence == events


class Syslog(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.server.taken.append(self.rfile.read())  # type: ignore[attr-defined]


@pytest.mark.threat("D33")
def test_a_syslog_gets_framed_messages(trail: Project, settings: Any) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Syslog) as server:
        server.taken = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        settings.AUDIT_SIEM = f"syslog://127.0.0.1:{server.server_address[1]}"
        count = siem.follow()
        server.shutdown()
        content = b"".join(server.taken)  # type: ignore[attr-defined]
    messages = []
    while content:
        size, _, content = content.partition(b" ")
        messages.append(content[: int(size)].decode())
        content = content[int(size) :]
    assert len(messages) == count == AuditEvent.objects.count()
    assert all(message.startswith("<109>1 20") for message in messages)
    assert json.loads(messages[-1].partition("\ufeff")[2])["chain"] == "eu"


@pytest.mark.threat("D33")
def test_a_siem_that_is_away_is_asked_again(trail: Project, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.AUDIT_SIEM = "syslog://127.0.0.1:1"
    assert siem.follow() == 0
    assert "SIEM does not take events" in caplog.text
