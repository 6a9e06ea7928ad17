"""Root's embedded databases whose folders are gone: which are found, and what is deleted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import embedded, embedded_gone, embedded_root
from sparse_evidence.hpo.database.embedded_gone import Gone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's databases are in the folders themselves")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder of databases that is root's alone."""
    made = tmp_path / "databases"
    made.mkdir(mode=0o711)
    return made


def database(base: Path, served: Path | bytes, name: str = "") -> Path:
    """A folder as `embedded_root.home` makes it, with a database of the server's account."""
    home = base / (name or uuid4().hex[:16])
    (home / "pg" / "base").mkdir(parents=True, mode=0o711)
    (home / "pg" / "PG_VERSION").write_text("18\n")
    (home / "belongs-to").write_bytes((served if isinstance(served, bytes) else os.fsencode(served)) + b"\n")
    (home / "belongs-to").chmod(0o600)
    for path in (home / "pg", home / "pg" / "base"):
        os.chown(path, *embedded_root.account())
    return home


def test_only_databases_whose_folders_are_gone_are_deleted(base: Path, tmp_path: Path) -> None:
    (tmp_path / "there" / ".hpo").mkdir(parents=True)
    (tmp_path / "file").touch()
    kept = database(base, tmp_path / "there" / ".hpo")
    gone = database(base, tmp_path / "gone, a name of\n two lines" / ".hpo")
    below_a_file = database(base, tmp_path / "file" / ".hpo")
    odd = database(base, os.fsencode(tmp_path) + b"/caf\xe9/.hpo")
    database(base, tmp_path / "gone", name="postgres-0.6.0")
    found = embedded_gone.find_gone([base])
    assert {each.home for each in found} == {gone, below_a_file, odd}
    assert all(embedded_gone.delete_gone(each) for each in found)
    assert {path.name for path in base.iterdir()} == {kept.name, "postgres-0.6.0"}
    assert embedded_gone.find_gone([base]) == []


@pytest.mark.parametrize("weak", ["file", "home", "base", "link", "owner", "relative", "cut off"])
def test_what_a_weaker_account_could_have_written_is_not_believed(base: Path, tmp_path: Path, weak: str) -> None:
    home = database(base, tmp_path / "gone" / ".hpo")
    note = home / "belongs-to"
    if weak == "file":
        note.chmod(0o666)
    elif weak == "link":
        note.rename(home / "elsewhere")
        note.symlink_to(home / "elsewhere")
    elif weak == "owner":
        os.chown(note, *embedded_root.account())
    elif weak in {"relative", "cut off"}:
        note.write_text("gone/.hpo\n" if weak == "relative" else str(tmp_path / "go"))
    else:
        (home if weak == "home" else base).chmod(0o777)
    assert embedded_gone.find_gone([base]) == []
    if weak != "base":  # which is looked at when databases are found
        assert not embedded_gone.delete_gone(Gone(home, tmp_path / "gone" / ".hpo"))
    assert (home / "pg" / "PG_VERSION").exists()


def test_a_link_in_place_of_a_database_is_not_followed(base: Path, tmp_path: Path) -> None:
    elsewhere = database(tmp_path, tmp_path / "gone")
    (base / elsewhere.name).symlink_to(elsewhere)
    assert embedded_gone.find_gone([base]) == []


def test_links_in_a_database_lead_nowhere(base: Path, tmp_path: Path) -> None:
    """The account of the server may lay them."""
    victim = tmp_path / "victim"
    (victim / "kept").mkdir(parents=True)
    home = database(base, tmp_path / "gone")
    for name in ("postmaster.pid", "pg_tblspc", "base/1"):
        (home / "pg" / name).symlink_to(victim)
    (found,) = embedded_gone.find_gone([base])
    assert embedded_gone.delete_gone(found)
    assert (victim / "kept").is_dir()
    assert not home.exists()


def test_a_folder_that_is_there_again_keeps_its_database(base: Path, tmp_path: Path) -> None:
    home = database(base, tmp_path / "gone")
    (found,) = embedded_gone.find_gone([base])
    (tmp_path / "gone").mkdir()
    assert not embedded_gone.delete_gone(found)
    assert home.exists()


def test_a_database_in_use_is_kept(own_server: tuple[embedded.Server, str], tmp_path: Path) -> None:
    server, _ = own_server
    gone = Gone(server.home, tmp_path / "gone")
    (server.home / "belongs-to").write_text(f"{gone.served}\n")
    (server.home / "belongs-to").chmod(0o600)
    assert not embedded_gone.delete_gone(gone)
    assert server.answers()


def test_a_database_that_cannot_be_deleted_is_told(base: Path, tmp_path: Path) -> None:
    home = database(base, tmp_path / "gone")
    (home / "start.lock").mkdir()
    (found,) = embedded_gone.find_gone([base])
    with pytest.raises(UserError, match=rf"^{home} cannot be deleted \(Is a directory\); delete the rest yourself$"):
        embedded_gone.delete_gone(found)


# ---- hpo delete --gone -----------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(base: Path) -> list[str]:
    """What makes a command see `base` where root's databases are, and no other."""
    empty = base.with_name("empty")
    empty.mkdir()
    mounts = " && ".join(
        f"{{ [ ! -d {there} ] || mount --bind {here} {there}; }}"
        for here, there in zip((base, empty), embedded_root.BASES, strict=True)
    )
    embedded_root.BASES[0].mkdir(mode=0o711, exist_ok=True)
    command = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"nothing can be mounted here ({tried.stderr.strip()})")
    return command


@pytest.mark.slow
def test_the_database_of_a_project_that_was_deleted(base: Path, elsewhere: list[str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()

    def hpo(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*elsewhere, sys.executable, "-m", "sparse_evidence.hpo", *arguments],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip

    with_nothing = hpo("delete", "--gone", "--yes")
    assert (with_nothing.returncode, with_nothing.stdout) == (0, "no embedded database is without its folder\n")
    home = base / "0123456789abcdef"
    database(base, project / ".hpo", home.name)
    (project / ".hpo").mkdir()
    assert "no embedded database" in hpo("delete", "--gone").stdout
    shutil.rmtree(project)
    asked = hpo("delete", "--gone")
    there = embedded_root.BASES[0] / home.name
    assert asked.returncode == 2
    assert asked.stdout == f"{there} served {project / '.hpo'}, which does not exist\n"
    assert asked.stderr == "hpo: nothing is deleted: there is no terminal to ask on; give --yes to delete them\n"
    assert home.exists()
    deleted = hpo("delete", "--gone", "--yes")
    assert deleted.returncode == 0, deleted.stderr
    assert deleted.stdout.splitlines()[-1] == "deleted 1 database"
    assert not home.exists()


def test_a_study_or_what_is_gone() -> None:
    from in_process import hpo

    both, neither = hpo("delete", "s", "--gone"), hpo("delete", "--yes")
    assert (both.code, neither.code) == (2, 2)
    assert "leave out s or --gone" in both.err
    assert "needs the name of a study" in neither.err


def test_the_note_is_roots_alone(tmp_path: Path) -> None:
    """Also one that an earlier version wrote under a loose umask, and also of a folder whose name is not UTF-8."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    before = os.umask(0)
    try:
        home = embedded_root.home(folder)
        (home / "belongs-to").chmod(0o666)
        assert embedded_root.home(folder) == home
        assert (home / "belongs-to").stat().st_mode & 0o777 == 0o600
        assert (home / "belongs-to").read_bytes() == os.fsencode(folder) + b"\n"
    finally:
        os.umask(before)
        shutil.rmtree(home)
