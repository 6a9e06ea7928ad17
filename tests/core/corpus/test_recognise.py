"""Which column of a user's table holds what: recognised where it can be seen, one sentence where it cannot."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from csv_files import SECRET, write_csv

from sparse_evidence.core.corpus.columns import ALIASES, normal
from sparse_evidence.core.corpus.pairs import PairsSource
from sparse_evidence.core.corpus.recognise import recognise
from sparse_evidence.core.errors import UserError

POSTS = [f"This is {SECRET} number {number}. It goes on for a while." for number in range(4)]


def table(folder, **columns):
    return write_csv(folder / "t.csv", columns, *zip(*columns.values(), strict=True))


def refused(path, given=None):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        recognise(path, given)
    assert SECRET not in str(error.value)
    return str(error.value).removeprefix(f"{path}").removeprefix(":").strip()


LABELS = ["yes", "no", "no", "yes"]
IDS = ["1", "2", "3", "4"]


# ---- one row per post and criterion ------------------------------------------------------------------------------


def test_a_table_of_pairs_with_its_own_names_needs_no_settings(tmp_path):
    own = {"post_id": "1122", "post": [POSTS[0]] * 2 + [POSTS[1]] * 2, "criterion": "abab", "label": "0101"}
    found = recognise(table(tmp_path, **own, title=POSTS))
    assert (found.source.columns, found.source.criteria) == ({}, {})
    assert found.fields == {name: name for name in ("post", "post_id", "criterion", "label")}
    assert found.ignored == ("title",)


def test_a_table_of_pairs_with_other_names(tmp_path):
    posts = [POSTS[0]] * 2 + [POSTS[1]] * 2
    path = table(tmp_path, ID="1122", Text=posts, symptom="abab", status=LABELS, userId="uuvv", quote=[""] * 4)
    found = recognise(path)
    assert found.source.columns == {
        "post_id": "ID", "post": "Text", "criterion": "symptom", "label": "status", "group": "userId",
        "evidence": "quote",
    }  # fmt: skip
    assert found.source.load(tmp_path).labels.tolist() == [[1, 0], [0, 1]]


def test_a_category_of_posts_is_no_criterion_if_every_post_has_one_row(tmp_path):
    found = recognise(table(tmp_path, id=IDS, text=POSTS, category="abab", label=LABELS))
    assert found.source.criteria == {"label": "label"}
    assert found.ignored == ("category",)


def test_ids_that_number_the_rows_are_no_ids_of_posts(tmp_path):
    path = table(tmp_path, id=IDS, text=[POSTS[0]] * 2 + [POSTS[1]] * 2, criterion="abab", label=LABELS)
    assert refused(path) == (
        "column 'id' differs in every row although posts repeat, so it numbers the rows; name the column that is the "
        "same in all rows of a post: --column post_id=NAME"
    )


def test_a_table_of_pairs_without_labels_or_ids(tmp_path):
    path = table(tmp_path, text=POSTS, criterion="abab", said=LABELS)
    assert refused(path) == (
        "has a column 'criterion' of criteria, but no column for post_id and label (it has: 'text', 'criterion', "
        "'said'); name it: --column post_id=NAME --column label=NAME"
    )
    path = table(tmp_path, text=POSTS, key="1122", criterion="abab", said=LABELS)
    found = recognise(path, {"post_id": "key", "label": "said"})
    assert found.source.columns == {"post_id": "key", "label": "said", "post": "text"}


# ---- one row per post ----------------------------------------------------------------------------------------------


def test_a_wide_table(tmp_path):
    path = table(
        tmp_path, tweet_id=IDS, body=POSTS, Author="uvuv", low_mood=LABELS, anger="10 1", stars="1234", spam="0000",
        anger_evidence=[SECRET, "", "", SECRET], evidence_spam=[""] * 4,
    )  # fmt: skip
    found = recognise(path)
    assert found.source.columns == {"post_id": "tweet_id", "post": "body", "group": "Author"}
    assert found.source.criteria == {"low_mood": "low mood", "anger": "anger"}
    assert found.source.evidence == {"anger": "anger_evidence"}
    assert found.ignored == ("stars", "spam (all labels are 0)", "evidence_spam")
    corpus = found.source.load(tmp_path)
    assert corpus.labels.tolist() == [[1, 1], [0, 0], [0, -1], [1, 1]]
    assert len(corpus.evidence) == 2


def test_one_column_of_labels_owns_the_evidence(tmp_path):
    found = recognise(table(tmp_path, text=POSTS, label=LABELS, rationale=[SECRET, "", "", ""]))
    assert found.source.criteria == {"label": "label"}
    assert found.source.evidence == {"label": "rationale"}
    assert found.source.load(tmp_path).post_ids == ("row-2", "row-3", "row-4", "row-5")
    two = recognise(table(tmp_path, text=POSTS, a=LABELS, b=LABELS, rationale=[""] * 4))
    assert two.source.evidence == {}
    assert two.ignored == ("rationale",)


def test_a_column_of_labels_that_is_named_is_the_only_criterion(tmp_path):
    found = recognise(table(tmp_path, text=POSTS, a=LABELS, b=LABELS), {"label": "b"})
    assert found.source.criteria == {"b": "b"}
    assert found.ignored == ("a",)


def test_a_table_without_rows(tmp_path):
    assert refused(write_csv(tmp_path / "t.csv", ("text", "sad"))) == "has 1 mistake: it has no rows below the header"
    pq.write_table(pa.table({"text": [["x"]], "sad": [1]}), tmp_path / "t.parquet")
    problem = "has 1 mistake: row 2: column text does not hold text or numbers"
    assert refused(tmp_path / "t.parquet", {"post": "text"}) == problem


def test_parquet_with_truth_values(tmp_path):
    columns = {"text": POSTS, "angry": [True, None, False, True], "score": [0.5, 1.0, 0.0, 1.0], "tags": [["x"]] * 4}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = recognise(tmp_path / "t.parquet")
    assert found.source.criteria == {"angry": "angry"}
    assert found.source.load(tmp_path).labels.tolist() == [[1], [0], [1]]


def test_a_table_without_labels(tmp_path):
    assert refused(table(tmp_path, id=IDS, text=POSTS, stars="1234")) == (
        "has no column of labels with both 0 and 1, no and yes, or false and true (it has: 'id', 'text', 'stars'); add "
        "a column per criterion, or the columns criterion and label"
    )
    assert refused(table(tmp_path, text=POSTS, label=["anger", "joy", "anger", "joy"])) == (
        "column 'label' does not hold labels of one criterion (a cell is 'anger'); make a column per criterion with 0 "
        "and 1, or no and yes"
    )


def test_a_column_that_nearly_holds_labels_is_named_with_its_first_other_cell(tmp_path):
    path = table(tmp_path, text=POSTS, angry=["yes", "no", "maybe", "no"], likes="0102", sad="1111")
    nearly = (
        "'angry' (not only labels: row 4 is 'maybe'), 'likes' (not only labels: row 5 is '2'), 'sad' (all labels are"
    )
    assert nearly in refused(path)
    found = recognise(table(tmp_path, text=POSTS, angry=["yes", "no", f"{SECRET} is", "no"], sad="1010"))
    assert found.source.criteria == {"sad": "sad"}
    assert found.ignored == ("angry (not only labels: row 4 is a text of 19 characters)",)


# ---- the posts and the groups --------------------------------------------------------------------------------------


def test_the_one_column_of_long_texts_holds_the_posts(tmp_path):
    path = table(tmp_path, id=IDS, what_they_wrote=POSTS, title=["a b", "c", "d", "e"], sad=LABELS)
    assert recognise(path).source.columns == {"post_id": "id", "post": "what_they_wrote"}


def test_short_texts_do_not_compete_for_the_posts(tmp_path):
    path = table(tmp_path, content=POSTS, note=["ok", "", "", "new"], sad=LABELS)
    assert recognise(path).source.columns == {"post": "content"}


@pytest.mark.parametrize("second", ["text", "anything"])
def test_two_columns_of_posts_cannot_be_told_apart(tmp_path, second):
    first = "body" if second == "text" else "something"
    path = table(tmp_path, **{first: POSTS, second: POSTS[::-1]}, sad=LABELS)
    assert refused(path) == (
        f"the columns '{first}' and '{second}' could each be the post; choose one: --column post=NAME"
    )
    found = recognise(path, {"post": second})
    assert found.source.columns == {"post": second}
    assert found.ignored == (first,)


def test_columns_with_the_same_groups_are_equally_good(tmp_path):
    same = {"author": ["a", "b", "a", "c"], "author_id": ["1", "2", "1", "3"]}
    assert recognise(table(tmp_path, text=POSTS, sad=LABELS, **same)).fields["group"] == "author"
    path = table(tmp_path, text=POSTS, sad=LABELS, author=same["author"], user="1212")
    assert "the columns 'author' and 'user' could each be the group" in refused(path)
    own = table(tmp_path, text=POSTS, sad=LABELS, author=same["author"], group="1212")
    assert recognise(own).source.columns == {"post": "text"}


def test_a_name_of_a_column_that_is_not_utf8(tmp_path):
    """It could not be written to a study file."""
    path = table(tmp_path, id=IDS, text=POSTS, sad=LABELS)
    path.write_bytes(path.read_bytes().replace(b"id", b"\xc3id", 1))
    assert refused(path) == "has 1 mistake: row 1: the header is not UTF-8; save the file as UTF-8"
    source = PairsSource(path=str(path), columns={"post": "text", "post_id": ""}, criteria={"sad": "sad"})
    assert source.load(tmp_path).labels.any(), "a column that is not read may have any name"


def test_a_table_without_posts(tmp_path):
    assert refused(table(tmp_path, id=IDS, sad=LABELS)) == (
        "has no column of posts (it has: 'id', 'sad'); name it: --column post=NAME"
    )


def test_a_table_without_a_header_is_not_quoted(tmp_path):
    path = write_csv(tmp_path / "t.csv", *([number, post, "01"[number % 2]] for number, post in enumerate(POSTS)))
    assert refused(path) == "seems to start with a post; add a first row with the names of the columns"


def test_a_post_without_spaces_is_not_quoted(tmp_path):
    post = "我昨天晚上又没有睡好觉今天早上起来头很疼"
    posts = [f"{post}{number}" for number in range(4)]
    path = write_csv(tmp_path / "t.csv", *([number, text, "01"[number % 2]] for number, text in enumerate(posts)))
    assert refused(path) == "has no column of posts (it has: a text of 21 characters); name it: --column post=NAME"
    path = write_csv(tmp_path / "t.csv", [0, posts[0], 1], *([1, text, 0] for text in POSTS))
    assert refused(path) == "seems to start with a post; add a first row with the names of the columns"
    assert post not in refused(table(tmp_path, id=IDS, text=POSTS, sad=["1", "0", "1", posts[0]], label=posts))
    assert post not in refused(table(tmp_path, id=IDS, text=POSTS, label=posts))


def test_a_named_column_must_exist(tmp_path):
    path = table(tmp_path, id=IDS, text=POSTS, sad=LABELS)
    assert "column textt is missing" in refused(path, {"post": "textt"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Author ID", "author_id"), ("authorId", "author_id"), (" TEXT ", "text"), ("post-id", "post_id"), ("ID", "id")],
)
def test_names_are_compared_in_one_form(name, expected):
    assert normal(name) == expected


def test_every_alias_stands_for_one_field_and_is_in_its_normal_form():
    aliases = [alias for names in ALIASES.values() for alias in names]
    assert len(aliases) == len(set(aliases))
    assert not set(aliases) & ALIASES.keys()
    assert [normal(alias) for alias in aliases] == aliases


def test_a_column_of_another_spelling_is_taken_as_the_reader_would_have_it(tmp_path):
    """What `hpo init` ignored, `hpo validate` would refuse."""
    rows = [f"p{n},Some text of post number {n} here.,sad,{n % 2},u{n // 2}" for n in range(6)]
    path = tmp_path / "posts.csv"
    path.write_text("\n".join(["post_id,post,criterion,label,groups", *rows]) + "\n")
    recognised = recognise(path)
    assert recognised.source.columns == {"group": "groups"}
    assert recognised.source.load(tmp_path).groups == ("u0", "u0", "u1", "u1", "u2", "u2")
