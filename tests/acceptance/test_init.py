"""`hpo init`: from a table of posts to a study file that `hpo validate` accepts."""

from pathlib import Path

STUDIES = Path(__file__).parents[2] / "studies"


def test_init_writes_a_study_file_that_validates(call, tmp_path):
    (tmp_path / "my posts.csv").write_bytes((STUDIES / "pairs.csv").read_bytes())
    done = call("init", "my posts.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "wrote my posts.toml; next:",
        "  hpo validate 'my posts.toml'",
        "  hpo run 'my posts.toml'",
    ]
    checked = call("validate", "my posts.toml")
    assert checked.returncode == 0, checked.stderr
    assert "60 in 26 groups" in checked.stdout


def test_init_without_a_table_is_for_the_editorials(call, tmp_path):
    assert call("init").returncode == 0
    assert 'source = "editorials"' in (tmp_path / "editorials.toml").read_text(encoding="utf-8")


def test_init_does_not_overwrite_a_file(call, tmp_path):
    (tmp_path / "editorials.toml").write_text("mine", encoding="utf-8")
    done = call("init")
    assert done.returncode == 2
    assert done.stderr == "hpo: editorials.toml already exists and is not overwritten; give another file with -o\n"
    assert (tmp_path / "editorials.toml").read_text(encoding="utf-8") == "mine"
    assert call("init", "-o", "other.toml").returncode == 0


def test_mistakes_of_init_are_one_sentence(call, tmp_path):
    (tmp_path / "bad.csv").write_text("post_id,post,criterion\np,Text.,anger\n", encoding="utf-8")
    for arguments, fragment in (
        (["absent.csv"], "absent.csv does not exist"),
        (["bad.csv"], "column label is missing"),
        (["-o", "absent/a.toml"], "absent/a.toml cannot be written (No such file or directory)"),
    ):
        done = call("init", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("hpo: ")
        assert fragment in done.stderr
    assert not list(tmp_path.glob("*.toml"))
