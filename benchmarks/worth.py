"""What a search is worth: what it exports, held against what it reports, against baselines and against a plain script.

    python -m benchmarks.worth --prepare                         download and embed everything
    python -m benchmarks.worth films --repeats 0..19 --jobs 8 --workers 2 --out films.jsonl
    python -m benchmarks.worth --permuted --repeats 0..19 --out permuted.jsonl
    python -m benchmarks.worth --summary films.jsonl permuted.jsonl [--write]

A repeat runs `hpo run` on its study and the plain script (`benchmarks.script`) for the same CPU time, and judges both
(`benchmarks.truth`) on text or splits that neither has seen. With the same wall time, whatever else a machine does
during one of them would count against it. One line of JSON per repeat is appended to the file; repeats that the file
has already are skipped. `--write` stores the summary in results.json.

Judging takes long but, unlike the searches, does not depend on the machine's speed. With `--no-judge` only the searches
run; the same command without it judges them later, perhaps elsewhere.

With `--permuted` the labels are exchanged among the posts: there is nothing to find, and only the search runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from benchmarks import cases, script
from benchmarks.service import databases
from benchmarks.studies import run_hpo, run_script
from benchmarks.truth import Ground, Member, Worth, true_worth
from sparse_evidence.core.config import CandidateConfig
from sparse_evidence.core.errors import UserError
from sparse_evidence.core.seeding import stable_seed
from sparse_evidence.core.training.stopping import best_index
from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.database.connection import open_storage
from sparse_evidence.hpo.running.task import StudyTask, load_task
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import load

RESULTS = Path(__file__).with_name("results.json")
REPEATS = range(20)
TRIALS = 40
SPLITS = {"editorials": 12, "films": 1, "home": 2}
"""Fresh splits that judge a repeat: more where there is no test set."""
BASELINES = ("linear", "retrieval")
"""Those that a search is compared with."""
TARGETS = {
    "exported": ("true worth of what a search exports", ""),
    "baseline": ("true worth of the better of the linear and the retrieval baseline", ""),
    "default": ("true worth of the default configuration", ""),
    "script": ("true worth of the winner of a plain script in the same CPU time", ""),
    "reported": ("what the search reports", ""),
    "optimism": ("reported minus true", "-0.01 to 0.01"),
    "coverage": ("share of repeats whose 95 % interval covers the truth", "≥ 0.9"),
    "beats_linear": ("share of repeats that beat the tuned linear baseline", "≥ 0.9"),
    "beats_default": ("share of repeats that beat the default configuration", "≥ 0.9"),
    "beats_script": ("share of repeats that beat the script's winner", "≥ 0.9"),
    "nothing": ("share of searches on permuted labels that end with nothing better than the baselines", "≥ 0.95"),
}
"""Description and target of the figures in the table of docs/performance.md, for each corpus."""


@dataclass(frozen=True)
class Reported:
    """What best.json says of the exported result."""

    winner: str
    """"ensemble", "single" (the best configuration), "default", or the name of a baseline."""
    members: tuple[int, ...]
    """Trials of the ensemble, as often as they were picked; without one, the best trial."""
    single: int
    """The best trial, or the one that was confirmed in its place."""
    value: float
    interval: tuple[float, float] | None
    beats_baselines: bool
    """Whether it says that the winner is better than every baseline."""


def read_best(best: Mapping[str, Any]) -> Reported:
    """Read best.json: the confirmed values if it has them, else the ensemble's corrected one, else the best trial's."""
    ensemble, confirmed, single = best.get("ensemble"), best.get("confirmed"), best["trial"]
    members = tuple(m["trial"] for m in (ensemble or {}).get("members", ()) for _ in range(m["picks"])) or (single,)
    beats = "beats every baseline" in best["claim"]
    if confirmed and confirmed["winner"] is not None:
        winner = confirmed["winner"]
        scores = confirmed["scores"][winner]
        if winner.isdecimal():
            winner, single = "single", int(winner)
        return Reported(winner, members, single, scores["mean"], _pair(scores["interval"]), beats)
    if ensemble:
        corrected = ensemble["corrected"]
        if best["winner"] != "ensemble":
            return Reported(best["winner"], members, single, best["cv"]["floors"][best["winner"]], None, beats)
        return Reported("ensemble", members, single, corrected["value"], _pair(corrected["interval"]), beats)
    return Reported("single", members, single, best["value"], None, beats)


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


# ---- one repeat -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What is the same for all repeats of a run."""

    workers: int = 2
    trials: int = TRIALS
    splits: int | None = None
    """Fresh splits that judge; default: the corpus's own number in `SPLITS`."""
    permuted: bool = False
    judge: bool = True


def run_repeat(corpus: str, repeat: int, settings: Settings, searched: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one repeat; returns its line. With `searched`, the line of a repeat that was not judged, only judge it."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that both searches use the same: CPU cores
    torch.set_num_threads(1)  # repeats run side by side
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    line = searched or search(corpus, repeat, settings)
    return judge(line, settings.splits or SPLITS[corpus]) if settings.judge and not settings.permuted else line


def search(corpus: str, repeat: int, settings: Settings) -> dict[str, Any]:
    """Run both searches of a repeat; returns its line without what judging adds."""
    with databases() as fresh, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = cases.make_case(corpus, repeat, folder, trials=settings.trials, permuted=settings.permuted)
        out = folder / "best.json"
        url = fresh("ours")
        cost = run_hpo(case.study, url, out, workers=settings.workers)
        best = json.loads(out.read_text(encoding="utf-8"))
        reported = read_best(best)
        line = {
            "corpus": corpus, "repeat": repeat, "permuted": settings.permuted, "trials": settings.trials,
            "workers": settings.workers, "seconds": cost.seconds, "cpu_seconds": cost.cpu_seconds,
            "winner": reported.winner, "members": list(reported.members), "reported": reported.value,
            "interval": reported.interval, "beats_baselines": reported.beats_baselines,
        }  # fmt: skip
        if settings.permuted:
            return line
        task = load_task(load(case.study))
        study = optuna.load_study(study_name=best["study"], storage=open_storage(url))
        limit = ("--cpu-seconds", str(cost.cpu_seconds / settings.workers))
        script_cost, theirs = run_script(
            load(case.script), task, fresh("script"), folder, limit, workers=settings.workers
        )
        candidates = _ensembles(study, reported) | {"script": (_script_winner(case, theirs, task),)}
        return line | {
            "script_cpu_seconds": script_cost.cpu_seconds, "script_trials": len(theirs.trials),
            "candidates": {name: [_as_json(member) for member in members] for name, members in candidates.items()},
        }  # fmt: skip


def judge(line: Mapping[str, Any], splits: int) -> dict[str, Any]:
    """Judge what the searches of a repeat found; returns its line with the true scores."""
    corpus, repeat = line["corpus"], line["repeat"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        case = cases.make_case(corpus, repeat, Path(name), trials=line["trials"])
        task = load_task(load(case.study))
    test = cases.embed_test(case) if case.test else None
    candidates = {name: tuple(map(_from_json, members)) for name, members in line["candidates"].items()}
    worths = true_worth(Ground(task, test), candidates, splits=splits, seed=stable_seed("worth", corpus, repeat))
    labels = task.corpus.labels if case.test is None else case.test.labels
    return {
        **line, "judge_seconds": time.perf_counter() - started, "prevalences": labels.mean(0).tolist(),
        **_worths(worths, line["winner"]),
    }  # fmt: skip


def _as_json(member: Member) -> dict[str, Any]:
    return {"number": member.number, "epochs": member.epochs, "config": space.to_dict(member.candidate)}


def _from_json(member: Mapping[str, Any]) -> Member:
    return Member(member["number"], space.from_dict(member["config"]), member["epochs"])


def _ensembles(study: optuna.Study, reported: Reported) -> dict[str, tuple[Member, ...]]:
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    return {
        "ensemble": tuple(_member(trials[number]) for number in reported.members),
        "single": (_member(trials[reported.single]),),
        "default": (_member(trials[0]),),
    }


def _member(trial: optuna.trial.FrozenTrial) -> Member:
    """A trial with as many epochs as were best for it; of a pruned one, for the folds that it trained."""
    cv = record.cv(trial)
    if cv is not None:
        epochs = cv["best_epoch"]
    else:
        folds = trial.user_attrs[record.CURVES]["scores"]
        longest = max(map(len, folds))  # folds of a later stage may have only begun
        means = np.mean([fold for fold in folds if len(fold) == longest], axis=0).tolist()
        epochs = 1 + best_index(means, higher_is_better=True)
    return Member(trial.number, space.from_dict(record.config(trial)), epochs)


def _script_winner(case: cases.Case, study: optuna.Study, task: StudyTask) -> Member:
    candidate: CandidateConfig = space.suggest(load(case.script), study.best_trial)
    epochs = script.best_epoch(study.best_trial, candidate.training, task.folds.count)
    return Member(study.best_trial.number, candidate, epochs)


def _worths(worths: Mapping[str, Worth], winner: str) -> dict[str, Any]:
    named = {"exported": worths[winner], **worths}
    return {
        "true": {name: worth.value for name, worth in named.items()},
        "test": {name: worth.test for name, worth in named.items()},
        "splits": {name: list(worth.splits) for name, worth in named.items()},
    }


# ---- the summary ----------------------------------------------------------------------------------------------------


def summarise(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures of results.json: `worth.CORPUS.NAME`, with a standard error in `worth.CORPUS.NAME_se`."""
    by_corpus: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_corpus.setdefault(line["corpus"], []).append(line)
    figures: dict[str, float] = {}
    for corpus, its_lines in by_corpus.items():
        values = {f"worth.{corpus}.{name}": column for name, column in _columns(its_lines).items() if column}
        for key, column in values.items():
            figures[key] = float(np.mean(column))
            if len(column) > 1 and not isinstance(column[0], bool):
                figures[f"{key}_se"] = float(np.std(column, ddof=1) / len(column) ** 0.5)
        repeats = [line for line in its_lines if "true" in line]
        if repeats:
            figures[f"worth.{corpus}.repeats"] = float(len(repeats))
    return figures


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """One value per repeat; a share is the mean of booleans."""
    repeats = [line for line in lines if "true" in line]
    true = {name: [line["true"][name] for line in repeats] for name in repeats[0]["true"]} if repeats else {}
    columns: dict[str, list[Any]] = {**true}
    if repeats:
        columns["reported"] = [line["reported"] for line in repeats]
        columns["optimism"] = [line["reported"] - line["true"]["exported"] for line in repeats]
        columns["seconds"] = [line["seconds"] for line in repeats]
        columns["coverage"] = [
            bool(line["interval"][0] <= line["true"]["exported"] <= line["interval"][1])
            for line in repeats
            if line["interval"]
        ]
        columns["test"] = [line["test"]["exported"] for line in repeats if line["test"]["exported"] is not None]
        # the better baseline of the corpus, not of each repeat: choosing per repeat would flatter the baselines
        best = max(BASELINES, key=lambda name: float(np.mean(true[name])))
        columns["baseline"] = true[best]
        for name in (*BASELINES, "baseline", "default", "script"):
            pairs = list(zip(true["exported"], columns.get(name, true.get(name, [])), strict=True))
            columns[f"over_{name}"] = [exported - other for exported, other in pairs]
            columns[f"beats_{name}"] = [bool(exported > other) for exported, other in pairs]
    columns["nothing"] = [not line["beats_baselines"] for line in lines if line["permuted"]]
    return columns


def table(figures: Mapping[str, float]) -> list[str]:
    """Return the lines of a Markdown table: a row per corpus, means ± standard errors over the repeats."""
    names = ("exported", "reported", "optimism", "coverage", "single", "default", *BASELINES, "script", "test")
    shares = (*(f"beats_{name}" for name in (*BASELINES, "default", "script")), "nothing")

    def cell(corpus: str, name: str) -> str:
        key = f"worth.{corpus}.{name}"
        if key not in figures:
            return "–"
        error = figures.get(f"{key}_se")
        return f"{figures[key]:.3f}" + (f" ± {error:.3f}" if error is not None else "")

    corpora = dict.fromkeys(key.split(".")[1] for key in figures if key.startswith("worth."))
    columns = (*names, *shares)
    return [
        f"| corpus | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {corpus} | {' | '.join(cell(corpus, name) for name in columns)} |" for corpus in corpora),
    ]


# ---- many repeats ---------------------------------------------------------------------------------------------------


def run(corpora: Sequence[str], repeats: Iterable[int], settings: Settings, *, jobs: int, out: Path) -> int:
    """Run or judge the repeats that `out` does not have yet, `jobs` at a time; returns how many failed."""
    known = {(line["corpus"], line["repeat"], line["permuted"]): line for line in read_lines([out])}
    # repeat by repeat, so that a run that is cut short has some of every corpus
    wanted = [(corpus, repeat) for repeat in repeats for corpus in corpora]
    missing = {}
    for corpus, repeat in wanted:
        line = known.get((corpus, repeat, settings.permuted))
        if line is None or (settings.judge and not settings.permuted and "true" not in line):
            missing[corpus, repeat] = line
    failed = 0
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for number in range(jobs):
        cores.put(number)
    with ProcessPoolExecutor(jobs, context, _use_cores, (cores, settings.workers, jobs)) as pool:
        running = {pool.submit(run_repeat, *key, settings, line): key for key, line in missing.items()}
        for future in as_completed(running):
            corpus, repeat = running[future]
            if future.exception():
                failed += 1
                print(f"{corpus} {repeat} failed: {future.exception()}", file=sys.stderr, flush=True)
                continue
            line = future.result()
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{corpus} {repeat}: {_short(line)}", file=sys.stderr, flush=True)
    return failed


def _use_cores(numbers: multiprocessing.Queue[int], workers: int, jobs: int) -> None:
    """Give this process cores of its own, if there are enough, so that both searches of a repeat have the same."""
    cores = sorted(os.sched_getaffinity(0))
    number = numbers.get()
    if len(cores) >= workers * jobs:
        os.sched_setaffinity(0, cores[number * workers : (number + 1) * workers])


def _short(line: Mapping[str, Any]) -> str:
    true = {name: round(value, 4) for name, value in line.get("true", {}).items()}
    reported = f"{line['seconds']:.0f} s, {line['winner']}, reported {line['reported']:.4f}"
    prevalences = [round(value, 3) for value in line.get("prevalences", [])]
    return f"{reported}, true {true}, prevalences {prevalences}" if true else reported


def read_lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the lines of some files; a file that does not exist has none, and a line that was cut off is left out.

    Of the lines of one repeat, which is written once more when it has been judged, the last one is returned.
    """
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
                lines[line["corpus"], line["repeat"], line["permuted"]] = line
            except json.JSONDecodeError:
                print(f"{path}: a line was cut off; its repeat runs again", file=sys.stderr)
    return list(lines.values())


def measure() -> dict[str, float]:
    """Every corpus, `REPEATS` times, and as often with permuted labels; takes hours."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "worth.jsonl"
        jobs = max(1, len(os.sched_getaffinity(0)) // 2)
        failed = run(tuple(cases.CORPORA), REPEATS, Settings(), jobs=jobs, out=out)
        failed += run(("editorials",), REPEATS, Settings(permuted=True), jobs=jobs, out=out)
        assert not failed, f"{failed} repeats failed"
        return summarise(read_lines([out]))


def number_range(text: str) -> range:
    """The numbers that `3` or `0..19` means."""
    first, _, last = text.partition("..")
    return range(int(first), int(last or first) + 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worth")
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help=f"of {', '.join(cases.CORPORA)}; default: all")
    parser.add_argument("--repeats", type=number_range, default=REPEATS, metavar="A..B", help="both included")
    parser.add_argument("--jobs", type=int, default=1, help="repeats at a time")
    parser.add_argument("--workers", type=int, default=2, help="processes of each search")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--splits", type=int, help=f"fresh splits that judge a repeat; default: {SPLITS}")
    parser.add_argument("--permuted", action="store_true", help="permuted labels; default corpus: editorials")
    parser.add_argument("--no-judge", action="store_true", help="only search; the same command without it judges later")
    parser.add_argument("--out", type=Path, default=Path("worth.jsonl"))
    parser.add_argument("--prepare", action="store_true", help="download and embed everything, and stop")
    parser.add_argument("--summary", nargs="+", type=Path, metavar="FILE", help="summarise files of lines, and stop")
    parser.add_argument("--write", action="store_true", help="store the summary in results.json")
    options = parser.parse_args()
    if unknown := set(options.corpora) - set(cases.CORPORA):
        parser.error(f"unknown corpus {min(unknown)}; known are {', '.join(cases.CORPORA)}")
    options.corpora = options.corpora or (["editorials"] if options.permuted else list(cases.CORPORA))
    return options


def main() -> None:
    """Prepare, run or summarise."""
    options = _options()
    failed = 0
    if options.prepare:
        cases.prepare(tuple(options.corpora))
        return
    if not options.summary:
        settings = Settings(options.workers, options.trials, options.splits, options.permuted, not options.no_judge)
        failed = run(options.corpora, options.repeats, settings, jobs=options.jobs, out=options.out)
    figures = {key: round(value, 4) for key, value in summarise(read_lines(options.summary or [options.out])).items()}
    print(*table(figures), json.dumps(figures, indent=2), sep="\n")
    if options.write:
        stored = json.loads(RESULTS.read_text(encoding="utf-8")) | figures
        RESULTS.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
