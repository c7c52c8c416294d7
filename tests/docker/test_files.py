"""docker/ without a container engine: the files are well formed by their own schemas, and what they
name (variables, ports, commands, paths) is what the code has.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import kubernetes_validate
import pytest
import redis
import typer
import yaml
from packaging.requirements import Requirement

from fleet import PATIENCE, eventually
from ltxq import cli
from ltxq.job import VideoRequest
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import free_port, rclone_binary, redis_binary
from servers import start_or_skip

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SCHEMAS = Path(__file__).parent / "schemas"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
MANIFESTS = sorted((DOCKER / "k8s").glob("*.yaml"))
KUBERNETES = "1.31"  # the oldest one these are meant for
GATEWAY_BYTES = 150 * 10**6

# What others read: their own images, boto3, huggingface_hub, NVIDIA's toolkit, Python.
FOREIGN = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "HF_TOKEN"),
    *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "PATH", "PYTHONUNBUFFERED"),
    *("REDIS_PASSWORD", "REDIS_MAXMEMORY", "REDISCLI_AUTH", "RCLONE_AUTH_KEY"),
    *("GF_SECURITY_ADMIN_PASSWORD", "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"),
}
OURS = {f"LTXQ_{name.upper()}" for name in Settings.model_fields}


def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def manifests() -> Iterator[dict[str, Any]]:
    for file in MANIFESTS:
        yield from yaml.safe_load_all(file.read_text())


def pods() -> dict[str, dict[str, Any]]:
    """The pods of the manifests, by the name of what makes them."""
    return {
        made["metadata"]["name"]: made["spec"]["template"]["spec"]
        for made in manifests()
        if made["kind"] in ("Deployment", "Job")
    }


def steps(dockerfile: Path) -> list[tuple[str, str]]:
    """Its instructions, as (COPY, 'producer producer')."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


# --- by their own schemas -----------------------------------------------------------------


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfiles_pass_hadolint(file: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_is_what_the_specification_says() -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    checker = jsonschema.Draft7Validator(schema)
    assert [error.message for error in checker.iter_errors(compose())] == []
    spoilt = compose()
    spoilt["services"]["worker"]["stop_grace"] = "1m"
    assert list(checker.iter_errors(spoilt))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifests_are_what_kubernetes_takes(file: Path) -> None:
    for made in yaml.safe_load_all(file.read_text()):
        if made["apiVersion"].startswith("keda.sh/"):
            keda_takes(made)
        else:
            kubernetes_validate.validate(made, KUBERNETES, strict=True)


def keda_takes(made: dict[str, Any]) -> None:
    definition = yaml.safe_load((SCHEMAS / "keda-scaledobject.yaml").read_text())
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1alpha1")
    jsonschema.validate(made, _strict(version["schema"]["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    """The schema without room for fields it does not name."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    return strict


@pytest.mark.parametrize("wrong", [{"minReplicas": 0}, {"maxReplicaCount": "four"}])
def test_a_field_keda_does_not_have_would_be_noticed(wrong: dict[str, Any]) -> None:
    (made,) = yaml.safe_load_all((DOCKER / "k8s" / "keda.yaml").read_text())
    made["spec"] |= wrong
    with pytest.raises(jsonschema.ValidationError):
        keda_takes(made)


# --- and by the code ----------------------------------------------------------------------


def variables() -> Iterator[tuple[str, str]]:
    """Every environment variable set for a container: where, and its name."""
    for file in DOCKERFILES:
        for instruction, rest in steps(file):
            if instruction == "ENV":
                for word in shlex.split(rest):
                    yield file.name, word.partition("=")[0]
    for name, service in compose()["services"].items():
        for variable in service.get("environment", {}):
            yield f"compose {name}", variable
    for made in manifests():
        if made["kind"] == "ConfigMap":
            yield from (("ConfigMap", name) for name in made["data"])
    for name in re.findall(r"--from-literal=(\w+)=", (DOCKER / "k8s/config.yaml").read_text()):
        yield "Secret", name


def test_every_variable_is_read_by_something() -> None:
    from flower.options import default_options

    flower = {f"FLOWER_{name.upper()}" for name in default_options.as_dict()}
    unknown = [(at, name) for at, name in variables() if name not in OURS | FOREIGN | flower]
    assert unknown == []
    assert {"LTXQ_URL", "LTXQ_METRICS_ADDRESS", "FLOWER_BASIC_AUTH"} <= {n for _, n in variables()}


def test_what_compose_asks_for_is_in_the_example() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    needed = set(re.findall(r"(?<!\$)\$\{(\w+):\?", text))
    example = (DOCKER / "example.env").read_text()
    given = set(re.findall(r"^(?:# )?(\w+)=", example, re.MULTILINE))
    assert needed <= given
    assert given <= asked
    assert not re.search(r"^\w*(PASSWORD|SECRET\w*|KEYS?|TOKEN)=.", example, re.MULTILINE)


def test_the_values_in_images_are_ones_the_settings_take(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in DOCKERFILES:
        for instruction, rest in steps(file):
            if instruction == "ENV":
                for name, _, value in (word.partition("=") for word in shlex.split(rest)):
                    if name in OURS:
                        monkeypatch.setenv(name, value)
    for name, value in next(m for m in manifests() if m["kind"] == "ConfigMap")["data"].items():
        monkeypatch.setenv(name, value)
    settings = Settings.read()
    assert settings.metrics_address == ("0.0.0.0", 9464)  # noqa: S104
    assert settings.log == "json"


def commands() -> Iterator[list[str]]:
    """Every `ltxq …` a container runs, or a comment says to run."""
    for file in DOCKERFILES:
        said = dict(steps(file))
        if json.loads(said["ENTRYPOINT"]) == ["ltxq"]:
            yield json.loads(said["CMD"])
    for pod in pods().values():
        yield pod["containers"][0]["args"]
    for file in (DOCKER / "compose.yaml", DOCKER / "prometheus/alerts.yml"):
        yield from (shlex.split(c) for c in re.findall(r"`ltxq ([^`]+)`", file.read_text()))
    text = (DOCKER / "compose.yaml").read_text()
    yield from (shlex.split(c) for c in re.findall(r"run --rm worker (.+)", text))


def test_every_command_exists() -> None:
    found = list(commands())
    assert ["worker", "--gpus", "all"] in found
    assert len(found) >= 10
    for words in found:
        command: Any = typer.main.get_command(cli._app())
        rest = list(words)
        while rest and hasattr(command, "commands"):
            context = command.make_context("ltxq", list(rest), resilient_parsing=True)
            _, command, rest = command.resolve_command(context, rest)
            assert command is not None, words
        command.make_context("ltxq", rest)


def test_ports_are_the_same_everywhere() -> None:
    services = compose()["services"]
    exposed = {
        file.name: {p for i, rest in steps(file) if i == "EXPOSE" for p in rest.split()}
        for file in DOCKERFILES
    }
    assert exposed == {
        "gateway.Dockerfile": {"5555", "8080", "9464"},
        "worker.Dockerfile": {"9464"},
    }
    inside = {
        name: [port.rsplit(":", 1)[1] for port in service.get("ports", ())]
        for name, service in services.items()
    }
    assert inside["gateway"] == ["8080"]
    assert inside["flower"] == ["5555"]
    assert inside["s3"] == ["9000"]
    assert services["s3"]["command"][0].count(":9000") == 1
    for name, pod in pods().items():
        for container in pod["containers"]:
            named = {p["name"]: str(p["containerPort"]) for p in container.get("ports", ())}
            dockerfile = f"{container['image'].removeprefix('ltxq-').partition(':')[0]}.Dockerfile"
            assert set(named.values()) <= exposed[dockerfile], name
            for probe in (v for k, v in container.items() if k.endswith("Probe")):
                assert probe["httpGet"]["port"] in named
    (scaled,) = (m for m in manifests() if m["kind"] == "ScaledObject")
    address = scaled["spec"]["triggers"][0]["metadata"]["url"]
    (metrics,) = (m for m in manifests() if m["metadata"]["name"] == "ltxq-gateway-metrics")
    port = metrics["spec"]["ports"][0]["port"]
    assert address == f"http://ltxq-gateway-metrics.ltxq:{port}/metrics"
    scrapes = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    asked = {(d["names"][0], d["port"]) for s in scrapes for d in s["dns_sd_configs"]}
    assert asked == {("gateway", 9464), ("worker", 9464)}
    assert {name for name, _ in asked} <= set(services)


def test_only_the_api_is_open_to_others() -> None:
    services = compose()["services"]
    open_to_all = {
        name
        for name, service in services.items()
        for port in service.get("ports", ())
        if not port.startswith("127.0.0.1:")
    }
    assert open_to_all == {"gateway", "s3"}
    assert services["s3"]["profiles"] == ["try"]


def test_paths_exist() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    for file in DOCKERFILES:
        for instruction, rest in steps(file):
            if instruction == "COPY" and not rest.startswith("--from"):
                for path in rest.split()[:-1]:
                    assert (ROOT / path).exists(), path
                    assert any(fnmatch.fnmatch(path, f"{s}*") for s in sent), path
    for name, service in compose()["services"].items():
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).is_dir(), name
            else:
                assert source in compose()["volumes"]
    assert (DOCKER / "example.env").is_file()
    mounts = compose()["services"]["grafana"]
    home = mounts["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    (inside,) = (v for v in mounts["volumes"] if "./grafana/dashboards" in v)
    folder = inside.split(":")[1]
    assert (DOCKER / "grafana/dashboards" / Path(home).relative_to(folder)).is_file()
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/ltxq.yaml").read_text())
    assert provider["providers"][0]["options"]["path"] == folder


def test_images_run_as_nobody_and_hold_no_secret() -> None:
    secret = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)")
    for file in DOCKERFILES:
        said = steps(file)
        assert [rest for i, rest in said if i == "USER"][-1] == "10001"
        assert not [rest for i, rest in said if i in ("ENV", "ARG") and secret.search(rest)]
        for instruction, rest in said:
            if instruction == "RUN" and "install" in rest and "requirements/" in rest:
                assert "--require-hashes" in rest
    for pod in pods().values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001


def test_a_stopping_worker_has_time_for_its_job_and_upload() -> None:
    timeout = VideoRequest.model_fields["timeout"].default
    needed = timeout + Settings.model_fields["upload_patience"].default
    assert pods()["ltxq-worker"]["terminationGracePeriodSeconds"] > needed
    minutes = compose()["services"]["worker"]["stop_grace_period"]
    assert int(minutes.removesuffix("m")) * 60 > needed


def test_a_worker_pod_has_one_gpu_and_its_number_is_kedas() -> None:
    (container,) = pods()["ltxq-worker"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    (deployment,) = (
        m
        for m in manifests()
        if m["kind"] == "Deployment" and m["metadata"]["name"] == "ltxq-worker"
    )
    assert "replicas" not in deployment["spec"]
    (scaled,) = (m for m in manifests() if m["kind"] == "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] == "ltxq-worker"
    assert scaled["spec"]["minReplicaCount"] == 0


def test_the_gateways_packages_are_small() -> None:
    lines = re.findall(r"^([a-z0-9-]+==\S+(?: ; [^\\\n]+)?)", gateway_lock(), re.MULTILINE)
    wanted = [r for r in map(Requirement, lines) if not r.marker or r.marker.evaluate()]
    size = 0
    for requirement in wanted:
        installed = importlib.metadata.distribution(requirement.name)
        assert requirement.specifier.contains(installed.version), requirement
        size += sum(
            file.locate().stat().st_size
            for file in installed.files or ()
            if file.locate().is_file() and file.suffix != ".pyc"
        )
    assert len(wanted) > 30
    assert not [r.name for r in wanted if r.name in ("torch", "numpy", "av")]
    assert size <= GATEWAY_BYTES, f"{size / 1e6:.0f} MB"


def gateway_lock() -> str:
    return (ROOT / "requirements" / "gateway.txt").read_text()


# --- the servers' own commands, run here ----------------------------------------------------


def test_redis_as_compose_starts_it_keeps_what_it_accepts(tmp_path: Path) -> None:
    binary = start_or_skip(redis_binary)
    service = compose()["services"]["redis"]
    words = [word.replace("$$", "$") for word in service["command"]]
    port = free_port()
    own = words[-1].replace("/tmp/redis.conf", str(tmp_path / "redis.conf"))  # noqa: S108
    words[-1] = own.replace("exec redis-server", f"exec {binary}")
    words[-1] += f" --port {port} --bind 127.0.0.1"
    environment = {**os.environ, "REDIS_PASSWORD": "Pl4nted", "REDIS_MAXMEMORY": "100mb"}
    with subprocess.Popen(
        words, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL
    ) as process:
        try:
            server = redis.Redis(port=port, password="Pl4nted", socket_timeout=5)
            eventually(lambda: _answers(server))
            kept = server.config_get("append*") | server.config_get("maxmemory*")
            server.close()
            said = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert "redis-server" in said  # itself: a shell would not pass on a SIGTERM
            assert "Pl4nted" not in said
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert kept["appendonly"] == "yes"
    assert kept["appendfsync"] == "everysec"
    assert kept["maxmemory-policy"] == "noeviction"
    assert int(kept["maxmemory"]) == 100 * 2**20


def _answers(server: redis.Redis) -> bool:
    try:
        return bool(server.ping())
    except redis.ConnectionError:
        return False


def test_the_s3_server_as_compose_starts_it_takes_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltxq.errors import LtxqError
    from ltxq.storage import Storage

    binary = start_or_skip(rclone_binary)
    service = compose()["services"]["s3"]
    port, credentials = free_port(), {"AWS_ACCESS_KEY_ID": "abc", "AWS_SECRET_ACCESS_KEY": "defg"}
    command = service["command"][0].replace("$$", "$").replace("/data", str(tmp_path))
    command = command.replace("exec rclone", f"exec {binary}").replace(":9000", f"127.0.0.1:{port}")
    key = re.sub(
        r"\$\{(\w+):\?[^}]*\}",
        lambda m: credentials[m[1]],
        service["environment"]["RCLONE_AUTH_KEY"],
    )
    for name, value in {**credentials, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    environment = {**os.environ, "RCLONE_AUTH_KEY": key, "LTXQ_S3_BUCKET": "clips"}
    with subprocess.Popen(
        ["sh", "-c", command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            settings = Settings(s3_endpoint=f"http://127.0.0.1:{port}", s3_bucket="clips")

            def takes() -> bool:
                try:
                    Storage.from_settings(settings).check()
                except LtxqError:
                    return False
                return True

            eventually(takes)
            storage = Storage.from_settings(settings)
            storage.put("ltxq/a", Path(__file__), "video/mp4")
            part = httpx2.get(storage.url("ltxq/a", 60)[0], headers={"range": "bytes=0-9"})
            assert len(part.content) == 10
            if part.status_code != 206:  # Safari plays nothing from it, so the gateway must
                assert "\nLTXQ_CONTENT=proxy\n" in (DOCKER / "example.env").read_text()
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            with pytest.raises(LtxqError):
                Storage.from_settings(settings).check()
        finally:
            process.terminate()


def test_the_schemas_say_where_they_are_from() -> None:
    said = (SCHEMAS / "README.md").read_text()
    for schema in SCHEMAS.iterdir():
        assert schema.name in said or schema.name == "README.md"
