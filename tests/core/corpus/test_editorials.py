"""The editorials: the published table becomes a corpus, and a failed download is explained in one sentence."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from sparse_evidence.core.corpus.editorials import EditorialsSource
from sparse_evidence.core.errors import UserError


@pytest.fixture(scope="module")
def editorials():
    # In the user's cache (tests start without HPO_CACHE), so that a single download serves all sessions.
    return EditorialsSource().load(Path())


def test_the_editorials_are_the_published_ones(editorials):
    assert len(editorials) == 498
    assert sum(post.count("\n") + 1 for post in editorials.posts) == 5190
    assert [item.name for item in editorials.criteria] == ["very_negative", "negative", "positive", "very_positive"]
    assert editorials.positives.tolist() == [48, 197, 122, 32]
    assert editorials.groups == editorials.post_ids
    assert editorials.post_ids[0] == "editorial-1"
    assert editorials.posts[0].startswith("On Dec. 19, around noon")
    assert editorials.fingerprint()[:12] == "85f9b0f485e9"


def test_evidence_is_whole_sentences_of_positive_posts(editorials):
    backed = np.zeros_like(editorials.labels)
    for item in editorials.evidence:
        backed[item.post, item.criterion] = 1
        assert editorials.posts[item.post][item.start : item.end] in editorials.posts[item.post].split("\n")
    assert np.array_equal(backed, editorials.labels)


def test_without_a_package_index_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(
        UserError, match=r"could not be downloaded \(.*\); run this once where pip can reach a package index"
    ) as refused:
        EditorialsSource().load(Path())
    assert str(tmp_path) in str(refused.value)


def test_an_archive_with_another_hash_is_refused(tmp_path, monkeypatch):
    """pip finds a package of the right name and version in a local folder, but its content is not the published one."""
    (tmp_path / "setup.py").write_text("")
    with tarfile.open(tmp_path / "vaderSentiment-3.3.2.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "vaderSentiment-3.3.2/setup.py")
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"^the editorials could not be downloaded \(.*\); run this once [^\n]*$"):
        EditorialsSource().load(Path())
    assert not (tmp_path / "cache" / "nytEditorialSnippets_GroundTruth.txt").exists()


def test_a_cached_table_needs_no_download(editorials, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert EditorialsSource().load(Path("/nowhere")).fingerprint() == editorials.fingerprint()


def test_stronger_criteria_imply_the_weaker_ones(editorials):
    very_negative, negative, positive, very_positive = editorials.labels.T.astype(bool)
    assert not (very_negative & ~negative).any()
    assert not (very_positive & ~positive).any()
    assert np.array_equal(editorials.labels == -1, np.zeros_like(editorials.labels, dtype=bool))
