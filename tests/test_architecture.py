"""The shape of the project: imports, the size of functions, the command line, and what is documented."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
import typer
from fitted_models import linear_model
from in_process import hpo

from sparse_evidence.core.fitted import save_model
from sparse_evidence.hpo.cli import app as cli
from sparse_evidence.hpo.errors import Exit

ROOT = Path(__file__).parents[1]

VERBS = {
    "init": {"DATA", "--column", "--out", "-o"},
    "validate": {"STUDY", "--json"},
    "run": {"STUDY", "--workers", "--trials", "--out", "-o", "--force", "--from", "--fit", "--storage"},
    "fit": {"BEST", "--out", "-o", "--study", "--what", "--single"},
    "explain": {"MODEL_DIR", "[POSTS]", "--out", "--study", "-o", "--limit", "--force"},
    "nested": {"STUDY", "--outer", "--workers", "--trials", "--storage", "--json"},
    "worker": {
        "STUDY",
        "--trials",
        "--slots",
        "--per-gpu",
        "--threads",
        "--slot",
        "--storage",
        "--artifacts",
        "--confirm-only",
    },
    "confirm": {"STUDY", "--workers", "--leaders", "--splits", "--storage"},
    "status": {"STUDY", "--watch", "--storage", "--json"},
    "list": {"--storage", "--json"},
    "delete": {"STUDY", "--gone", "--yes", "-y", "--storage", "--artifacts"},
    "why": {"STUDY", "TRIAL", "--json", "--storage"},
    "leaderboard": {"STUDY", "--top", "--csv", "--json", "--storage"},
    "report": {"STUDY", "--out", "-o", "--force", "--storage"},
    "export": {"STUDY", "--out", "-o", "--force", "--mlflow", "--mlflow-trials", "--model", "--storage"},
    "predict": {
        "MODEL_DIR",
        "POSTS",
        "--out",
        "-o",
        "--column",
        "--long",
        "--no-evidence",
        "--prefix",
        "--show",
        "--format",
    },
    "evaluate": {"MODEL_DIR", "DATA", "--study", "--storage", "--json"},
    "dashboard": {"STUDY", "--host", "--port", "--allow-changes", "--storage"},
}
"""Scripts depend on these: remove none, and document new ones in the README and the CHANGELOG."""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


FILES = sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("hpo/**/*.py")])
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


# --- imports ----------------------------------------------------------------------------------------------------------


def test_imports_point_one_way():
    python("import sys; sys.argv = ['lint-imports', '--no-cache']; from importlinter.cli import lint_imports_command;"
           "lint_imports_command()")  # fmt: skip


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_name(path): path for path in FILES}
    graph = {name: set(imported(name, path, modules)) - {name} for name, path in modules.items()}
    assert sum(map(len, graph.values())) > len(graph)
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


def module_name(path: Path) -> str:
    """`core.splits`; a package has the name of its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The project's modules that a module imports anywhere in it, those for type checking included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (known for alias in node.names if (known := local(alias.name)) in modules)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = local(".".join([*parents, *([node.module] if node.module else [])]))
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield from (known for known in [submodule if submodule in modules else source] if known in modules)


def local(name: str) -> str:
    return name.removeprefix("sparse_evidence.")


PRIVATE_OPTUNA = re.compile(
    r"\b(_study_id|_trial_id|_storage|_backend|_thread_local|_cached_frozen_trial|_rdb|_get_trials|_set_trial_param"
    r"|_get_best_trial_id|_suggest|_rng|_CachedStorage)\b"
)


def test_one_module_touches_private_parts_of_optuna():
    touching = set()
    for path in ROOT.glob("hpo/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            on_self = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            if not on_self and PRIVATE_OPTUNA.search(" ".join(spelled(node))):
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


@pytest.mark.parametrize(
    ("table", "module"),
    [("hpo_claims", "claims_sql.py"), ("hpo_predictions", "predictions.py"), ("hpo_baselines", "predictions.py")],
)
def test_one_module_has_the_statements_on_each_of_our_tables(table, module):
    statements = re.compile(rf"\b(FROM|INTO|UPDATE|JOIN|TABLE|EXISTS)\s+{table}\b|to_regclass\('{table}'\)")
    modules = [path.name for path in ROOT.glob("hpo/**/*.py") if statements.search(path.read_text(encoding="utf-8"))]
    assert modules == [module]


def test_one_module_decides_what_goes_to_mlflow():
    imports = re.compile(r"^\s*(from|import) mlflow\b", re.MULTILINE)
    modules = [path.name for path in FILES if imports.search(path.read_text(encoding="utf-8"))]
    assert modules == ["tracking.py"]


# --- the command line -------------------------------------------------------------------------------------------------


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


def test_the_version():
    done = subprocess.run(
        [sys.executable, "-m", "sparse_evidence.hpo", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"sparse-evidence-hpo {version('sparse-evidence-hpo')}\n"


def test_a_shell_completes_verbs():
    completed = python(
        "import os, sys; sys.argv = ['hpo']\n"
        "os.environ.update(_HPO_COMPLETE='complete_bash', COMP_WORDS='hpo st', COMP_CWORD='1')\n"
        "from sparse_evidence.hpo.cli.app import main\n"
        "main()"
    )
    assert completed.split() == ["status"]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_80_columns_and_is_not_cut(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, text, _ = hpo(*([verb] if verb else []), "--help")
    assert (code, text.count("\n") > 5) == (0, True)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_the_collector_pauses_for_imports_only():
    states = python(
        "import gc; from sparse_evidence.hpo.cli import app, shared\n"
        "print(gc.isenabled())\n"
        "with shared.fast_imports(): print(gc.isenabled())\n"
        "print(gc.isenabled())"
    ).split()
    assert states == ["True", "False", "True"]


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


def test_loading_the_data_and_watching_workers_do_not_wait_for_torch():
    """`hpo run` shows mistakes in the data, and its workers start, seconds earlier."""
    heavy = python(
        "import sys, sparse_evidence.hpo.running.launcher, sparse_evidence.hpo.running.joining\n"
        "import sparse_evidence.hpo.running.task, sparse_evidence.hpo.running.conclusions\n"
        "import sparse_evidence.hpo.results.live, sparse_evidence.hpo.results.plan\n"
        "print([name for name in ('torch', 'faiss', 'transformers', 'sklearn', 'pandas') if name in sys.modules])"
    ).strip()
    assert heavy == "[]"


def test_a_worker_imports_nothing_that_it_does_not_need():
    heavy = python(
        "import sys, sparse_evidence.hpo.running.worker, sparse_evidence.hpo.results.live\n"
        "import sparse_evidence.hpo.cli.worker, sparse_evidence.hpo.cli.app\n"
        "names = ('transformers', 'sentence_transformers', 'optuna_dashboard', 'faiss', 'sklearn', 'pandas', 'pyarrow')"
        "\n"
        "print([name for name in names if name in sys.modules])"
    ).strip()
    assert heavy == "[]"


DATABASES = ("optuna", "sqlalchemy", "psycopg2", "alembic", "sqlite3", "sparse_evidence.hpo.database")


@pytest.mark.parametrize(
    "use",
    [
        "from sparse_evidence.core.fitted import load_model; load_model(sys.argv[1]).predict(['A post. It is short.'])",
        "from sparse_evidence.hpo.cli import app\n"
        "sys.argv[:] = ['hpo', 'predict', sys.argv[1], sys.argv[2], '-o', sys.argv[2] + '.out.csv']\n"
        "try: app.main()\n"
        "except SystemExit as end: assert end.code == 0",
    ],
)
def test_predicting_knows_no_study_and_no_database(tmp_path, use):
    save_model(linear_model(), tmp_path / "model", "card")
    (tmp_path / "posts.csv").write_text("post\nA post. It is short.\n", encoding="utf-8")
    loaded = python(
        f"import sys\n{use}\nprint([name for name in {DATABASES} if name in sys.modules])",
        str(tmp_path / "model"),
        str(tmp_path / "posts.csv"),
    ).strip()
    assert loaded == "[]"


def test_the_exit_codes_are_in_the_help():
    for code in Exit:
        assert re.search(rf"\b{int(code)} \w+", cli.EXIT_CODES), code


# --- documentation ----------------------------------------------------------------------------------------------------


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
        return [table for entry in schema for table in tables(entry, place)]
    if not isinstance(schema, dict):
        return []
    outer = [(place, schema["properties"])] if isinstance(schema.get("properties"), dict) else []
    return outer + [inner for key, entry in schema.items() for inner in tables(entry, f"{place}.{key}")]


def test_every_module_says_what_it_is_for():
    for path in [*FILES, *ROOT.glob("tests/**/test_*.py")]:
        assert path.read_text(encoding="utf-8").startswith('"""'), path


# --- functions --------------------------------------------------------------------------------------------------------


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTION))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its head."""
    return (function.end_lineno or 0) - function.body[0].lineno + 1


def test_functions_are_short():
    lengths = {
        f"{path.relative_to(ROOT)}: {function.name}": body_lines(function)
        for path in FILES
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
    assert median(lengths.values()) <= 9
    assert quantiles(lengths.values(), n=20)[-1] <= 35


def test_public_functions_are_annotated():
    bare = [
        f"{path.relative_to(ROOT)}: {function.name}"
        for path in FILES
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
        if not function.name.startswith("_") and not annotated(function)
    ]
    assert bare == []


def annotated(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    starred = [argument for argument in (function.args.vararg, function.args.kwarg) if argument is not None]
    typed = all(argument.annotation or argument.arg in {"self", "cls"} for argument in [*named, *starred])
    return typed and function.returns is not None
