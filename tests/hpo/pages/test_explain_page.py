"""The page of `hpo explain`: what it says, what it must never do, and how it looks and behaves in a real browser."""

import csv
import json
import re
import stat
from html import unescape

import numpy as np
import processes
import pytest
from browser import Browser, installed
from colours import contrast, palettes
from in_process import hpo

from sparse_evidence.core.config import (
    DEFAULT_ENCODER,
    BCEConfig,
    CandidateConfig,
    InstanceConfig,
    IrisConfig,
    TrainingConfig,
)
from sparse_evidence.core.errors import DataError, UserError
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.fitted import Recipe, fit, save_model
from sparse_evidence.core.fitted.fitting import Ground
from sparse_evidence.hpo.errors import RefusedError
from sparse_evidence.hpo.pages.explain import explain_page
from sparse_evidence.hpo.pages.findings import find
from sparse_evidence.hpo.pages.posts import posts_of_study, posts_of_table
from sparse_evidence.hpo.pages.writing import PageFile
from sparse_evidence.hpo.running.task import load_task
from sparse_evidence.hpo.study.definition import load

STUDY = """
name = "small_study"
[data]
source = "synthetic"
posts = 120
criteria = 2
sentences_mean = 5
[split]
folds = 3
holdout = 0.3
[search]
space = "file"
[model]
name = "iris"
window = 1
"""
ATTACK = "I feel sad. </script><img src=x onerror=\"document.title='owned'\"> <b>Bold</b> & {{ 7 * 7 }} \u2028 end."
TRAINING = TrainingConfig(epochs=10, batch_size=16, learning_rate=1e-2)


def recipe(model, trial=3, weight=1.0):
    return Recipe(CandidateConfig(model, TRAINING, BCEConfig()), 7, 5, weight, trial)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def task(study):
    return load_task(load(study))


@pytest.fixture(scope="module")
def ground(task):
    views = {model.window: task.features(model) for model in (IrisConfig(),)}
    encoders = {DEFAULT_ENCODER: locate(DEFAULT_ENCODER)}
    return Ground(
        task.corpus, task.folds, task.definition.chunks, lambda m: views[m.window], encoders, "average_precision"
    )


@pytest.fixture(scope="module")
def model(ground, task):
    recipes = [recipe(IrisConfig(hidden=8, num_queries=3)), recipe(InstanceConfig(hidden=8), 5, 3.0)]
    fitted = fit(recipes, ground).model
    names = task.criteria
    return fitted.with_info(
        {
            "study": "small_study",
            "study_file": "../study.toml",
            "metric": "average_precision",
            "fitted": "ensemble",
            "claim": "The ensemble beats <every> baseline.",
            "score": {"kind": "confirmed", "value": 0.61, "interval": [0.52, 0.7]},
            "baselines": {"chance": {"kind": "confirmed", "value": 0.21, "interval": [0.21, 0.21]}},
            "posts": 84,
            "folds": 3,
            "positives": dict.fromkeys(names, 20),
            "labelled": dict.fromkeys(names, 84),
            **{key: task.identity()[key] for key in ("data_sha256", "folds_sha256")},
        }
    )


@pytest.fixture(scope="module")
def folder(model, study):
    save_model(model, study.parent / "model", "# A card\n")
    return study.parent / "model"


@pytest.fixture(scope="module")
def table(task, tmp_path_factory):
    """Ten posts of the hold-out, labelled, and one that attacks the page."""
    path = tmp_path_factory.mktemp("table") / "posts.csv"
    held = np.flatnonzero(task.folds.assignment < 0)[:10].tolist()
    rows = [("post_id", "post", "criterion", "label")]
    for row in held:
        for column, name in enumerate(task.criteria):
            rows.append((task.corpus.post_ids[row], task.corpus.posts[row], name, int(task.corpus.labels[row, column])))
    rows.append(("attack", ATTACK, task.criteria[0], 0))
    rows.append(("unlabelled", "Word" * 200, "another criterion", ""))
    rows.append(("empty", " ", task.criteria[0], ""))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def page(model, table, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    PageFile(path, "explain").write(explain_page(model, posts_of_table(table, model)))
    return path


# --- which posts ------------------------------------------------------------------------------------------------------


def test_a_table_is_shown_post_by_post_with_its_labels(model, table, task):
    shown = posts_of_table(table, model)
    assert len(shown.texts) == 13
    assert shown.labels.shape == (13, 2)
    row = task.corpus.post_ids.index(shown.names[0])
    assert shown.labels[0].tolist() == task.corpus.labels[row].tolist()
    assert shown.labels[11].tolist() == [-1, -1]
    assert not shown.trained


def test_other_names_of_the_columns_are_recognised_and_the_limit_spreads(model, tmp_path):
    path = tmp_path / "posts.tsv"
    path.write_text("id\ttext\n" + "".join(f"{row}\tPost number {row}.\n" for row in range(9)))
    shown = posts_of_table(path, model, limit=3)
    assert shown.names == ("0", "4", "8")
    assert (shown.total, shown.labels) == (9, None)


def test_mistakes_of_a_table_are_named_without_text(model, tmp_path):
    path = tmp_path / "posts.csv"
    path.write_text("post_id,post\n1,secret words\n1,other secret\n,third secret\n")
    with pytest.raises(DataError) as raised:
        posts_of_table(path, model)
    assert len(raised.value.problems) == 2
    assert "secret" not in str(raised.value)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="column post is missing"):
        posts_of_table(path, model)
    path.write_text("text,body\n1,2\n")
    with pytest.raises(DataError, match="'text' and 'body' could each hold the posts; call the column of the posts"):
        posts_of_table(path, model)
    path.write_text("post\n")
    with pytest.raises(DataError, match="no rows"):
        posts_of_table(path, model)


def test_labels_that_contradict_each_other_are_refused_and_unknown_criteria_named(model, tmp_path):
    path, name = tmp_path / "posts.csv", model.criteria[0].name
    path.write_text(f"post_id,post,criterion,label\n1,Words.,{name},1\n1,Words.,{name},0\n1,Words.,,1\n")
    with pytest.raises(DataError) as raised:
        posts_of_table(path, model)
    assert raised.value.problems == (
        f"row 3: post '1' and criterion '{name}' have label 0, but label 1 in row 2",
        "row 4: criterion is empty",
    )
    path.write_text(f"post_id,post,criterion,label\n1,Words.,{name},1\n1,Words.,other,0\n")
    shown = posts_of_table(path, model)
    assert shown.labels.tolist() == [[1, -1]]
    assert shown.notes == ("the model does not know 'other'; their labels were left out",)


def test_without_a_table_the_search_posts_are_shown_and_never_the_hold_out(model, folder, task):
    shown = posts_of_study(model, folder)
    searched = [task.corpus.post_ids[row] for row in np.flatnonzero(task.folds.assignment >= 0)]
    assert list(shown.names) == searched
    assert shown.trained
    assert len(posts_of_study(model, folder, limit=7).names) == 7


def test_other_data_and_missing_studies_are_refused(model, folder, study, tmp_path):
    with pytest.raises(UserError, match=r"give a table of posts: hpo explain"):
        posts_of_study(model, tmp_path / "moved")
    with pytest.raises(UserError, match="does not name its study file; give it with --study, or give a table"):
        posts_of_study(model.with_info({}), folder)
    assert posts_of_study(model, tmp_path / "moved", study=study).trained
    (tmp_path / "model").mkdir()
    (tmp_path / "study.toml").write_text(STUDY.replace("sentences_mean = 5", "sentences_mean = 6"))
    with pytest.raises(RefusedError, match="are not those that the model"):
        posts_of_study(model, tmp_path / "model")


# --- what the page says -----------------------------------------------------------------------------------------------


def test_findings_are_what_the_model_says(model, table):
    shown = posts_of_table(table, model)
    findings = find(model, shown)
    for post, text, explanation in zip(findings.posts, shown.texts, model.explain(shown.texts), strict=True):
        assert "".join(before + sentence for before, sentence in post.pieces) + post.rest == text
        for verdict in post.verdicts:
            assert verdict.met == explanation.decision[verdict.criterion]
            assert verdict.probability == explanation.probability[verdict.criterion]
            slope = model.calibration.slope[verdict.criterion]
            strong = np.flatnonzero(explanation.contribution[:, verdict.criterion] * slope >= np.log(2)).tolist()
            assert [row for row, mark in verdict.marks.items() if mark.level == "strong"] == strong
    top = findings.criteria[0].sentences
    assert top
    assert len({sentence.text for sentence in top}) == len(top)
    assert [len(member.queries) for member in findings.criteria[0].members] == [3]


def test_the_page_says_what_the_model_is_and_is_not_for(page, model):
    html = page.read_text(encoding="utf-8")
    assert "This page holds the text of 13 posts." in html
    assert "The ensemble beats &lt;every&gt; baseline." in html
    assert "<td>0.610 (0.520 to 0.700)</td>" in html
    assert "<td>0.210</td>" in html
    assert "What it is not for" in html
    assert "odds ×2.0 or more" in html
    assert "odds ×1.4 or more" in html
    for criterion in model.criteria:
        assert criterion.text in html
    assert "trained on these posts" not in html


def test_a_model_that_knows_nothing_of_itself_still_has_a_page(model, table):
    html = explain_page(model.with_info({}), posts_of_table(table, model, limit=2))
    assert "How good it is" not in html
    assert "How it decides" in html


def test_texts_are_escaped_and_scripts_are_ours_alone(page):
    html = page.read_text(encoding="utf-8")
    assert "<img" not in html
    assert "<b>Bold" not in html
    assert html.count("</script>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1]
    assert len(json.loads(data)["posts"]) == 13
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert "default-src 'none'" in unescape(html)
    assert "unsafe" not in html


# --- colours ----------------------------------------------------------------------------------------------------------


LIGHT, *DARK = palettes("explain")


def test_the_dark_colours_are_the_same_by_the_system_and_by_the_button():
    assert len(DARK) == 2
    assert DARK[0] == DARK[1]
    assert DARK[0].keys() == LIGHT.keys()


@pytest.mark.parametrize("colours", [LIGHT, DARK[0]], ids=["light", "dark"])
def test_text_and_controls_have_enough_contrast(colours):
    ink = [("ink", back) for back in ("page", "card", "tint", "weak", "clear", "strong")]
    other = [(text, back) for text in ("soft", "accent", "against", "warn") for back in ("page", "card", "tint")]
    marks = [("mark", back) for back in ("card", "weak", "clear", "strong")]
    for text, back in ink + other + marks:
        assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for part in ("control", "accent"):
        for back in ("page", "card", "tint"):
            assert contrast(colours[part], colours[back]) >= 3, (part, back)


# --- files ------------------------------------------------------------------------------------------------------------


def test_only_the_owner_reads_the_page_and_only_pages_are_replaced(page, tmp_path):
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    content = page.read_text(encoding="utf-8")
    copy = tmp_path / "copy.html"
    copy.write_text(content, encoding="utf-8")
    PageFile(copy, "explain").write(content)
    (tmp_path / "thesis.html").write_text("precious")
    with pytest.raises(UserError, match="is no page of hpo explain"):
        PageFile(tmp_path / "thesis.html", "explain").check()
    PageFile(tmp_path / "thesis.html", "explain", force=True).write(content)
    assert (tmp_path / "thesis.html").read_text(encoding="utf-8") == content
    with pytest.raises(UserError, match="is a folder"):
        PageFile(tmp_path, "explain").check()
    with pytest.raises(UserError, match="cannot be written"):
        PageFile(tmp_path / "no" / "page.html", "explain").check()
    (tmp_path / "link.html").symlink_to(copy)
    PageFile(tmp_path / "link.html", "explain").write(content)
    assert (tmp_path / "link.html").is_symlink()


def test_the_verb_writes_a_page_of_the_study_and_of_a_table(folder, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return hpo("explain", *arguments)

    code, out, err = call(folder, "--limit", "5")
    assert (code, out, err) == (0, "5 posts, with their text: model.html\n", "")
    assert "trained on these posts" in (tmp_path / "model.html").read_text(encoding="utf-8")
    code, out, err = call(folder, table, "-o", "-")
    assert (code, err) == (0, "13 posts, with their text: standard output\n")
    assert out.startswith("<!doctype html>")
    code, out, err = call(folder, table, "--study", "study.toml")
    assert (code, out) == (2, "")
    assert "leave it out for other posts" in err
    code, out, err = call(folder, tmp_path / "none.csv")
    assert (code, out) == (2, "")
    assert "none.csv does not exist" in err


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_nothing_but_the_page_goes_to_standard_output(folder, table, tmp_path, name):
    page = tmp_path / "page.html"
    with page.open("w", encoding="utf-8") as file:
        done = processes.call("explain", folder, table, "--limit", "2", "-o", name, cwd=tmp_path, env={}, stdout=file)
    assert (done.returncode, done.stderr) == (0, "2 posts, with their text: standard output\n")
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert html.rstrip().endswith("</html>")


# --- a real browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = installed()
    if executable is None:
        pytest.skip("no browser is installed")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


SHOWN = "[...document.querySelectorAll('article.post:not([hidden])')].map((post) => post.id)"
FOCUS = "document.activeElement.id"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_looks_right_and_asks_for_nothing(browser, page, pictures, width, dark):
    del browser.console[:], browser.requests[:]
    browser.open(page.as_uri(), width=width, height=900, dark=dark, mobile=width < 500)
    browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    picture = pictures / f"explain-{width}-{'dark' if dark else 'light'}.png"
    browser.picture(picture)
    print(picture)
    assert browser.console == []
    assert set(browser.requests) <= {page.as_uri(), "data:,"}
    assert browser.run("document.title") == "small_study: what the model looks for"
    assert browser.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
    assert browser.run(f"{wide}.map((e) => e.tagName + '.' + e.className)") == []
    clipped = "[...document.querySelectorAll('.tools, .post, .criterion')].filter((e) => e.scrollWidth > e.clientWidth)"
    assert browser.run(f"{clipped}.length") == 0
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 150) == dark
    assert picture.stat().st_size > 10_000


def test_the_policy_stops_scripts_that_are_not_ours(browser, page, tmp_path):
    hostile = page.read_text(encoding="utf-8").replace("<main", "<script>document.title = 'owned'</script><main")
    (tmp_path / "hostile.html").write_text(hostile, encoding="utf-8")
    browser.open((tmp_path / "hostile.html").as_uri())
    assert browser.run("document.title") == "small_study: what the model looks for"
    assert len(browser.run(SHOWN)) == 13  # our own script has run


def test_the_button_changes_the_colours(browser, page):
    browser.open(page.as_uri(), dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    dark = browser.run(background)
    browser.click("#theme")
    light = browser.run(background)
    browser.click("#theme")
    assert light != dark == browser.run(background)


def test_filters_search_and_sort(browser, page, model, table):
    findings = find(model, posts_of_table(table, model))
    browser.open(page.as_uri())
    assert len(browser.run(SHOWN)) == 13
    browser.click('input[name="criterion"][value="1"]')
    choose(browser, "decision", "met")
    met = [post for post in findings.posts if post.verdicts[1].met]
    met.sort(key=lambda post: -post.verdicts[1].probability)
    assert met
    assert browser.run(SHOWN) == [f"post-{post.number}" for post in met]
    pressed = "[...document.querySelectorAll('.verdict[aria-pressed=\"true\"]')].map((b) => b.dataset.criterion)"
    assert set(browser.run(pressed)) == {"1"}
    choose(browser, "decision", "differs")
    differing = {f"post-{p.number}" for p in findings.posts if p.verdicts[1].label not in {None, p.verdicts[1].met}}
    assert set(browser.run(SHOWN)) == differing
    browser.click("#reset")
    assert len(browser.run(SHOWN)) == 13
    browser.click("#search")
    for letter in "<B>BOLD":
        browser.press(letter)
    assert browser.run(SHOWN) == ["post-10"]
    assert browser.run("document.getElementById('count').textContent") == "1 of 13 posts"
    for letter in "zzz":
        browser.press(letter)
    assert browser.run("!document.getElementById('nothing').hidden")
    browser.press("Escape")
    choose(browser, "sort", "file")
    assert browser.run(SHOWN) == [f"post-{number}" for number in range(13)]


def choose(browser, field, value):
    browser.run(
        f"(() => {{ const f = document.getElementById('{field}'); f.value = '{value}'; "
        "f.dispatchEvent(new Event('change')); })()"
    )


def test_the_keyboard(browser, page):
    browser.open(page.as_uri())
    order = browser.run(SHOWN)
    for key, expected in zip("jjkj", [0, 1, 0, 1], strict=True):
        browser.press(key)
        assert browser.run(FOCUS) == order[expected]
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("/")
    assert browser.run(FOCUS) == "search"
    browser.press("j")
    assert browser.run("document.getElementById('search').value") == "j"
    browser.press("Escape")
    browser.press("2")
    assert browser.run("document.querySelector('input[name=criterion]:checked').value") == "1"
    browser.run("document.getElementById('keys').checked = false")
    focused = browser.run(FOCUS)
    browser.press("j")
    assert browser.run(FOCUS) == focused


def test_a_criterion_of_a_post_highlights_its_evidence(browser, page, model, table):
    findings = find(model, posts_of_table(table, model))
    post = max(findings.posts, key=lambda post: min(len(verdict.marks) for verdict in post.verdicts))
    browser.open(page.as_uri())
    for criterion in (1, 0):
        browser.click(f"#post-{post.number} .verdict[data-criterion='{criterion}']")
        marked = browser.run(
            f"[...document.querySelectorAll('#post-{post.number} .s')].map((s) => [s.className, s.dataset.odds ?? ''])"
        )
        marks = post.verdicts[criterion].marks
        assert marks
        assert marked == [
            [f"s {marks[row].level}", marks[row].label] if row in marks else ["s", ""]
            for row in range(len(post.pieces))
        ]


def test_an_example_leads_to_its_post(browser, page):
    browser.open(page.as_uri())
    browser.click("#search")
    for letter in "zzzz":
        browser.press(letter)
    target = browser.run("document.querySelector('.criterion a[data-criterion]').getAttribute('href')")
    browser.click(".criterion a[data-criterion]")
    assert f"#{browser.run(FOCUS)}" == target
    assert browser.run(SHOWN)
