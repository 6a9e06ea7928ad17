"""The files for many machines are valid by their published schemas, and every command in them runs here."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sqlalchemy as sa
import yaml
from loop_tools import at_work, command, study_of, tiny, until
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sparse_evidence.hpo.database import address, connection, embedded, embedded_root
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


def interpolate(value: Any, environ: dict[str, str]) -> Any:
    """Interpolate as Compose does: `${A:-default}` and `${A:?error message}`."""

    def replacement(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if environ.get(name):
            return environ[name]
        if kind == "?":
            raise LookupError(text)
        return text or ""

    if isinstance(value, dict):
        return {key: interpolate(entry, environ) for key, entry in value.items()}
    if isinstance(value, list):
        return [interpolate(entry, environ) for entry in value]
    return VARIABLE.sub(replacement, value) if isinstance(value, str) else value


SERVICES = interpolate(COMPOSE, {"STUDY": "tiny.toml"})["services"]


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


def test_passwords_are_files_in_a_folder_of_the_user() -> None:
    secrets = interpolate(COMPOSE, {"SECRETS": "/private"})["secrets"]
    assert {name: secret["file"] for name, secret in secrets.items()} == {
        name: f"/private/{name}" for name in ("postgres_password", "dashboard_password")
    }
    for service in SERVICES.values():
        read = {value for name, value in service["environment"].items() if "PASSWORD" in name}
        assert read == {f"/run/secrets/{name}" for name in service["secrets"]}
        assert all(name.endswith("_FILE") for name in service["environment"] if "PASSWORD" in name)
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_container_is_confined() -> None:
    for service in SERVICES.values():
        assert service["read_only"] is True
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pids_limit"] > 0
        assert service["mem_limit"]
        assert "/tmp" in service["tmpfs"]
    version = PROJECT["version"]
    assert CONTAINER["image"] == f"sparse-evidence-hpo:{version}"


def test_kueues_patch_is_a_valid_job_with_a_queue() -> None:
    kustomization = yaml.safe_load((ROOT / "deploy" / "kustomization.yaml").read_text())
    assert [ROOT / "deploy" / name for name in kustomization["resources"]] == [ROOT / "deploy" / "kubernetes-job.yaml"]
    (patch,) = (yaml.safe_load(entry["patch"]) for entry in kustomization["patches"])
    assert (patch["kind"], patch["metadata"]["name"]) == (JOB["kind"], JOB["metadata"]["name"]), "it is for this job"
    patched = merged(JOB, patch)
    jsonschema.validate(patched, json.loads((SCHEMAS / "kubernetes-job-v1.34.json").read_text()))
    assert patched["spec"]["suspend"] is True, "Kueue starts it"
    assert patched["metadata"]["labels"].keys() == {*JOB["metadata"]["labels"], "kueue.x-k8s.io/queue-name"}
    fewest = int(patched["metadata"]["annotations"]["kueue.x-k8s.io/job-min-parallelism"])
    assert 0 < fewest < patched["spec"]["parallelism"]


def merged(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A patch of tables and values, as kustomize applies it; it replaces no list."""
    both = {**base, **patch}
    return both | {key: merged(base[key], patch[key]) for key in patch if isinstance(base.get(key), dict)}


def test_the_skypilot_task_is_valid_and_starts_a_worker() -> None:
    task = yaml.safe_load((ROOT / "deploy" / "skypilot.yaml").read_text())
    schema = json.loads((SCHEMAS / "skypilot-task-v0.14.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(task)
    assert list(jsonschema.Draft202012Validator(schema).iter_errors({**task, "setups": "true"})), "it is strict"
    assert task["run"].split() == ["hpo", "worker", '"$STUDY"', "--slots", "auto"]
    assert (ROOT / task["envs"]["STUDY"]).is_file()
    assert {name for table in ("envs", "secrets") for name, value in task[table].items() if value is None} == {
        "HPO_STORAGE", "PGPASSWORD"
    }, "whoever launches it must give them"  # fmt: skip


def test_no_file_contains_a_password() -> None:
    for file in (ROOT / "docker-compose.yml", ROOT / "Dockerfile", *(ROOT / "deploy").glob("*.yaml")):
        for line in file.read_text().splitlines():
            if not line.lstrip().startswith("#"):
                assert not re.search(r"PASSWORD(_FILE)?\s*[:=]\s*(?!\$|/|\?|null$|$)\S", line.replace(":?", "?")), line


def test_workers_have_a_gpu_and_time_to_stop_and_no_port_is_public() -> None:
    worker, postgres = SERVICES["worker"], SERVICES["postgres"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > STOP_SECONDS
    assert worker["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert "ports" not in postgres, "Postgres is reachable only by the other services"
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["dashboard"]["ports"])


def test_the_job_fails_or_retries_by_exit_code() -> None:
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert POD["terminationGracePeriodSeconds"] > STOP_SECONDS
    rules = [rule for rule in JOB["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert {rule["action"]: rule["onExitCodes"]["values"] for rule in rules} == {
        "FailJob": [Exit.USAGE, Exit.REFUSED],
        "Ignore": [Exit.MEMORY, Exit.STALLED],
    }


# ---- the image -------------------------------------------------------------------------------------------------------

DOCKERFILE = (ROOT / "Dockerfile").read_text().splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def copied() -> list[str]:
    """What the Dockerfile copies from the build context."""
    lines = [line for line in DOCKERFILE if line.startswith("COPY ") and "--from" not in line]
    return [source for line in lines for source in line.split()[1:-1]]


def test_the_image_is_built_in_two_stages_and_runs_as_an_unprivileged_user() -> None:
    assert sum(line.startswith("FROM ") for line in DOCKERFILE) == 2
    assert [line.split()[1] for line in DOCKERFILE if line.startswith("USER ")] == ["hpo"]
    assert POD["securityContext"]["runAsNonRoot"]


def test_the_build_context_is_exactly_what_the_dockerfile_copies() -> None:
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(copied()) == sorted(admitted)
    assert all((ROOT / source).exists() for source in copied())


def locked(file: str) -> dict[str, str]:
    """The version of every package in a lock file."""
    lines = (ROOT / file).read_text().splitlines()
    pins = [line.split()[0].partition("==") for line in lines if "==" in line and not line.startswith((" ", "#"))]
    return {name.lower().replace("_", "-"): version for name, _, version in pins}


def test_the_lock_with_hashes_has_what_the_image_needs_and_no_development_tools() -> None:
    """At the versions that the tests ran with."""
    hashed, tested = locked("requirements.hashed.lock"), locked("requirements.lock")
    extras = [line for name in ("s3", "mlflow", "lora") for line in PROJECT["optional-dependencies"][name]]
    product = requirements(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["s3"])
    assert {"torch", "optuna", "boto3", "sqlalchemy", "setuptools"} <= product | {"setuptools"} <= hashed.keys()
    assert {Requirement(line).name for line in extras} <= hashed.keys()
    assert {name: hashed[name] for name in hashed.keys() & tested} == {
        name: tested[name] for name in hashed if name in tested
    }
    assert product <= tested.keys()
    assert not hashed.keys() & {"mypy", "ruff", "pytest", "hypothesis", "import-linter", "uv", "cyclonedx-bom", "pip"}
    blocks = re.split(r"\n(?=\S)", (ROOT / "requirements.hashed.lock").read_text().partition("make lock\n")[2])
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in "".join(blocks), "no registry is named"
    assert "RUN pip install --require-hashes -r requirements.hashed.lock" in DOCKERFILE


def test_every_pinned_package_runs_on_the_oldest_python() -> None:
    """`make lock` freezes what is installed, which a newer Python may have allowed."""
    oldest = f"{PROJECT['requires-python'].removeprefix('>=')}.0"
    needed = {
        dist.metadata["Name"].lower().replace("_", "-"): dist.metadata.get("Requires-Python")
        for dist in metadata.distributions()
    }
    pinned = {name: SpecifierSet(needed.get(name) or "") for name in locked("requirements.lock")}
    assert {name: str(versions) for name, versions in pinned.items() if not versions.contains(oldest)} == {}


def test_the_bill_of_materials_lists_the_image(tmp_path: Path) -> None:
    made = subprocess.run(["make", "-n", "sbom"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace(
        "\\\n", " "
    )
    (arguments,) = [line.split()[1:] for line in made.splitlines() if "cyclonedx-py" in line]
    out = tmp_path / "sbom.json"
    call = [sys.executable, "-m", "cyclonedx_py", *[str(out) if word == "sbom.json" else word for word in arguments]]
    subprocess.run(call, cwd=ROOT, check=True, capture_output=True)
    components = json.loads(out.read_text())["components"]
    assert {entry["name"].lower(): entry["version"] for entry in components}.items() >= {
        name: version for name, version in locked("requirements.hashed.lock").items() if name in {"torch", "optuna"}
    }.items()
    assert all(reference["hashes"] for entry in components for reference in entry["externalReferences"])


def requirements(lines: list[str]) -> set[str]:
    """The packages that these requirements install on this machine, by the metadata of those installed here."""
    packages: set[str] = set()
    pending = [Requirement(line) for line in lines]
    while pending:
        requirement = pending.pop()
        name = requirement.name.lower().replace("_", "-")
        extras = requirement.extras or {""}
        if name in packages or not any(marked(requirement, extra) for extra in ("", *extras)):
            continue
        packages.add(name)
        dependencies = [Requirement(line) for line in metadata.requires(name) or []]
        pending += [dependency for dependency in dependencies if any(marked(dependency, extra) for extra in extras)]
    return packages


def marked(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


@pytest.mark.slow
def test_the_installed_image_has_every_module_and_its_entry_point_runs(tmp_path: Path) -> None:
    """Builds the wheel from nothing but the copied files, as the Dockerfile does, and runs it without the checkout."""
    context = tmp_path / "context"
    context.mkdir()
    for source in copied():
        subprocess.run(["cp", "-R", "-P", str(ROOT / source), str(context)], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), "."], cwd=context, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert files(tmp_path / "site" / "sparse_evidence") == files(ROOT / "src" / "sparse_evidence")
    (entry_points,) = (tmp_path / "site").glob("*.dist-info/entry_points.txt")
    assert 'ENTRYPOINT ["hpo"]' in DOCKERFILE
    assert "hpo = sparse_evidence.hpo.__main__:main" in entry_points.read_text().splitlines()
    start = "import sparse_evidence.hpo.cli.app as app; print(app.__file__); app.main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    output = subprocess.run(
        [sys.executable, "-c", start, "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.startswith(str(tmp_path))
    assert "dashboard" in output


def files(folder: Path) -> set[str]:
    """Every file of a package, through links, by its path inside."""
    return {
        str(Path(parent, name).relative_to(folder))
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if "__pycache__" not in parent
    }


# ---- commands --------------------------------------------------------------------------------------------------------


def run(folder: Path, url: str, *arguments: str, **environment: str) -> str:
    process = command(folder, url, *arguments, **environment)
    try:
        output, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def localize(arguments: list[str], folder: Path) -> list[str]:
    """Replace a container's paths by this machine's, and the study by the tiny one."""
    return [argument.replace("/studies/", f"{folder}/").replace("quickstart", "tiny") for argument in arguments]


@pytest.mark.slow
@pytest.mark.parametrize("service", ["worker", "worker-cpu"])
def test_the_workers_command(service: str, database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=2)
    environment = SERVICES[service]["environment"]
    assert sa.make_url(environment["HPO_STORAGE"]).host in SERVICES
    assert address.normalize_url(environment["HPO_STORAGE"])
    run(
        tmp_path, database, *localize(SERVICES[service]["command"], tmp_path), HPO_ARTIFACTS=str(tmp_path / "artifacts")
    )
    study = study_of(database)
    assert count_trials(study) == Counts(complete=2)
    assert (tmp_path / "artifacts").is_dir()
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_the_pods_command(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=2)
    secret = tmp_path / "password"
    secret.write_text("unused: the tests' database has no password\n")
    variables = {entry["name"]: entry.get("value") for entry in CONTAINER["env"]}
    assert variables.keys() == {"HPO_STORAGE", "HPO_STORAGE_PASSWORD_FILE", "HPO_ARTIFACTS"}
    mounts = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {str(Path(variables["HPO_STORAGE_PASSWORD_FILE"]).parent), variables["HPO_ARTIFACTS"], "/studies"} <= mounts
    run(tmp_path, database, *localize(CONTAINER["args"], tmp_path), HPO_STORAGE_PASSWORD_FILE=str(secret))
    study = study_of(database)
    assert count_trials(study) == Counts(complete=2)
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_the_dashboards_command_and_its_password(database: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    arguments = [str(port) if argument == "8080" else argument for argument in SERVICES["dashboard"]["command"]]
    process = command(tmp_path, database, *arguments, HPO_DASHBOARD_PASSWORD="d")
    address = f"http://127.0.0.1:{port}/api/meta"

    def status(**headers: str) -> int | None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return None

    try:
        assert until(status, 90) == 401
        assert status(Authorization="Basic " + base64.b64encode(b"me:d").decode()) == 200
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_postgres_and_its_health_check(tmp_path: Path) -> None:
    program, *options = SERVICES["postgres"]["command"]
    assert program == "postgres"
    kind, check, *arguments = SERVICES["postgres"]["healthcheck"]["test"]
    assert kind == "CMD"
    probe = [str(embedded.binaries() / check), *arguments]
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
    """A folder first on the PATH; `hpo` in it is this checkout's, `docker` records its arguments."""
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


def test_make_up_chooses_the_profile_by_the_machines_gpus(shims: Path, tmp_path: Path) -> None:
    assert shutil.which("make") is not None
    for command_line, profile in (("exit 9", "cpu"), ("echo GPU-1", "gpu")):
        (shims / "nvidia-smi").write_text(f"#!/bin/sh\n{command_line}\n")
        subprocess.run(["make", "up"], cwd=ROOT, check=True, capture_output=True)
        assert (tmp_path / "docker").read_text().splitlines()[-1] == f"compose --profile {profile} up --build --detach"
    profiles = {name for service in SERVICES.values() for name in service.get("profiles", [])}
    assert profiles == {"cpu", "gpu"}


@pytest.mark.slow
def test_the_slurm_script_runs_a_study_and_releases_its_trials_at_the_time_limit(
    shims: Path, database: str, tmp_path: Path
) -> None:
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
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    assert all(row["released"] and row["checkpointed"] for row in list_claims(connection.engine_of(study), study))
    connection.engine_of(study).dispose()


@pytest.mark.parametrize("missing", ["HPO_STORAGE", "HPO_ARTIFACTS", "STUDY"])
def test_the_slurm_script_says_what_is_missing(missing: str, shims: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HPO_STORAGE": "postgresql://db/x", "HPO_ARTIFACTS": "/shared"}
    environment.pop(missing, None)
    arguments = [] if missing == "STUDY" else ["tiny.toml"]
    script = ROOT / "deploy" / "slurm-array.sh"
    finished = subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode != 0
    assert ("usage: sbatch" if missing == "STUDY" else f"set {missing}") in finished.stderr


@pytest.mark.slow
def test_the_slurm_script_with_a_postgres_of_its_own(shims: Path) -> None:
    """Its shell lines as they are, with a real server over TCP; `srun` runs its command once, here."""
    (shims / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (shims / "srun").chmod(0o755)
    (shims / "python").symlink_to(sys.executable)
    with tempfile.TemporaryDirectory(prefix="hpo-tests-slurm-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        tiny(folder, trials=2, epochs=2)
        first = slurm_postgres(folder, shims)
        assert first.returncode == 0, first.stderr
        assert json.loads((folder / "tiny.best.json").read_text())["trials"]["complete"] == 2
        shared = folder / "shared"
        assert {path.name for path in shared.iterdir()} >= {"pg", "password", "environment"}
        assert not (shared / "pg" / "postmaster.pid").exists(), "its server has been stopped"
        assert (shared / "password").stat().st_mode & 0o077 == 0
        assert (shared / "password").read_text().strip() not in (shared / "environment").read_text()
        (folder / "tiny.best.json").unlink()
        again = slurm_postgres(folder, shims)
        assert again.returncode == 0, again.stderr
        assert json.loads((folder / "tiny.best.json").read_text())["trials"]["complete"] == 2, "the same study"
        with (shared / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            second = slurm_postgres(folder, shims)
        assert second.returncode == 1
        assert "another job uses" in second.stderr


def slurm_postgres(folder: Path, shims: Path) -> subprocess.CompletedProcess[str]:
    """Run deploy/slurm-postgres.sh; as root, which Postgres refuses, its server runs under the account for that."""
    environment = os.environ | {"HPO_FOLDER": str(folder / "shared")}
    if embedded_root.is_root():
        user, group = embedded_root.account()
        become = f"setpriv --reuid={user} --regid={group} --clear-groups"
        for program in ("initdb", "pg_ctl"):
            lines = f'chown -R {user}:{group} "$HPO_FOLDER"\nexec {become} {embedded.binaries() / program} "$@"'
            (shims / program).write_text(f"#!/bin/sh\n{lines}\n")
            (shims / program).chmod(0o755)
        environment["HPO_POSTGRES_BIN"] = str(shims)
    call = ["bash", str(ROOT / "deploy" / "slurm-postgres.sh"), "tiny.toml"]
    return subprocess.run(
        call, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


FLAWED = {
    "sentence-transformers": "5.9.0",  # runs code from an encoder's folder
    "transformers": "4.47.1",
    "waitress": "3.0.0",
    "tqdm": "4.66.2",
    "filelock": "3.20.0",
}


@pytest.mark.parametrize(("package", "version"), FLAWED.items())
def test_versions_with_known_flaws_are_not_allowed(package: str, version: str) -> None:
    (allowed,) = (wanted for wanted in map(Requirement, PROJECT["dependencies"]) if wanted.name == package)
    assert version not in allowed.specifier
