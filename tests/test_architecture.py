"""The shape of the project, as a test: who imports whom, what the command line offers, what is documented."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer

from sparse_evidence.hpo.cli import app as cli
from sparse_evidence.hpo.errors import Exit

ROOT = Path(__file__).parents[1]

VERBS = {
    "init": {"[DATA]", "--out", "-o"},
    "validate": {"STUDY"},
    "run": {"STUDY", "--workers", "--trials", "--out", "--storage"},
    "worker": {"STUDY", "--trials", "--slots", "--per-gpu", "--threads", "--slot", "--storage", "--artifacts"},
    "status": {"STUDY", "--storage", "--json"},
    "export": {"STUDY", "--out", "-o", "--storage"},
    "dashboard": {"[STUDY]", "--host", "--port", "--allow-changes", "--storage"},
}
"""Scripts depend on these: take none away, and write new ones into the README and the CHANGELOG."""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_imports_point_one_way():
    python("import sys; sys.argv = ['lint-imports', '--no-cache']; from importlinter.cli import lint_imports_command;"
           "lint_imports_command()")  # fmt: skip


def test_the_verbs_and_their_options():
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    offered = {
        name: {
            word
            for parameter in command.params
            for word in ([parameter.metavar] if parameter.param_type_name == "argument" else parameter.opts)
        }
        for name, command in commands.items()
    }
    assert offered == VERBS
    assert all(command.help for command in commands.values())


def test_help_waits_for_nothing_heavy():
    heavy = python(
        "import sys; sys.argv = ['hpo', '--help']\n"
        "from sparse_evidence.hpo.cli import app as cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "names = ('torch', 'optuna', 'sqlalchemy', 'numpy', 'pandas', 'sklearn', 'transformers', 'pydantic')\n"
        "print([name for name in names if name in sys.modules])"
    ).splitlines()[-1]
    assert heavy == "[]"


def test_checking_a_study_file_waits_for_nothing_heavy():
    heavy = python(
        "import sys; from pathlib import Path; from sparse_evidence.hpo.study.definition import load\n"
        "load(Path('studies/smoke.toml'))\n"
        "print([name for name in ('torch', 'optuna', 'sqlalchemy', 'pandas', 'sklearn') if name in sys.modules])"
    ).strip()
    assert heavy == "[]"


def test_a_worker_imports_no_more_than_it_needs():
    heavy = python(
        "import sys, sparse_evidence.hpo.running.worker, sparse_evidence.hpo.results.live\n"
        "import sparse_evidence.hpo.cli.app\n"
        "names = ('transformers', 'sentence_transformers', 'optuna_dashboard', 'faiss', 'sklearn', 'pandas', 'pyarrow')"
        "\n"
        "print([name for name in names if name in sys.modules])"
    ).strip()
    assert heavy == "[]"


def test_the_exit_codes_are_in_the_help():
    for code in Exit:
        assert re.search(rf"\b{int(code)} \w+", cli.EXIT_CODES), code


def test_every_key_of_best_json_is_described():
    schema = json.loads((ROOT / "studies" / "best.schema.json").read_text(encoding="utf-8"))
    undescribed = [
        place
        for place, table in tables(schema, "")
        for key, entry in table.items()
        if not (entry.get("description") or entry.get("const") or "$ref" in entry or key in {"name", "repeats"})
    ]
    assert undescribed == []


def tables(schema: Any, place: str) -> list[tuple[str, dict[str, Any]]]:
    """Every `properties` table in a schema, with its place."""
    if isinstance(schema, list):
        return [found for entry in schema for found in tables(entry, place)]
    if not isinstance(schema, dict):
        return []
    found = [(place, schema["properties"])] if isinstance(schema.get("properties"), dict) else []
    return found + [inner for key, entry in schema.items() for inner in tables(entry, f"{place}.{key}")]


PRIVATE_OPTUNA = re.compile(
    r"\b(_study_id|_trial_id|_storage|_backend|_thread_local|_cached_frozen_trial|_rdb|_get_trials|_set_trial_param"
    r"|_get_best_trial_id|_suggest)\b"
)


def test_one_module_touches_private_parts_of_optuna():
    touching = set()
    for path in ROOT.glob("hpo/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            if not own and PRIVATE_OPTUNA.search(" ".join(spelled(node))):
                touching.add(str(path.relative_to(ROOT)))
    assert touching == {"hpo/database/optuna_storage.py"}


def spelled(node: ast.AST) -> list[str]:
    """The names by which a node could reach into an object or a module."""
    match node:
        case ast.Attribute(attr=name):
            return [name]
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names):
            return [module or "", *(alias.name for alias in names)]
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
            return [name]
    return []


def test_one_module_has_the_statements_on_the_claims_table():
    statements = re.compile(r"\b(FROM|INTO|UPDATE|JOIN|TABLE)\s+hpo_claims\b|to_regclass\('hpo_claims'\)")
    modules = [path.name for path in ROOT.glob("hpo/**/*.py") if statements.search(path.read_text(encoding="utf-8"))]
    assert modules == ["claims_sql.py"]


def test_functions_are_short():
    too_long = []
    for path in [*ROOT.glob("core/**/*.py"), *ROOT.glob("hpo/**/*.py")]:
        for function, lines in functions(path):
            if lines > 60:
                too_long.append(f"{path.relative_to(ROOT)}: {function} has {lines} lines")
    assert too_long == []


def functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (node.name, (node.end_lineno or 0) - node.body[0].lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]


def test_every_module_says_what_it_is_for():
    for path in [*ROOT.glob("core/**/*.py"), *ROOT.glob("hpo/**/*.py"), *ROOT.glob("tests/**/test_*.py")]:
        assert path.read_text(encoding="utf-8").startswith('"""'), path
