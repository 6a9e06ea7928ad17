"""Each text is embedded only once, for all callers and processes, even if a process is killed.

A real sentence-transformers model with a vocabulary of a few words stands in for the large ones: the same code loads it
from a local folder, quickly.
"""

import hashlib
import logging
import multiprocessing
import os
import shutil
import signal
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from sparse_evidence.core.config import ChunksConfig
from sparse_evidence.core.corpus.data import Corpus, Criterion, Evidence
from sparse_evidence.core.corpus.synthetic import generate
from sparse_evidence.core.errors import EncoderError, UserError
from sparse_evidence.core.features import embeddings
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.embeddings import embed
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.views import embed_corpus, text_corpus

WORDS = ("sad", "tired", "dog", "bread", "night", "sleep", "never", "happy")
TEXTS = [f"{a} {b}" for a in WORDS for b in WORDS]

processes = pytest.mark.filterwarnings("default:.*fork.*:DeprecationWarning")
FORK = multiprocessing.get_context("fork")  # the child inherits the imports of its parent


def save_encoder(folder, seed=0):
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, **{word: 1 + i for i, word in enumerate(WORDS)}}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = torch.randn(len(WORDS) + 1, 8, generator=torch.Generator().manual_seed(seed))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights.numpy())], device="cpu")
    model.save(str(folder), create_model_card=False)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(folder)
    return locate(str(folder))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def packs(root):
    return sorted(root.rglob("pack-*.safetensors"))


def views(root):
    return sorted(root.rglob("view-*.npy"))


# ---- each text once ---------------------------------------------------------------------------------------------


def test_vectors_equal_those_of_the_encoder(encoder, root):
    from sentence_transformers import SentenceTransformer

    embedded = embed(TEXTS, encoder, root=root)
    expected = SentenceTransformer(str(encoder.folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(embedded.vectors, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors, axis=1), 1, atol=1e-5)
    assert embedded.vectors.dtype == np.float32
    assert embedded.computed == len(TEXTS)


def test_a_second_call_computes_nothing(encoder, root):
    first = embed(TEXTS, encoder, root=root)
    calls = []
    second = embed(TEXTS, encoder, root=root, progress=lambda done, all_: calls.append((done, all_)))
    assert (second.computed, calls) == (0, [])
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_another_corpus_uses_the_cached_texts(encoder, root):
    all_texts = embed(TEXTS, encoder, root=root)
    other = embed([TEXTS[5], "sad bread dog", TEXTS[3]], encoder, root=root)
    assert other.computed == 1
    np.testing.assert_array_equal(other.vectors[[0, 2]], all_texts.vectors[[5, 3]])
    assert embed(TEXTS[::-1], encoder, root=root).computed == 0


def test_duplicates_are_embedded_once(encoder, root):
    embedded = embed(["sad dog", "tired", "sad dog", "sad dog"], encoder, root=root)
    assert embedded.computed == 2
    np.testing.assert_array_equal(embedded.vectors[0], embedded.vectors[2])
    np.testing.assert_array_equal(embedded.vectors[0], embedded.vectors[3])
    assert not np.array_equal(embedded.vectors[0], embedded.vectors[1])


def test_another_revision_has_its_own_cache(encoder, root, tmp_path):
    first = embed(TEXTS, encoder, root=root)
    changed = tmp_path / "changed"
    shutil.copytree(encoder.folder, changed)
    assert locate(str(changed)).revision == encoder.revision  # a copy has the same revision ...
    save_encoder(tmp_path / "other", seed=1)
    other = replace(locate(str(tmp_path / "other")), name=encoder.name)
    assert other.revision != encoder.revision  # ... other weights have another
    second = embed(TEXTS, other, root=root)
    assert second.computed == len(TEXTS)
    assert not np.allclose(first.vectors, second.vectors)


def test_vectors_in_bfloat16_are_nearly_the_same_and_have_their_own_cache(root):
    encoder = locate("all-MiniLM-L6-v2")
    texts = [f"{text}, and I cannot sleep since {day}." for text in TEXTS[:12] for day in ("Monday", "the winter")]
    exact = embed(texts, encoder, root=root).vectors
    fast = embed(texts, encoder, precision="bfloat16", root=root)
    assert fast.computed == len(texts)
    assert fast.vectors.dtype == np.float32
    assert not np.array_equal(fast.vectors, exact)
    assert (fast.vectors * exact).sum(1).min() > 0.9998
    np.testing.assert_allclose(np.linalg.norm(fast.vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(embed(texts, encoder, root=root).vectors, exact)
    assert embed(texts[::2], encoder, precision="bfloat16", root=root).computed == 0


def test_a_new_list_reads_only_the_packs_that_have_its_texts(encoder, root, monkeypatch):
    monkeypatch.setattr(embeddings, "PACK_TEXTS", 20)
    whole = embed(TEXTS, encoder, root=root).vectors
    names = [path.name for path in packs(root)]
    assert len(names) > 2
    of_text = packs(root)[0]
    with safe_open(of_text, "numpy") as pack:
        wanted = {bytes(key) for key in pack.get_tensor("keys")}
    texts = [text for text in TEXTS if hashlib.sha256(text.encode()).digest() in wanted]
    for path in packs(root)[1:]:  # vectors of other texts, which must not matter
        with safe_open(path, "numpy") as pack:
            keys = pack.get_tensor("keys")
        save_file({"keys": keys}, path)
    part = embed(texts, encoder, root=root)
    assert part.computed == 0
    np.testing.assert_array_equal(part.vectors, whole[[TEXTS.index(text) for text in texts]])


def test_progress_ends_with_all_texts_done(encoder, root):
    calls = []
    embed(TEXTS * 2, encoder, root=root, progress=lambda done, all_: calls.append((done, all_)))
    assert calls[-1] == (len(TEXTS), len(TEXTS))
    assert calls == sorted(calls)


def test_writing_to_vectors_does_not_change_the_cache(encoder, root):
    first = embed(TEXTS, encoder, root=root)
    before = first.vectors.copy()
    first.vectors[:] = 0
    np.testing.assert_array_equal(embed(TEXTS, encoder, root=root).vectors, before)


def test_only_the_owner_can_read_the_cache(encoder, root):
    embed(TEXTS, encoder, root=root)
    for path in [*packs(root), *views(root)]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(packs(root)[0].parent.stat().st_mode) == 0o700


def test_a_corpus_is_embedded_with_its_criteria(encoder, root, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(root))
    corpus = Corpus(
        name="two",
        post_ids=("0", "1"),
        posts=("sad dog. tired.", "bread"),
        criteria=(Criterion("sleep", "never sleep"),),
        labels=np.array([[1], [0]]),
        groups=("0", "1"),
    )
    chunks = chunk(corpus.posts, ChunksConfig())
    calls = []
    features, computed = embed_corpus(corpus, chunks, encoder, progress=lambda done, total: calls.append((done, total)))
    assert (computed, calls[-1]) == (4, (3, 3))
    np.testing.assert_array_equal(features.embeddings, embed(["sad dog.", "tired.", "bread"], encoder).vectors)
    np.testing.assert_array_equal(features.criteria, embed(["never sleep"], encoder).vectors)
    assert features.offsets.tolist() == [0, 2, 3]
    assert features.labels.tolist() == [[1], [0]]
    assert features.evidence is None
    marked = embed_corpus(replace(corpus, evidence=(Evidence(0, 0, 9, 15),)), chunks, encoder)[0]
    assert marked.evidence.tolist() == [[False], [True], [False]]
    assert embed_corpus(corpus, chunks, encoder)[1] == 0


def test_the_texts_of_a_corpus_keep_their_encoder(encoder):
    corpus = generate(posts=20, criteria=2, seed=0, sentences_mean=3.0, min_positives=2)
    features = text_corpus(corpus, encoder)
    assert (features.posts, features.encoder) == (corpus.posts, encoder)
    assert features.criteria == tuple(criterion.text for criterion in corpus.criteria)
    np.testing.assert_array_equal(features.labels, corpus.labels)


# ---- damaged, foreign and unusable files -----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "cut"])
def test_texts_of_a_damaged_pack_are_embedded_again(encoder, root, damage, caplog):
    before = embed(TEXTS, encoder, root=root).vectors.copy()
    (pack,) = packs(root)
    content = pack.read_bytes()
    pack.write_bytes(content[: len(content) // 2] if damage is None else damage)
    views(root)[0].unlink()
    with caplog.at_level(logging.WARNING):
        again = embed(TEXTS, encoder, root=root)
    assert again.computed == len(TEXTS)
    np.testing.assert_array_equal(again.vectors, before)
    assert "damaged" in caplog.text
    assert embed(TEXTS[:3], encoder, root=root).computed == 0


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_view_is_rebuilt_from_the_packs(encoder, root, damage):
    before = embed(TEXTS, encoder, root=root).vectors.copy()
    (view,) = views(root)
    content = view.read_bytes()
    view.write_bytes(content[: len(content) // 2] if damage is None else damage)
    again = embed(TEXTS, encoder, root=root)
    assert again.computed == 0
    np.testing.assert_array_equal(again.vectors, before)


def test_foreign_files_are_ignored_and_kept(encoder, root):
    embed(TEXTS, encoder, root=root)
    folder = packs(root)[0].parent
    strangers = [folder / ".pack-0123.safetensors.tmp", folder / "notes.txt", folder / ".view-1.npy.x"]
    for path in strangers:
        path.write_bytes(b"half a file")
    assert embed([*TEXTS, "bread bread bread"], encoder, root=root).computed == 1
    assert all(path.read_bytes() == b"half a file" for path in strangers)


def test_an_unusable_cache_folder_is_reported_in_one_sentence(encoder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cache .* cannot be used .*HPO_CACHE"):
        embed(TEXTS, encoder, root=tmp_path / "file")


# ---- many processes ---------------------------------------------------------------------------------------------


def embed_slowly(encoder, root, events, computed):
    """Embed, but wait after the first batch until `go` is set."""

    def progress(done, all_):
        events["begun"].set()
        assert events["go"].wait(60)

    computed.put(("first", embed(TEXTS, encoder, root=root, progress=progress).computed))


def embed_next(encoder, root, events, computed):
    logger = logging.getLogger("sparse_evidence.core.features.embeddings")
    handler = logging.Handler()
    handler.emit = lambda record: events["waiting"].set()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    computed.put(("second", embed(TEXTS, encoder, root=root).computed))


@processes
def test_one_process_embeds_and_the_other_waits(encoder, root):
    events = {name: FORK.Event() for name in ("begun", "go", "waiting")}
    computed = FORK.Queue()
    first = FORK.Process(target=embed_slowly, args=(encoder, root, events, computed))
    second = FORK.Process(target=embed_next, args=(encoder, root, events, computed))
    first.start()
    assert events["begun"].wait(60)
    second.start()
    assert events["waiting"].wait(60)  # it logs that it waits
    assert computed.empty()
    events["go"].set()
    assert dict(computed.get(timeout=60) for _ in range(2)) == {"first": len(TEXTS), "second": 0}
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0


@processes
def test_a_killed_writer_leaves_no_partial_files(encoder, root):
    events = {name: FORK.Event() for name in ("begun", "go")}
    victim = FORK.Process(target=embed_slowly, args=(encoder, root, events, FORK.Queue()))
    victim.start()
    assert events["begun"].wait(60)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL
    assert packs(root) == views(root) == []
    embedded = embed(TEXTS, encoder, root=root)  # the lock died with its owner
    assert embedded.computed == len(TEXTS)


# ---- locating encoders ------------------------------------------------------------------------------------------


def test_the_packaged_encoder_places_similar_sentences_nearby(root):
    """The real default encoder, on four sentences."""
    encoder = locate("sentence-transformers/all-MiniLM-L6-v2")
    assert encoder == locate("all-MiniLM-L6-v2")
    texts = ["I cannot sleep at night.", "Lying awake until four.", "The bread was fresh.", "I cannot sleep at night."]
    embedded = embed(texts, encoder, root=root)
    assert embedded.vectors.shape == (4, 384)
    assert embedded.computed == 3
    cosine = embedded.vectors @ embedded.vectors.T
    assert cosine[0, 1] > cosine[0, 2] + 0.2
    assert cosine[0, 3] == pytest.approx(1, abs=1e-5)


def test_a_relative_folder_is_relative_to_its_base(encoder):
    assert locate(encoder.folder.name, encoder.folder.parent).folder == encoder.folder.resolve()


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/no/such/encoder"])
def test_a_missing_folder_is_reported(name, tmp_path):
    with pytest.raises(EncoderError, match="does not exist; give a folder"):
        locate(name, tmp_path)


def test_a_folder_without_a_model_is_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"empty holds no sentence-transformers model .*modules\.json"):
        locate("empty", tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"), [("no-such-model", "could not be downloaded from the hub"), ("a/b/c", "not a valid hub id")]
)
def test_an_unknown_name_lists_the_alternatives(name, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match=rf'encoder "{name}" is neither .*all-MiniLM-L6-v2.*{reason}') as refused:
        locate(name, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_revision_depends_on_the_content_only(encoder, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(encoder.folder, copied)
    (copied / "notes.md").write_text("not a part of the model")
    for path in Path(copied).rglob("*"):
        os.utime(path, (0, 0))
    assert locate(str(copied)).revision == encoder.revision
    (copied / "config.json").write_text("{}")
    assert locate(str(copied)).revision != encoder.revision
