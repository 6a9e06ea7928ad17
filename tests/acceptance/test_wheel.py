"""The wheel: one namespace, with the schemas and the example studies in it, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_has_the_code_the_schemas_and_the_examples(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("core", "hpo", "studies", "src"):
        hidden = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=hidden)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "studies" / "redsm5").mkdir()
    (source / "studies" / "redsm5" / "redsm5_posts.csv").write_text("private", encoding="utf-8")
    (source / "studies" / "own.csv").write_text("private", encoding="utf-8")
    pip(tmp_path, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source))
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].removesuffix(".dist-info").split("-")[0] for name in names} == {
        "sparse_evidence",
        "sparse_evidence_hpo",
    }
    shipped = {path.name for kind in ("*.toml", "*.schema.json") for path in (ROOT / "studies").glob(kind)}
    assert {name.rpartition("/")[2] for name in names if "/studies/" in name} == shipped | {
        "pairs.csv",
        "new_posts.csv",
    }
    modules = {
        f"sparse_evidence/{path.relative_to(ROOT)}" for half in ("core", "hpo") for path in ROOT.glob(f"{half}/**/*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    templates = {f"sparse_evidence/{path.relative_to(ROOT)}" for path in ROOT.glob("hpo/pages/templates/*")}
    assert templates
    assert templates <= set(names)


def pip(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
