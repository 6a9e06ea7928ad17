"""What runs a study on many machines is valid by its published schema, and every command in it is run here."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sqlalchemy as sa
import yaml
from loop_tools import at_work, command, study_of, tiny, until

from sparse_evidence.hpo.database import address, connection, embedded
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials, list_claims
from sparse_evidence.hpo.errors import Exit
from sparse_evidence.hpo.running.supervisor import STOP_SECONDS

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "tests" / "schemas"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
JOB = yaml.safe_load((ROOT / "deploy" / "kubernetes-job.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


def filled(value: Any, environ: dict[str, str]) -> Any:
    """Interpolate as Compose does: `${A:-default}` and `${A:?refused without}`."""

    def one(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if environ.get(name):
            return environ[name]
        if kind == "?":
            raise LookupError(text)
        return text or ""

    if isinstance(value, dict):
        return {key: filled(each, environ) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, environ) for each in value]
    return VARIABLE.sub(one, value) if isinstance(value, str) else value


SECRETS = {"POSTGRES_PASSWORD": "p", "HPO_DASHBOARD_PASSWORD": "d"}  # pragma: allowlist secret
SERVICES = filled(COMPOSE, SECRETS | {"STUDY": "tiny.toml"})["services"]


# ---- schemas ---------------------------------------------------------------------------------------------------------


def test_the_compose_file_is_valid() -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(COMPOSE)
    broken = {**COMPOSE, "services": {"worker": {"stop_grace": "90s"}}}
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(broken)), "the schema is strict"


def test_the_kubernetes_job_is_valid() -> None:
    schema = json.loads((SCHEMAS / "kubernetes-job-v1.34.json").read_text())
    jsonschema.validate(JOB, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**JOB, "spec": {**JOB["spec"], "paralelism": 1}}, schema)


@pytest.mark.parametrize("missing", SECRETS)
def test_compose_refuses_to_start_without_a_password(missing: str) -> None:
    with pytest.raises(LookupError, match=f"set {missing}, or give --env-file"):
        filled(COMPOSE, {key: value for key, value in SECRETS.items() if key != missing})


def test_no_password_is_written_down() -> None:
    for file in (ROOT / "docker-compose.yml", ROOT / "deploy" / "kubernetes-job.yaml", ROOT / "Dockerfile"):
        for line in file.read_text().splitlines():
            if not line.lstrip().startswith("#"):
                assert not re.search(r"PASSWORD(_FILE)?\s*[:=]\s*(?!\$|/|\?|$)\S", line.replace(":?", "?")), line


def test_services_are_as_they_should_be() -> None:
    worker, postgres = SERVICES["worker"], SERVICES["postgres"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > STOP_SECONDS
    assert worker["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert "ports" not in postgres, "reached from within only"
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["dashboard"]["ports"])


def test_the_job_treats_exit_codes_as_they_are_meant() -> None:
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert POD["terminationGracePeriodSeconds"] > STOP_SECONDS
    rules = {rule["action"]: rule["onExitCodes"]["values"] for rule in JOB["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule}  # fmt: skip
    assert rules == {"FailJob": [Exit.USAGE, Exit.REFUSED], "Ignore": [Exit.MEMORY, Exit.STALLED]}


def test_the_image_is_built_in_two_stages_and_runs_as_nobody() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    assert [line.split()[1] for line in lines if line.startswith("USER ")] == ["hpo"]
    assert POD["securityContext"]["runAsNonRoot"]
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source for line in lines if line.startswith("COPY ") and "--from" not in line for source in line.split()[1:-1]
    ]
    assert sorted(copied) == sorted(admitted)
    scripts = (ROOT / "pyproject.toml").read_text()
    assert 'ENTRYPOINT ["hpo"]' in lines
    assert 'hpo = "hpo.cli.app:main"' in scripts


# ---- commands --------------------------------------------------------------------------------------------------------


def run(folder: Path, url: str, *arguments: str, **environment: str) -> str:
    process = command(folder, url, *arguments, **environment)
    try:
        said, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said


def here(arguments: list[str], folder: Path) -> list[str]:
    """A container's paths as they are on this machine."""
    return [argument.replace("/studies/", f"{folder}/").replace("quickstart", "tiny") for argument in arguments]


@pytest.mark.slow
@pytest.mark.parametrize("service", ["worker", "worker-cpu"])
def test_the_workers_command(service: str, database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=2)
    environment = SERVICES[service]["environment"]
    assert sa.make_url(environment["HPO_STORAGE"]).host in SERVICES
    assert address.normalize_url(environment["HPO_STORAGE"])
    run(tmp_path, database, *here(SERVICES[service]["command"], tmp_path), HPO_ARTIFACTS=str(tmp_path / "artifacts"))
    study = study_of(database)
    assert count_trials(study) == Counts(complete=2)
    assert (tmp_path / "artifacts").is_dir()
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_the_pods_command(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=2)
    secret = tmp_path / "password"
    secret.write_text("not needed here\n")
    known = {entry["name"]: entry.get("value") for entry in CONTAINER["env"]}
    assert known.keys() == {"HPO_STORAGE", "HPO_STORAGE_PASSWORD_FILE", "HPO_ARTIFACTS"}
    mounts = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {str(Path(known["HPO_STORAGE_PASSWORD_FILE"]).parent), known["HPO_ARTIFACTS"], "/studies"} <= mounts
    run(tmp_path, database, *here(CONTAINER["args"], tmp_path), HPO_STORAGE_PASSWORD_FILE=str(secret))
    study = study_of(database)
    assert count_trials(study) == Counts(complete=2)
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_the_dashboards_command_and_its_password(database: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [str(port) if argument == "8080" else argument for argument in SERVICES["dashboard"]["command"]]
    process = command(tmp_path, database, *arguments, HPO_DASHBOARD_PASSWORD="d")
    address = f"http://127.0.0.1:{port}/api/meta"

    def answer(**headers: str) -> int | None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=5) as got:
                return int(got.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return None

    try:
        assert until(answer, 90) == 401
        assert answer(Authorization="Basic " + base64.b64encode(b"me:d").decode()) == 200
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_postgres_and_its_health_check(tmp_path: Path) -> None:
    program, *options = SERVICES["postgres"]["command"]
    assert program == "postgres"
    kind, check, *arguments = SERVICES["postgres"]["healthcheck"]["test"]
    assert kind == "CMD"
    probe = [str(embedded._binaries() / check), *arguments]
    home = Path("/tmp") / f"hpo-tests-deploy-{os.getpid()}"
    home.mkdir(mode=0o711)
    try:
        with embedded.running(home, " ".join(options)) as url:
            sockets = str(sa.make_url(url).query["host"])
            assert subprocess.run(probe, env={"PGHOST": sockets}, check=False).returncode == 0
        assert subprocess.run(probe, env={"PGHOST": sockets}, check=False).returncode == 2
    finally:
        shutil.rmtree(home)


@pytest.fixture
def shims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on the PATH; `hpo` in it is this checkout's, `docker` writes down what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "hpo": f'exec {sys.executable} -m sparse_evidence.hpo "$@"',
        "docker": f'printf "%s\\n" "$*" >> {tmp_path}/docker',
        "nvidia-smi": "exit 9",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_make_up_takes_what_the_machine_has(shims: Path, tmp_path: Path) -> None:
    assert shutil.which("make") is not None
    for listed, profile in (("exit 9", "cpu"), ("echo GPU-1", "gpu")):
        (shims / "nvidia-smi").write_text(f"#!/bin/sh\n{listed}\n")
        subprocess.run(["make", "up"], cwd=ROOT, check=True, capture_output=True)
        assert (tmp_path / "docker").read_text().splitlines()[-1] == f"compose --profile {profile} up --build --detach"
    profiles = {name for service in SERVICES.values() for name in service.get("profiles", [])}
    assert profiles == {"cpu", "gpu"}


@pytest.mark.slow
def test_the_slurm_script_works_and_drains_when_its_time_is_up(shims: Path, database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=4, epochs=3000, heartbeat=0.3, grace=1000)
    script = ROOT / "deploy" / "slurm-array.sh"
    environment = os.environ | {"HPO_STORAGE": database, "HPO_ARTIFACTS": str(tmp_path / "shared")}
    process = subprocess.Popen(
        ["bash", str(script), "tiny.toml"], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        study = at_work(database, lambda rows: rows and all(row["epoch"] for row in rows))
        process.send_signal(signal.SIGTERM)  # what --signal=B:TERM@120 sends to the batch script
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert all(row["released"] and row["checkpointed"] for row in list_claims(connection.engine_of(study), study))
    connection.engine_of(study).dispose()


@pytest.mark.parametrize("missing", ["HPO_STORAGE", "HPO_ARTIFACTS", "STUDY"])
def test_the_slurm_script_says_what_is_missing(missing: str, shims: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HPO_STORAGE": "postgresql://db/x", "HPO_ARTIFACTS": "/shared"}
    environment.pop(missing, None)
    arguments = [] if missing == "STUDY" else ["tiny.toml"]
    script = ROOT / "deploy" / "slurm-array.sh"
    done = subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert ("usage: sbatch" if missing == "STUDY" else f"set {missing}") in done.stderr
