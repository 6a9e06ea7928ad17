"""Fixtures for every test: a clean environment, one thread, and real databases."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from postgres_proxy import Proxy

    from sparse_evidence.hpo.database.embedded import Server
    from sparse_evidence.hpo.running.claims import Claims

# Before any import that reads them.
for _name in [name for name in os.environ if name.startswith(("HPO_", "PG"))]:
    del os.environ[_name]
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
# A shell that runs the tests in the background ignores SIGINT, and child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the slow tests first: one that starts last leaves the other processes without work."""

    def seconds(item: pytest.Item) -> int:
        mark = item.get_closest_marker("slow")
        return 0 if mark is None else mark.kwargs.get("seconds", 5)

    items.sort(key=seconds, reverse=True)  # stable, so that the tests of a module stay together


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """An embedded Postgres for this test process, removed when it ends; its data need not survive a crash."""
    from sparse_evidence.hpo.database import embedded

    home = Path(tempfile.mkdtemp(prefix="hpo-tests-"))
    home.chmod(0o711)
    try:
        with embedded.running(home, "-c fsync=off -c synchronous_commit=off -c full_page_writes=off") as url:
            yield url
    finally:
        shutil.rmtree(home)


@pytest.fixture
def own_server() -> Iterator[tuple[Server, str]]:
    """A server that may be stopped and started without disturbing other tests, and its URL."""
    from sparse_evidence.hpo.database import embedded

    home = Path(tempfile.mkdtemp(prefix="hpo-tests-"))
    home.chmod(0o711)
    options = "-c fsync=off"
    try:
        with embedded.running(home, options, keep_up=False) as url:
            yield embedded.Server(home, options), url
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """The name of a template database with empty tables."""
    from sparse_evidence.hpo.database import connection

    _administer(server, 'CREATE DATABASE "template_hpo"')
    opened = connection.open_storage(_at(server, "template_hpo"))
    connection.engine_of(opened).dispose()
    return "template_hpo"


@pytest.fixture
def fresh_database(server: str, template: str) -> Iterator[Callable[[], str]]:
    """Call it for the URL of another database with empty tables."""
    made = []

    def make(options: str = f'TEMPLATE "{template}"') -> str:
        made.append(f"test_{uuid4().hex}")
        _administer(server, f'CREATE DATABASE "{made[-1]}" {options}')
        return _at(server, made[-1])

    yield make
    for name in made:
        _administer(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="module")
def database_of_module(server: str, template: str) -> Iterator[str]:
    """The URL of a database that the tests of a module share, with all tables."""
    name = f"test_{uuid4().hex}"
    _administer(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield _at(server, name)
    _administer(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database(fresh_database: Callable[[], str]) -> str:
    """The URL of a database for this test alone, with all tables."""
    return fresh_database()


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    """A proxy in front of the test's database."""
    from postgres_proxy import Proxy

    made = Proxy(database)
    yield made
    made.close()


@pytest.fixture
def claims(database: str) -> Iterator[Callable[..., Claims]]:
    """Call it for another worker's claims on the study `s`; `url` may be that of a proxy."""
    from claim_tools import join_study

    joined: list[Claims] = []

    def join(url: str = database, **changes: Any) -> Claims:
        joined.append(join_study(url, **changes))
        return joined[-1]

    yield join
    for worker in joined:
        worker.engine.dispose()


@pytest.fixture
def empty_database(fresh_database: Callable[[str], str]) -> str:
    """The URL of a database for this test alone, without any table."""
    return fresh_database("")


def _at(server: str, database: str) -> str:
    import sqlalchemy as sa

    return sa.make_url(server).set(database=database).render_as_string(hide_password=False)


def _administer(server: str, statement: str) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(statement))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of two layers and random weights, and a tokenizer that knows the words w0 to w29."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(30))]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    marks = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **marks).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        BertModel(config).save_pretrained(folder)
    return folder
