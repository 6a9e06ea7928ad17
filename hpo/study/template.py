"""A commented study file for a user's own table, or for the public editorials: what `hpo init` writes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_evidence.core.config import SplitConfig
from sparse_evidence.core.errors import SplitError

from .fields import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sparse_evidence.core.corpus.data import Corpus
    from sparse_evidence.core.corpus.recognise import Recognised

_MAX_FOLDS = 5
_CONTROL = r"[\x00-\x1f\x7f]"  # not allowed in a comment of TOML
_HEADER = """\
# A study of {subject}. Edit it, then check it with `hpo validate`, which also estimates the time.
#
# Settings that this file does not mention have their default value, or are searched if the model's default space has
# them: `hpo validate` lists what is searched. A setting of [model], [training] and [loss] in this file is either a
# value or something to search:
#   hidden = 64                                             a value
#   k_retrieved = { low = 2, high = 6 }                     a range; both ends are included
#   learning_rate = { low = 3e-4, high = 1e-2, log = true } a range over orders of magnitude
#   num_queries = { choices = [2, 4, 8] }                   a few values
# `default = ...` in a range or in choices sets the value that the first trial uses.
"""
_CRITERIA = (
    "# The columns of labels, each with a sentence that describes its criterion. Write these with care: the models and",
    "# the baselines compare every sentence of a post with them.",
)
_SETTINGS = """\
[search]
space = "default"             # "file": only the ranges and choices in this file are searched
metric = "average_precision"  # mean over folds of the mean over criteria; or "auroc", "brier"
trials = 40                   # may be raised later: the search resumes
seed = 0
pruner = { name = "same_folds", percentile = 50 }  # after each stage, trials outside the best half stop

[[model]]                     # with several [[model]] tables the search also chooses the model
name = "iris"                 # learned queries retrieve the k sentences of a post that match best

[[model]]
name = "instance"             # a score for every sentence, pooled over the post; learns from the column evidence, too

[[model]]
name = "retrieval"            # logistic regression on how similar the nearest sentences are; takes no training
                              # others: "linear" (on mean embeddings), "abmil" (attention), "token" (a fine-tuned
                              # transformer); each has an `encoder` and settings of its own, see docs/models.md

[training]
epochs = 40                   # at most
patience = 6                  # epochs without a better score before a stage ends
batch_size = 32

[[loss]]                      # with several [[loss]] tables the search also chooses the loss; it rarely matters
name = "bce"                  # or "weighted_bce", "focal", "asymmetric", "logit_adjusted"

[confirm]                     # afterwards: the winners again, on folds that the search has not seen
leaders = 4                   # 0: do not confirm
splits = 3
"""


def study_template(data: Path | Recognised | None, file: Path) -> str:
    """Return the text of a study file at `file` for a user's table, or for the editorials if `data` is None.

    The table is read and checked as in a study. Counts, names of columns and criteria and notes on the data become
    comments; no text of a post does.

    Args:
        data: the table, or what was recognised in it; then the path is that of its source.
        file: where the study file will be, from where it refers to the table.

    Raises:
        UserError: the table cannot be read, or what its columns hold cannot be decided.
        DataError: with every mistake in the table.
        SplitError: the table has too few groups or labels for two folds.
    """
    subject, folds = "the public editorials", _MAX_FOLDS
    section = '[data]\nsource = "editorials"         # 498 newspaper editorials, four criteria; downloaded once\n'
    if data is not None:
        from sparse_evidence.core.corpus.recognise import recognise

        recognised = recognise(data) if isinstance(data, Path) else data
        table = Path(recognised.source.path)
        corpus = recognised.source.load(Path())
        subject, folds = f"the posts in {shown(table.name)}", _folds(corpus)
        section = _pairs(corpus, recognised, _relative(table, file.parent))
    name = f"name = {_quoted(_name(file.stem))}\n"
    return "\n".join([_schema_line() + _HEADER.replace("{subject}", subject) + name, section, _split(folds), _SETTINGS])


def _name(stem: str) -> str:
    """Return the name of a study whose file has this stem."""
    name = re.sub(r"[^A-Za-z0-9._\-]+", "-", stem).strip("-.")[:100].rstrip("-.")
    wanted = "[A-Za-z]" if any(map(str.isalpha, stem)) else "[0-9]"
    if re.search(wanted, name):
        return name
    # Nothing that tells this file from another one is left, as of a name in Cyrillic.
    return f"study-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"


def _folds(corpus: Corpus) -> int:
    """Return the number of folds, at most five, that the labels and groups of a corpus allow."""
    from sparse_evidence.core.splits import split

    criteria = [criterion.name for criterion in corpus.criteria]
    for folds in range(_MAX_FOLDS, 2, -1):
        try:
            split(corpus.groups, corpus.labels, SplitConfig(folds=folds), criteria=criteria)
        except SplitError:
            continue
        return folds
    split(corpus.groups, corpus.labels, SplitConfig(folds=2), criteria=criteria)
    return 2


def _pairs(corpus: Corpus, recognised: Recognised, path: str) -> str:
    """Return the table `[data]` for a user's table, with counts as comments."""
    source = recognised.source
    kind = "one row per post, one column per criterion" if source.criteria else "one row per post and criterion"
    lines = [
        "[data]",
        _commented('source = "pairs"', kind),
        _commented(f"path = {_quoted(path)}", "relative to this file"),
    ]
    if source.columns:
        renamed = ", ".join(f"{name} = {_quoted(column)}" for name, column in source.columns.items())
        lines.append(_commented(f"columns = {{ {renamed} }}", "columns that have another name in the file"))
    labelled = (corpus.labels >= 0).sum(axis=0)
    facts = [f"{len(corpus)} posts, {len(corpus.criteria)} {'criterion' if len(corpus.criteria) == 1 else 'criteria'}:"]
    for criterion, positives, total in zip(corpus.criteria, corpus.positives, labelled, strict=True):
        facts.append(f"  {shown(criterion.name)}: {positives} of {total} posts are positive")
    if recognised.ignored:
        facts.append(f"columns that are not read: {', '.join(recognised.ignored)}")
    lines += [f"# {re.sub(_CONTROL, ' ', fact)}" for fact in (*facts, *corpus.notes)]
    if source.criteria:
        lines += ["", *_CRITERIA, *_table("data.criteria", source.criteria)]
    if source.evidence:
        lines += ["", "# The column with the passages of a post that show the criterion."]
        lines += _table("data.evidence", source.evidence)
    return "\n".join([*lines, ""])


def _commented(setting: str, comment: str) -> str:
    return f"{setting:<29} # {comment}"


def _table(name: str, texts: Mapping[str, str]) -> list[str]:
    keys = (key if re.fullmatch(r"[A-Za-z0-9_\-]+", key) else _quoted(key) for key in texts)
    return [f"[{name}]", *(f"{key} = {_quoted(text)}" for key, text in zip(keys, texts.values(), strict=True))]


def _split(folds: int) -> str:
    stages = "stages = [2, 3]               # first train two folds; the other three only if the trial is not pruned"
    return f"""\
[split]
folds = {folds}                     # every post is validated once, by a model that was not trained on it
{stages if folds == _MAX_FOLDS else "# `stages` is omitted: two folds are trained first, then the others"}
holdout = 0.2                 # share of the posts that no trial uses
seed = 0
"""


def _schema_line() -> str:
    """Return the line that names the JSON schema of study files for editors; empty if the schema is not a file."""
    schema = Path(str(files("sparse_evidence.studies") / "study.schema.json")).resolve()
    return f"#:schema {schema.as_uri()}\n" if schema.is_file() else ""


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return path.resolve().as_posix()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
