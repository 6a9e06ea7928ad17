"""Check that two checkouts compute the same numbers, bit for bit, as they must after a refactoring.

    python -m benchmarks.identical OTHER_CHECKOUT [STUDY ...]

Runs each study (default: studies/smoke.toml and studies/quickstart.toml) with one worker in both checkouts, each
through its own `.venv/bin/hpo`, on fresh databases. Compares every trial (state, parameters, values, reports, stored
attributes) and `best.json`. Only the commit and the time of the export may differ. Exits with 1 if anything else does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa

from sparse_evidence.hpo.database import embedded

HERE = Path(__file__).parents[1]
STUDIES = ("studies/smoke.toml", "studies/quickstart.toml")


def run(checkout: Path, study: Path, url: str, folder: Path) -> dict[str, Any]:
    """Run a study with one worker; returns its trials by number, and its best.json under "best"."""
    out = folder / "best.json"
    command = [str(checkout / ".venv/bin/hpo"), "run", str(study), "--workers", "1", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HPO_STORAGE": url, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    best = json.loads(out.read_text(encoding="utf-8"))
    for key in ("git", "exported_at"):
        del best["provenance"][key]
    return {**{str(trial.number): as_json(trial) for trial in trials_of(url)}, "best": best}


def trials_of(url: str) -> list[optuna.trial.FrozenTrial]:
    """All trials of the only study in a database."""
    (name,) = optuna.get_all_study_names(storage=url)
    return optuna.load_study(study_name=name, storage=url).get_trials(deepcopy=False)


def as_json(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """What a trial computed. JSON writes floats so that they round-trip exactly."""
    fields = ("params", "values", "intermediate_values", "user_attrs", "system_attrs")
    return {"state": trial.state.name, **{name: getattr(trial, name) for name in fields}}


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The trials (or "best") that differ."""
    keys = [*first, *(key for key in second if key not in first)]
    return [key for key in keys if as_text(first.get(key)) != as_text(second.get(key))]


def as_text(value: object) -> str:
    """Canonical JSON. Unlike with `==`, -0.0 and 0.0 differ, and NaN equals itself."""
    return json.dumps(value, sort_keys=True)


def compare(other: Path, study: Path, server: str) -> bool:
    """Run one study in both checkouts, print the result of the comparison, return True if they are identical."""
    results = []
    for number, checkout in enumerate((other, HERE)):
        name = f"{study.stem}_{number}".replace("-", "_")
        engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
        engine.dispose()
        url = sa.make_url(server).set(database=name).render_as_string(hide_password=False)
        with tempfile.TemporaryDirectory(prefix="identical-") as folder:
            results.append(run(checkout, checkout / study.relative_to(HERE), url, Path(folder)))
    different = differing(*results)
    verdict = f"DIFFERENT: {', '.join(different)}" if different else "identical"
    value = float(results[1]["best"]["value"]).hex()
    print(f"{study.stem}: {len(results[1]) - 1} trials and best.json {verdict}; best value {value}")
    return not different


def main() -> None:
    """Compare this checkout with the one named on the command line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    other, *names = sys.argv[1:]
    studies = [(HERE / name).resolve() for name in names or STUDIES]
    with tempfile.TemporaryDirectory(prefix="identical-postgres-") as folder:
        Path(folder).chmod(0o711)  # a server that root starts runs under an account that must reach its data
        with embedded.running(Path(folder)) as server:
            same = [compare(Path(other).resolve(), study, server) for study in studies]
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
