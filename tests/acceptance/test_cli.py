"""What a user does, with real processes and a real Postgres, on the smallest study."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import optuna
import pytest
import waiting
from dashboard_pages import look_at
from optuna.storages import RDBStorage

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import connection, studies
from sparse_evidence.hpo.database.address import storage_url
from sparse_evidence.hpo.database.claims_sql import list_claims
from sparse_evidence.hpo.database.record import BASELINE_NAMES

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "studies" / "smoke.toml"
TRIALS = 6
SCHEMA = json.loads((ROOT / "studies" / "best.schema.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.slow(seconds=30)


def best(path: Path) -> dict[str, Any]:
    """The content of best.json, after checking its schema and format."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = path.read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text, parse_constant=refuse)
    validator = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())
    validator.validate(content)
    assert text == json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return content


def finished(content: dict[str, Any]) -> int:
    return sum(content["trials"][state] for state in ("complete", "pruned", "infeasible"))


until = partial(waiting.until, seconds=300.0)


def variant(folder: Path, name: str, **replaced: str) -> Path:
    """The smoke study with another name and other lines."""
    text = SMOKE.read_text(encoding="utf-8").replace('name = "smoke"', f'name = "{name}"')
    for key, value in replaced.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_that_searches_nothing_says_so(call, tmp_path):
    path = tmp_path / "nothing.toml"
    data = '[data]\nsource = "synthetic"\nposts = 60\ncriteria = 2\nsentences_mean = 5\n'
    path.write_text(data + '[search]\nspace = "file"\ntrials = 1\n[model]\nname = "iris"\n[training]\nepochs = 1\n')
    note = (
        'note: nothing is searched: the file has neither ranges nor choices, and [search] space is "file"; every trial '
        "trains the same configuration with another seed"
    )
    for arguments in (("run", path, "--workers", "1"), ("validate", path)):
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
        assert note in " ".join(done.stdout.split())


def test_a_study_from_its_first_run_to_its_export(call, start, tmp_path):
    # run
    done = call("run", SMOKE, "--workers", "2", new=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    first = best(tmp_path / "smoke.best.json")
    assert finished(first) == TRIALS
    assert len(re.findall(r"^\d/6 trial \d ", done.stdout, flags=re.MULTILINE)) == TRIALS
    assert re.search(
        r"^Baselines \(average precision\): retrieval \d\.\d{4}, linear \d\.\d{4}, zero", done.stdout, re.MULTILINE
    )
    assert first["claim"] in " ".join(done.stdout.split())
    assert first["confirmed"]["splits"] == 2
    assert first["winner"] in {"ensemble", "trial", "default", *first["cv"]["floors"]}
    assert not re.search(r" $", done.stdout, re.MULTILINE)
    assert first["value"] == first["cv"]["mean"]
    assert (tmp_path / "smoke.best.json").stat().st_mode & 0o077 == 0

    # again: nothing is trained, nothing is embedded, the same best
    again = call("run", SMOKE, "--workers", "2")
    assert (again.returncode, again.stderr) == (0, "")
    assert "nothing to do: 6 trials were requested and 6 are finished" in again.stdout
    assert "(all embeddings cached)" in again.stdout
    second = best(tmp_path / "smoke.best.json")
    assert {**second["provenance"], "exported_at": ""} == {**first["provenance"], "exported_at": ""}
    assert {**second, "provenance": {}} == {**first, "provenance": {}}

    # two more trials
    more = call("run", SMOKE, "--workers", "1", "--trials", "8", "-o", "-")
    assert more.returncode == 0, more.stderr
    (tmp_path / "more.json").write_text(more.stdout, encoding="utf-8")  # nothing else is on standard output
    third = best(tmp_path / "more.json")
    assert re.search(r"^8/8 trial \d ", more.stderr, re.MULTILINE)
    assert "written to standard output" in " ".join(more.stderr.split())
    assert best(tmp_path / "smoke.best.json") == second
    assert (finished(third), third["trials"]["requested"]) == (8, 8)
    assert third["ensemble"]["best"]["value"] >= first["ensemble"]["best"]["value"]

    # status, export
    status = json.loads(call("status", SMOKE, "--json", new=True).stdout)
    assert (status["trials"]["finished"], status["workers"], status["claim"]) == (8, [], third["claim"])
    assert status["best"]["value"] == third["ensemble"]["best"]["value"]
    assert status["baselines"] == third["cv"]["floors"]
    with storage_url(folder=tmp_path):  # while somebody keeps the embedded server up
        plain = RDBStorage(status["storage"])
        assert len(optuna.load_study(study_name="smoke", storage=plain).trials) == 8
        plain.engine.dispose()
    listed = call("leaderboard", SMOKE, "--csv", "--top", "1", new=True)
    assert (listed.returncode, listed.stderr) == (0, "")
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(listed.stdout))}
    assert set(rows) - {"default", str(status["best"]["trial"])} == {"ensemble", *BASELINE_NAMES}
    assert float(rows["ensemble"]["confirmed"]) == third["confirmed"]["scores"]["ensemble"]["mean"]
    exported = call("export", SMOKE, "-o", "exported.json", new=True)
    assert (exported.returncode, exported.stderr) == (0, "")
    assert best(tmp_path / "exported.json")["params"] == third["params"]
    assert not list(tmp_path.glob("best.json"))

    # a changed study file is refused
    changed = variant(tmp_path, "smoke", patience="3")
    refused = call("run", changed)
    assert (refused.returncode, refused.stderr.count("\n")) == (4, 1), refused.stderr
    assert "training.patience is 3 here and 2 in the study" in refused.stderr

    # why: the same numbers
    explained = json.loads(call("why", SMOKE, str(status["best"]["trial"]), "--json", new=True).stdout)
    assert (explained["rank"], explained["value"], explained["behind"]) == (1, status["best"]["value"], 0)
    members = {member["trial"]: member["weight"] for member in third["ensemble"]["members"]}
    assert explained["weight"] == members.get(explained["trial"], 0)
    scored = third["confirmed"]["scores"]
    assert explained["confirmed"]["mean"] == scored.get(str(explained["trial"]), scored["default"])["mean"]

    check_the_dashboard(start("dashboard", SMOKE, "--port", "0", new=True), tmp_path, third, status["best"])


def check_the_dashboard(
    server: subprocess.Popen[str], folder: Path, result: dict[str, Any], found: dict[str, Any]
) -> None:
    assert server.stdout is not None
    page = server.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/dashboard/", page), page
    studies = page.replace("/dashboard/", "/api/studies")
    status, body = answer(studies)
    assert status == 200
    assert [study["study_name"] for study in json.loads(body)["study_summaries"]] == [
        "smoke",
        "smoke/confirm/6-trials-2-leaders-2-splits",
        "smoke/confirm/8-trials-2-leaders-2-splits",
    ]
    assert answer(page)[0] == 200
    assert answer(f"{studies}/1", method="DELETE")[0] == 403
    assert answer(studies, method="POST")[0] == 403
    assert answer(studies, Host="evil.example")[0] == 421
    assert answer(studies)[0] == 200
    value = f"{result['ensemble']['value']:.3f}"
    trial = {found["trial"]: [str(found["value"]), "Complete: average precision"]}
    look_at(page, folder, study=1, trials=trial, facts=[f"{value} on the folds of the search", result["claim"]])
    server.send_signal(signal.SIGINT)  # the way to end it
    assert server.wait(30) == 0


def answer(url: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    data = b"{}" if method == "POST" else None
    request = urllib.request.Request(url, method=method, headers=headers, data=data)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_two_workers_that_start_together_on_an_empty_database(start, call, tmp_path, empty_database):
    both = [start("worker", SMOKE, "--threads", "1", HPO_STORAGE=empty_database) for _ in range(2)]
    for worker in both:
        _, err = worker.communicate(timeout=600)
        assert (worker.returncode, err) == (0, "")
    assert call("export", SMOKE, HPO_STORAGE=empty_database).returncode == 0
    assert finished(best(tmp_path / "smoke.best.json")) == TRIALS
    # a worker that joins a finished study runs nothing
    late = call("worker", SMOKE, "--threads", "1", HPO_STORAGE=empty_database)
    assert (late.returncode, late.stderr) == (0, "")
    assert (
        json.loads(call("status", SMOKE, "--json", HPO_STORAGE=empty_database).stdout)["trials"]["finished"] == TRIALS
    )


def test_two_runs_with_one_worker_give_the_same_best(call, tmp_path, fresh_database):
    results = []
    for number in range(2):
        done = call("run", SMOKE, "--workers", "1", "--out", f"{number}.json", "--storage", fresh_database())
        assert (done.returncode, done.stderr) == (0, "")
        results.append(best(tmp_path / f"{number}.json"))
        del results[-1]["provenance"]["exported_at"]
    assert results[0] == results[1]


def test_another_study_with_the_same_encoder_and_chunks_embeds_nothing(call, tmp_path, database):
    assert call("run", SMOKE, "--workers", "1", "--trials", "1", "--storage", database).returncode == 0
    rates = "{ low = 1e-3, high = 3e-2, log = true, default = 0.01 }"
    study = variant(tmp_path, "other", folds="3", stages="[1, 2]", learning_rate=rates)
    other = call("run", study, "--trials", "2", "--storage", database, "--from", "smoke.best.json")
    assert (other.returncode, other.stderr) == (0, "")
    assert "note: trial 0 of smoke.best.json is tried first, once" in " ".join(other.stdout.split())
    assert finished(best(tmp_path / "other.best.json")) == 2
    assert re.search(r"^other: 60 posts, \d+ texts \(all embeddings cached\)$", other.stdout, re.MULTILINE)


# --- stopped and killed ----------------------------------------------------------------------------------------------


@pytest.fixture
def long_study(tmp_path: Path) -> Path:
    """A study whose trials do not end."""
    return variant(tmp_path, "long", epochs="10000", patience="10000")


def claims(url: str) -> list[dict[str, Any]]:
    """The claims on running and released trials, in the trials' order."""
    opened = connection.open_storage(url)
    try:
        rows = list_claims(connection.engine_of(opened), studies.load_study(opened, "long"))
        return sorted(rows, key=lambda row: row["trial"])
    except UserError:  # not started yet
        return []
    finally:
        connection.engine_of(opened).dispose()


def ended(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_an_interrupted_run_releases_its_trials_and_shows_where_the_study_stands(start, long_study, database):
    run = start("run", long_study, "--workers", "2", "--trials", "2", "--storage", database)
    at_work = until(lambda: len(rows := claims(database)) == 2 and rows)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, err.count("\n")) == (130, 1), err
    assert "no finished trial is lost; run the same command to resume" in err
    assert "Press Ctrl-C again to stop immediately." in out
    assert "long: 0 of 2 trials finished\n0 complete, 0 pruned, 0 running, 2 released\nno score yet\n" in out
    assert ended([row["pid"] for row in at_work])
    assert [(row["trial"], row["released"]) for row in claims(database)] == [(0, True), (1, True)]
    # the next run resumes those two and starts no others
    again = start("run", long_study, "--workers", "2", "--trials", "2", "--storage", database)
    until(lambda: [row["trial"] for row in claims(database) if not row["released"]] == [0, 1])
    again.send_signal(signal.SIGTERM)
    _, err = again.communicate(timeout=300)
    assert (again.returncode, err.count("\n")) == (130, 1), err
    assert [row["released"] for row in claims(database)] == [True, True]


def test_a_killed_run_leaves_no_worker_behind(start, long_study, database):
    run = start("run", long_study, "--workers", "2", "--trials", "2", "--storage", database)
    at_work = until(lambda: len(rows := claims(database)) == 2 and rows)
    run.kill()
    until(lambda: ended([row["pid"] for row in at_work]))
    assert all(row["released"] for row in claims(database))


def test_a_killed_worker_is_replaced_and_the_run_ends_when_all_workers_fail(start, long_study, database):
    service = {"HPO_HEARTBEAT_SECONDS": "0.5", "HPO_GRACE_SECONDS": "5"}
    run = start("run", long_study, "--workers", "2", "--trials", "2", "--storage", database, **service)
    at_work = until(lambda: len(rows := claims(database)) == 2 and rows)
    os.kill(at_work[0]["pid"], signal.SIGKILL)
    first = {row["pid"] for row in at_work}
    now = until(lambda: len(rows := claims(database)) == 2 and {row["pid"] for row in rows} - first and rows)
    long_study.unlink()  # new workers fail from here on
    for row in now:
        os.kill(row["pid"], signal.SIGKILL)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 2
    assert re.fullmatch(
        r"hpo: no worker is left, and 0 of 2 trials are finished: a worker ended with exit code 2 .*\n", err
    )
    assert out.count("was killed by signal 9") == 3
