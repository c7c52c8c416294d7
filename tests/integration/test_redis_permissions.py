"""What ltxq's user on Redis must be granted: the lines of the documents are enough, each right that
is missing is named before any work is done, and a server that would lose jobs is refused.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import patch

import pytest
import redis

from fleet import PATIENCE, SMALL, Fleet, eventually, wait_until_running, worker_environment
from gateways import Gateway
from ltxq import Client
from ltxq.celery import make_app
from ltxq.cli import main
from ltxq.errors import ConfigurationError, QueueUnavailable
from ltxq.gateway.access.keys import new_key
from ltxq.ledger import Ledger, Role
from ltxq.ledger.permissions import OPTIONAL, acl_line
from ltxq.ops.doctor import examine
from ltxq.ops.findings import Finding
from ltxq.ops.redis_checks import check_redis
from ltxq.settings import Settings
from ltxq_worker.consumer.admission import admit
from ltxq_worker.embedded.servers import EmbeddedServer, S3Server, free_port
from receiver import Receiver
from redis_servers import LOOPBACK, MAKES, admin, start_redis
from variants import variants

ROLES: tuple[Role, ...] = get_args(Role)
OPERATING = Path(__file__).resolve().parents[2] / "docs" / "operating.md"
GROUND = ("resetkeys", "resetchannels", "-@all", "+@connection", "-@dangerous")
PASSWORD = "p4ss"


@pytest.fixture(scope="module", params=MAKES)
def server(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[EmbeddedServer]:
    with start_redis(tmp_path_factory.mktemp(request.param), make=request.param) as made:
        yield made


@pytest.fixture
def root(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with admin(server) as connection:
        connection.flushall()
        connection.acl_log_reset()
        yield connection
        connection.acl_deluser("u")


def permit(root: redis.Redis, rules: str, name: str = "u") -> None:
    root.execute_command("ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *rules.split())


def settings_of(server: EmbeddedServer, name: str = "u", **others: Any) -> Settings:
    url = f"redis://{name}:{PASSWORD}@{LOOPBACK}:{server.port}/0"
    return Settings(url=url, default_model="instant", **others)


def refusal(server: EmbeddedServer, role: Role) -> ConfigurationError | None:
    """What a start of this role ends with."""
    with closing(Ledger(settings_of(server), role)) as ledger:
        try:
            ledger.check()
        except ConfigurationError as exc:
            return exc
    return None


@pytest.mark.parametrize("role", ROLES)
def test_each_right_that_is_missing_is_named_at_the_start(
    server: EmbeddedServer, root: redis.Redis, role: Role
) -> None:
    permit(root, acl_line(role))
    assert refusal(server, role) is None
    assert root.dbsize() == 0
    optional = {f"+{command}" for command in OPTIONAL}
    for rule in set(acl_line(role).split()) - {*GROUND, *optional}:
        permit(root, acl_line(role, without=[rule]))
        error = refusal(server, role)
        if error is None:  # Redis 7 counts SELECT among @connection
            assert rule == "+select"
            continue
        assert re.search(rf"ACL SETUSER u .*{re.escape(rule)}( |\.)", error.hint), (rule, error)
        told = error.message.lower() if rule[0] == "+" else error.message
        assert rule[1:] in told, (rule, error)
        assert PASSWORD not in str(error)
    for name in optional:
        permit(root, acl_line(role, without=[name]))
        assert refusal(server, role) is None
    assert root.dbsize() == 0


@pytest.mark.parametrize(
    ("role", "whole", "narrow"),
    [
        ("client", "~ltxq:*", "~ltxq:3:*"),
        ("gateway", "~ltxq:*", "~ltxq:3:* ~ltxq:id"),
        ("client", "~ltxq.*", "~ltxq.?.probe"),
        ("worker", "~_kombu.*", "~_kombu.binding.*"),
        ("worker", "~*.celery.pidbox*", "~*.celery.pidbox"),
        ("flower", "~celeryev.*", "~celeryev.?????"),
    ],
)
def test_a_pattern_that_fits_some_of_the_keys_is_too_narrow(
    server: EmbeddedServer, root: redis.Redis, role: Role, whole: str, narrow: str
) -> None:
    permit(root, f"{acl_line(role, without=[whole])} {narrow}")
    error = refusal(server, role)
    assert error
    assert whole in error.hint


def test_a_user_without_channels_is_refused_before_half_of_a_job_is_written(
    server: EmbeddedServer, root: redis.Redis
) -> None:
    permit(root, "resetkeys resetchannels ~* +@all")
    with Client(settings=settings_of(server)) as client:
        with pytest.raises(
            ConfigurationError, match=r"use the channel '.*' with PUBLISH"
        ) as refused:
            client.submit("a fox", **SMALL)
        assert re.search(r"ACL SETUSER u .*&ltxq:3:changed:\*", refused.value.hint)
        assert root.dbsize() == 0
        permit(root, acl_line("client"))
        client.submit("a fox", **SMALL)


def test_a_right_that_is_taken_away_later_is_named(
    server: EmbeddedServer, root: redis.Redis
) -> None:
    permit(root, acl_line("client"))
    with Client(settings=settings_of(server)) as client:
        job = client.submit("a fox", **SMALL)
        for rule in ("+hmget", "&ltxq:3:changed:*", "~ltxq:*", "+evalsha"):
            permit(root, acl_line("client", without=[rule]))
            with pytest.raises(ConfigurationError) as refused:
                client.cancel(job.id)
            assert rule in refused.value.hint


def findings(settings: Settings, status: str) -> list[Finding]:
    return [finding for finding in check_redis(settings) if finding.status == status]


def test_what_a_user_may_not_read_is_a_note(server: EmbeddedServer, root: redis.Redis) -> None:
    permit(root, "resetkeys resetchannels ~* &* +@all -@dangerous")
    settings = settings_of(server)
    for role in ROLES:
        assert refusal(server, role) is None
    assert findings(settings, "problem") == findings(settings, "warning") == []
    (note,) = findings(settings, "skipped")
    assert "may not run INFO" in note.message
    assert "+info" in note.hint


def test_the_right_to_choose_a_database_is_named_too(
    server: EmbeddedServer, root: redis.Redis
) -> None:
    permit(root, acl_line("client", 3) + " -select")
    url = settings_of(server).url.get_secret_value().replace("/0", "/3")
    with closing(Ledger(Settings(url=url))) as ledger, pytest.raises(ConfigurationError) as told:
        ledger.check()
    assert "run SELECT" in told.value.message
    assert "ACL SETUSER u +select" in told.value.hint


def test_doctor_says_which_role_a_user_can_have(server: EmbeddedServer, root: redis.Redis) -> None:
    permit(root, acl_line("client"))
    assert findings(settings_of(server), "problem") == []
    lines = [f"{each.message} {each.hint}" for each in findings(settings_of(server), "warning")]
    assert any(re.search("cannot run a worker. If it should, grant it:.*blmove", x) for x in lines)
    permit(root, acl_line("client", without=["+hset"]))
    (problem,) = findings(settings_of(server), "problem")
    assert "does not let its user 'u' run HSET." in problem.message


# --- servers that would lose jobs ----------------------------------------------------------------


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with start_redis(tmp_path / "lone") as made:
        yield made


def test_wait_is_needed_only_where_replicas_must_confirm(lone: EmbeddedServer) -> None:
    settings = settings_of(lone, redis_replicas=1)
    with admin(lone) as root:
        permit(root, acl_line("client") + " -wait")
        with (
            closing(Ledger(settings)) as ledger,
            pytest.raises(ConfigurationError, match="run WAIT"),
        ):
            ledger.check()
        permit(root, acl_line("client"))
        with (
            Client(settings=settings) as client,
            pytest.raises(QueueUnavailable, match="LTXQ_REDIS_REPLICAS") as unkept,
        ):
            client.submit("a fox", **SMALL)
        permit(root, acl_line("worker"))
    assert unkept.value.idempotency_key
    (problem,) = findings(settings, "problem")
    assert "It has 0 replicas; LTXQ_REDIS_REPLICAS asks for 1" in problem.message


def test_a_server_that_evicts_jobs_is_refused(
    lone: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    with admin(lone) as root, closing(Ledger(Settings(url=url_of(lone)), "worker")) as ledger:
        root.config_set("maxmemory-policy", "allkeys-lru")
        ledger.check()  # there is no maxmemory
        root.config_set("maxmemory", "100mb")
        with pytest.raises(ConfigurationError, match=r"allkeys-lru: .* deletes jobs") as refused:
            ledger.check()
        assert "maxmemory-policy noeviction" in refused.value.hint
        root.config_set("maxmemory-policy", "volatile-lru")
        ledger.check()  # no record of a job has an expiry
        assert "volatile-lru: full, it deletes Celery's results" in caplog.text
    lines = [each.message for each in findings(Settings(url=url_of(lone)), "warning")]
    assert any("Celery's results" in line for line in lines)


def test_a_replica_is_refused_at_the_start(lone: EmbeddedServer) -> None:
    with admin(lone) as root, closing(Ledger(Settings(url=url_of(lone)), "worker")) as ledger:
        root.replicaof(LOOPBACK, 1)
        with pytest.raises(ConfigurationError, match="read-only replica") as refused:
            ledger.check()
        assert "Point LTXQ_URL at the primary" in refused.value.hint


@pytest.mark.parametrize("slots", [(0, 16383), (0, 1)])
def test_a_clusters_node_is_refused(tmp_path: Path, slots: tuple[int, int]) -> None:
    """With all slots keys of one call lie in several; without, they are another node's."""
    port = next(port for port in iter(free_port, 0) if port < 45_000)  # + 10,000: the bus's
    with (
        start_redis(tmp_path / "node", port=port, cluster_enabled="yes") as node,
        admin(node) as root,
    ):
        root.execute_command("CLUSTER", "ADDSLOTS", *range(slots[0], slots[1] + 1))
        settings = Settings(url=url_of(node))
        for act in (lambda ledger: ledger.check(), lambda ledger: ledger.queue_id()):
            with (
                closing(Ledger(settings, "client")) as ledger,
                pytest.raises(ConfigurationError, match="node of a Redis Cluster") as refused,
            ):
                act(ledger)
            assert "cluster-enabled no" in refused.value.hint
        found = examine(settings, (("Redis", check_redis),))
        assert any(f.status == "problem" and "Redis Cluster" in f.message for f in found)


def url_of(server: EmbeddedServer) -> str:
    return f"redis://{LOOPBACK}:{server.port}/0"


def command(name: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A command that is refused at its start."""
    extra = {"worker": ["--model", "instant", "--gpus", "cpu"], "gateway": ["--port", "0"]}[name]
    return subprocess.run(
        [sys.executable, "-m", "ltxq", name, *extra],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["worker", "gateway"])
def test_worker_and_gateway_end_at_once_and_name_the_right(
    lone: EmbeddedServer, s3_server: S3Server, tmp_path: Path, name: str
) -> None:
    with admin(lone) as root:
        permit(root, "resetkeys resetchannels ~* +@all")  # Redis 7's default: no channels
    url = settings_of(lone).url.get_secret_value()
    ended = command(name, worker_environment(url, s3_server, tmp_path / "spool"))
    assert ended.returncode == 2, ended.stderr
    assert re.search("does not let its user 'u' use the channel '.*' with PUBLISH", ended.stderr)
    assert "&/0.celeryev/*" in ended.stderr
    assert PASSWORD not in ended.stderr


# --- the documents' lines ------------------------------------------------------------------------


def documented(role: str) -> str:
    """The line of docs/operating.md for a role."""
    (line,) = re.findall(rf"^ACL SETUSER ltxq-{role} .*$", OPERATING.read_text(), re.MULTILINE)
    return line


@pytest.mark.parametrize("make", variants("redis-8", extended=("valkey-8",)))
def test_the_documents_lines_are_all_that_a_job_needs(
    make: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_redis(tmp_path / "redis", make=make) as server, admin(server) as root:
        environments = {}
        for role in ROLES:
            root.execute_command(*documented(role).replace("PASSWORD", PASSWORD).split())
            url = f"redis://ltxq-{role}:{PASSWORD}@{LOOPBACK}:{server.port}/0"
            environments[role] = worker_environment(url, s3_server, tmp_path / "spool")
            environments[role]["LTXQ_S3_PREFIX"] = f"{make}/"  # no other queue's
        root.acl_log_reset()
        for name, value in environments["client"].items():
            monkeypatch.setenv(name, value)
        life = {"LTXQ_INSTANT_SECONDS": "1.5", "LTXQ_WEBHOOK_SECRET": "whsec_" + "A" * 44}
        hooks = {"LTXQ_WEBHOOK_ALLOW": "127.0.0.0/8"}
        with Fleet(environments["worker"] | life | hooks) as fleet:
            fleet.wait_until_ready()
            flower = Settings(url=environments["flower"]["LTXQ_URL"], default_model="instant")
            jobs_of_all_kinds(flower)
            through_the_gateway(environments["gateway"])
            swept = root.get("ltxq:3:swept")
            eventually(lambda: root.get("ltxq:3:swept") != swept)
            assert "not permitted" not in fleet.log
            assert "does not let" not in fleet.log
        for word in ("workers", "queue", "clean", "list"):
            assert ltxq(word, environments["client"]) == 0
        # redis-py tells its version (CLIENT SETINFO), and goes on where it may not: Redis 6 has
        # neither the command nor a right for it.
        assert [each for each in root.acl_log() if each["object"] != "client"] == []
        assert ltxq("doctor", environments["worker"]) == 0


def jobs_of_all_kinds(flower: Settings) -> None:
    """Progress, outcome, webhook, cancel, delete, a plain Celery producer, Celery's results, what
    Flower hears and asks.
    """
    receiver = Receiver()
    with (
        Client() as client,
        closing(make_app(flower)) as seen,
        closing(make_app(Settings.read())) as app,
        heard(seen) as events,
    ):
        done = client.submit("a fox", webhook_url=receiver.url, **SMALL)
        assert [job for job in client.watch(done.id, PATIENCE) if job.progress]
        assert app.AsyncResult(done.id).get(timeout=PATIENCE)["sha256"]
        receiver.wait_for(1)
        running, queued = client.submit("an owl", **SMALL), client.submit("a hare", **SMALL)
        client.cancel(queued.id)
        wait_until_running(client, running)
        client.cancel(running.id)
        assert client.wait(running.id, PATIENCE).state == "cancelled"
        plain = app.send_task("ltxq.generate", kwargs={"request": {"prompt": "an elk", **SMALL}})
        assert plain.get(timeout=PATIENCE)
        inspect = seen.control.inspect(timeout=PATIENCE, limit=1)
        assert inspect.stats()
        client.delete(done.id)
        assert client.list().jobs
        kinds = {"task-sent", "task-started", "task-succeeded", "task-revoked"}
        eventually(lambda: kinds <= {each["type"] for each in events})
    receiver.stop()


@contextmanager
def heard(app: Any) -> Iterator[list[dict[str, Any]]]:
    """The events that Flower would hear, once the worker's are among them."""
    events: list[dict[str, Any]] = []
    connection = app.connection_for_read()
    receiver = app.events.Receiver(connection, handlers={"*": events.append})
    options = {"limit": None, "timeout": None, "wakeup": False}
    thread = threading.Thread(target=receiver.capture, kwargs=options)
    thread.start()
    try:
        eventually(lambda: any(each["type"] == "worker-heartbeat" for each in events))
        yield events
    finally:
        receiver.should_stop = True
        thread.join(PATIENCE)
        connection.release()


def through_the_gateway(environment: dict[str, str]) -> None:
    """A job with an API key, whose changes are counted, followed by its events."""
    key = new_key("alice")
    with (
        Gateway(environment | {"LTXQ_API_KEYS": key.entry}) as gateway,
        Client(gateway.url, api_key=key.key) as client,
    ):
        job = client.wait(client.submit("a goat", **SMALL).id, PATIENCE)
        assert job.state == "succeeded"
        client.delete(job.id)
        assert gateway.ask("GET", "/readyz").status_code == 200
        assert "does not" not in gateway.log


def ltxq(word: str, environment: dict[str, str]) -> int:
    """The exit code of `ltxq WORD`."""
    with patch.dict(os.environ, environment):
        return main([word])


@pytest.mark.extended
def test_a_worker_that_redis_refuses_later_waits_for_the_grant(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """Redis was away at its start, and comes back with a user that lacks a right."""
    port = free_port()
    url = f"redis://u:{PASSWORD}@{LOOPBACK}:{port}/0"
    with Fleet(worker_environment(url, s3_server, tmp_path / "spool")) as fleet:
        fleet.wait_for("this worker waits for it")
        with start_redis(tmp_path / "redis", port=port) as server, admin(server) as root:
            permit(root, acl_line("worker", without=["+hset"]))
            refused = (
                r"(\d\d):(\d\d),\d+ .*given back yet.*run HSET. Grant it: ACL SETUSER u \+hset"
            )
            fleet.wait_for(refused, times=2)
            permit(root, acl_line("worker"))
            fleet.wait_until_ready()
            first, second = list(re.finditer(refused, fleet.log))[:2]
            seconds = [60 * int(line[1]) + int(line[2]) for line in (first, second)]
            assert (seconds[1] - seconds[0]) % 3600 > 2  # it does not ask without a pause


@pytest.mark.extended
def test_a_right_that_is_withdrawn_for_a_while_costs_no_job(
    s3_server: S3Server, tmp_path: Path
) -> None:
    with start_redis(tmp_path / "redis") as server, admin(server) as root:
        permit(root, acl_line("worker"))
        url = f"redis://u:{PASSWORD}@{LOOPBACK}:{server.port}/0"
        environment = worker_environment(url, s3_server, tmp_path / "spool")
        slow = {"LTXQ_INSTANT_SECONDS": "3"}
        straight = Settings(url=url_of(server), default_model="instant")
        with (
            Fleet(environment | slow) as fleet,
            Client(settings=straight) as client,
            closing(make_app(straight)) as app,
        ):
            fleet.wait_until_ready()
            (before,) = fleet.workers()
            job = client.submit("a fox", **SMALL)
            wait_until_running(client, job)
            permit(root, acl_line("worker", without=["+set"]))
            root.execute_command("CLIENT", "KILL", "USER", "u")
            fleet.wait_for(r"No jobs are taken until .* run SET. Grant it: ACL SETUSER u \+set")
            plain = app.send_task("ltxq.generate", kwargs={"request": {"prompt": "b", **SMALL}})
            permit(root, acl_line("worker"))
            fleet.wait_for("jobs are taken again")
            assert client.wait(job.id, PATIENCE).attempts == 1
            assert client.get(job.id).state == "succeeded"
            eventually(lambda: client.get_many([plain.id]))
            assert client.wait(plain.id, PATIENCE).state == "succeeded"
            assert fleet.workers() == [before]


def test_a_plain_producers_job_stays_while_redis_refuses_the_worker(lone: EmbeddedServer) -> None:
    with admin(lone) as root:
        permit(root, acl_line("worker", without=["+zadd"]))
    settings = settings_of(lone)
    message = SimpleNamespace(
        headers={"id": "a-job", "task": "ltxq.generate"},
        payload=([], {"request": {"prompt": "a fox", **SMALL}}, {}),
    )
    with (
        closing(make_app(settings)) as app,
        closing(Ledger(settings, "worker")) as ledger,
        pytest.raises(ConnectionError, match=r"is not recorded: .* run ZADD"),
    ):
        admit(app, ledger, "instant", message)
