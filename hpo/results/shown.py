"""Studies as optuna-dashboard shows them: the metric's name, values that can be compared, short attributes, notes.

optuna-dashboard shows what Optuna's tables hold: attributes as JSON of thousands of characters, and the values of
pruned trials beside those of complete ones, though they are of fewer folds. `ShownStudies` is a view of the same tables
in which

- the metric has its name;
- step n of a complete trial's intermediate values is its mean over the first n folds, so that the last one is its value
  (a trial that is not complete has what it reported: a mean over the first folds, at the best epoch of these folds);
- a pruned trial has no value, but its mean over the folds that it trained among its attributes;
- the attributes of studies and trials are numbers and short texts;
- a confirmed study has a graph of what every candidate is worth.

The notes are in a study's system attributes if somebody wrote them in the dashboard. For the others, `add_notes` puts
sentences of `notes` into optuna-dashboard's answers: with all of them among the system attributes, it would search
N² keys to show N trials.

Nothing here is stored, so studies of earlier versions, and studies that are only read, are shown alike.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from statistics import fmean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, cast

import bottle
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ..database import record
from ..errors import StorageError
from . import notes, winner
from .graphs import study_graphs
from .wording import count_text, estimate_text, metric_text, shown_baselines

if TYPE_CHECKING:
    from optuna import Study
    from optuna.study import StudyDirection
    from optuna.study._frozen import FrozenStudy

P = ParamSpec("P")
T = TypeVar("T")

View = Callable[..., Any]
"""What answers a route of a bottle application."""

_METRIC_NAMES = "study:metric_names"
"""The system attribute of `Study.set_metric_names`."""
_MARKUP = re.compile(r"([\\`*_\[\]<>#$|~&])")
_DECIMALS = 4


def _answered(read: Callable[P, T]) -> Callable[P, T]:
    """The method, with an error of the database as the answer 503, which optuna-dashboard passes on as JSON."""

    @functools.wraps(read)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except StorageError as error:
            raise bottle.HTTPError(503, "the database is unreachable; the page goes on once it is back") from error

    return call


class ShownStudies(BaseStorage):
    """A view of the studies in a storage, for reading.

    Args:
        storage: from `hpo.database.connection.open_storage`.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._studies: dict[str, FrozenStudy] = {}  # as stored, by name
        self._latest: dict[int, list[FrozenTrial]] = {}  # all trials of a study as they were last shown
        self._shown: dict[tuple[int, int, float | None], FrozenTrial] = {}  # by study, number and the default's value

    # ---- studies

    @_answered
    def get_all_studies(self) -> list[FrozenStudy]:
        """All studies, with the metric's name and short attributes."""
        stored = self._storage.get_all_studies()
        self._studies = {study.study_name: study for study in stored}
        return [_shown_study(study) for study in stored]

    @_answered
    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """The study's system attributes, with the metric's name and our graphs."""
        attributes = self._storage.get_study_user_attrs(study_id)
        return _shown_system(attributes, self._storage.get_study_system_attrs(study_id))

    @_answered
    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """The study's attributes, as stored."""
        return self._storage.get_study_user_attrs(study_id)

    @_answered
    def get_study_id_from_name(self, study_name: str) -> int:
        """As Optuna's."""
        return self._storage.get_study_id_from_name(study_name)

    @_answered
    def get_study_name_from_id(self, study_id: int) -> str:
        """As Optuna's."""
        return self._storage.get_study_name_from_id(study_id)

    @_answered
    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """As Optuna's."""
        return self._storage.get_study_directions(study_id)

    # ---- trials

    @_answered
    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A trial; as stored, because its study is not known here."""
        return self._storage.get_trial(trial_id)

    @_answered
    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best trial, as it is shown."""
        best = self._storage.get_best_trial(study_id)
        latest = self._latest.get(study_id, ())
        return latest[best.number] if best.number < len(latest) else best

    @_answered
    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials, as they are shown."""
        trials = self._storage.get_all_trials(study_id, deepcopy=False)
        attributes = self._storage.get_study_user_attrs(study_id)
        if record.IDENTITY in attributes:
            trials = self._trials(study_id, notes.facts(attributes[record.IDENTITY]["definition"], trials), trials)
        self._latest[study_id] = trials
        chosen = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def _trials(self, study_id: int, known: notes.Facts, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        default = None if known.default is None else known.default.value
        shown = []
        for trial in trials:
            key = study_id, trial.number, default
            if key not in self._shown or not trial.state.is_finished():
                self._shown[key] = shown_trial(known, trial)
            shown.append(self._shown[key])
        return shown

    # ---- notes

    @_answered
    def add_notes(self, study_id: int, answer: dict[str, Any]) -> None:
        """Put notes into optuna-dashboard's answer about a study, where nobody has written one."""
        study = self._studies.get(self._storage.get_study_name_from_id(study_id))
        if study is None or record.IDENTITY not in study.user_attrs:
            return
        trials = self._storage.get_all_trials(study_id, deepcopy=False)
        known = notes.facts(study.user_attrs[record.IDENTITY]["definition"], trials)
        if _is_empty(answer["note"]):
            paragraphs = notes.study_paragraphs(cast("Study", study), trials)
            answer["note"]["body"] = "\n\n".join(f"**{name}.** {escaped(text)}" for name, text in paragraphs.items())
        for shown in (*answer["trials"], *answer["best_trials"]):
            if _is_empty(shown["note"]) and shown["number"] < len(trials):
                shown["note"]["body"] = escaped(" ".join(notes.trial_sentences(known, trials[shown["number"]])))

    # ---- writing

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise bottle.HTTPError(403, "this is a view for reading")

    create_new_study = delete_study = set_study_user_attr = set_study_system_attr = _refuse
    create_new_trial = set_trial_param = set_trial_state_values = set_trial_intermediate_value = _refuse
    set_trial_user_attr = set_trial_system_attr = _refuse


def with_notes(studies: ShownStudies) -> Callable[[View], View]:
    """A plugin for optuna-dashboard's bottle application: its answers about a study get notes, and errors a reason."""

    def plugin(view: View) -> View:
        @functools.wraps(view)
        def answer(*args: Any, **parameters: Any) -> Any:  # noqa: ANN401 (whatever bottle turns into a response)
            try:
                given = view(*args, **parameters)
                if isinstance(given, dict) and {"trials", "best_trials", "note"} <= given.keys():
                    studies.add_notes(parameters["study_id"], given)
            except bottle.HTTPError as error:
                reason = json.dumps({"reason": str(error.body)})
                return bottle.HTTPResponse(reason, error.status_code, {"Content-Type": "application/json"})
            return given

        return answer

    return plugin


def _is_empty(note: Mapping[str, Any]) -> bool:
    """Whether nobody has written the note; a person's note has a version from 1, even after it was cleared."""
    return bool(note["version"] == 0)


def escaped(text: str) -> str:
    """The text as Markdown that shows it as it is."""
    return _MARKUP.sub(r"\\\1", text)


# --- a study ----------------------------------------------------------------------------------------------------------


def _shown_study(stored: FrozenStudy) -> FrozenStudy:
    if record.IDENTITY not in stored.user_attrs:
        return stored
    study = copy.copy(stored)
    study.system_attrs = _shown_system(stored.user_attrs, stored.system_attrs)
    study.user_attrs = study_attributes(cast("Study", stored))  # its readers look at the attributes only
    return study


def _shown_system(user: Mapping[str, Any], system: dict[str, Any]) -> dict[str, Any]:
    if record.IDENTITY not in user:
        return system
    name = metric_text(user[record.IDENTITY]["definition"]["search"]["metric"])
    study = cast("Study", SimpleNamespace(user_attrs=user))  # its readers look at the attributes only
    return {_METRIC_NAMES: [name], **study_graphs(study), **system}


def study_attributes(study: Study) -> dict[str, Any]:
    """What is known of a study, as numbers and short texts."""
    metric, ensemble, confirmed = record.metric(study), record.ensemble(study), winner.current_confirmed(study)
    attributes: dict[str, Any] = {"metric": metric_text(metric)}
    if (requested := record.requested(study)) is not None:
        attributes["trials requested"] = requested
    for _, name, score in shown_baselines(metric, record.baselines(study) or {}):
        attributes[f"baseline {name}"] = round(score, _DECIMALS)
    if ensemble is not None and ensemble.get("corrected"):
        attributes["ensemble, corrected for selection"] = estimate_text(**ensemble["corrected"])
    if confirmed is not None and confirmed["winner"] is not None:
        score = confirmed["scores"][confirmed["winner"]]
        splits = count_text(confirmed["splits"], "fresh split")
        attributes["confirmed result"] = record.candidate_text(confirmed["winner"])
        attributes[f"confirmed, on {splits}"] = estimate_text(score["mean"], score["interval"])
    return attributes


# --- a trial ----------------------------------------------------------------------------------------------------------


def shown_trial(known: notes.Facts, stored: FrozenTrial) -> FrozenTrial:
    """A trial as it is shown; what is stored does not change."""
    trial = copy.copy(stored)
    trial.user_attrs = trial_attributes(known, stored)
    summary = record.cv(stored)
    if stored.state == TrialState.PRUNED:
        trial.values = None
    elif summary is not None and stored.value is not None:
        scores = summary["folds"]
        means = {count: fmean(scores[:count]) for count in range(1, len(scores))}
        trial.intermediate_values = {**means, len(scores): stored.value}
    return trial


def trial_attributes(known: notes.Facts, trial: FrozenTrial) -> dict[str, Any]:
    """What is known of a trial, as numbers and short texts."""
    attributes: dict[str, Any] = {}
    entry, summary, judged, step = record.confirm(trial), record.cv(trial), record.pruned(trial), trial.last_step
    if entry is not None:
        attributes["confirms"] = f"trial {entry['trial']}" if "trial" in entry else "baselines"
        attributes["fresh split"] = entry["split"] + 1
    if summary is not None:
        scores, default = summary["folds"], known.default
        attributes |= {"folds": len(scores), "fold values": " ".join(f"{score:.{_DECIMALS}f}" for score in scores)}
        attributes["decision threshold"] = round(summary["threshold"], _DECIMALS)
        attributes |= {"best epoch": summary["best_epoch"], "epochs": summary["epochs"]}
        if default is not None and default.value is not None and default.number != trial.number:
            attributes["gain over default"] = round(known.gain(trial.value or 0.0, default.value), _DECIMALS)
    elif step is not None:
        attributes |= {"folds": step, "mean of these folds": round(trial.intermediate_values[step], _DECIMALS)}
    if judged is not None:
        attributes["pruning threshold"] = round(judged["threshold"], _DECIMALS)
    if (reason := record.reason(trial)) is not None:
        attributes["reason"] = reason
    if (seconds := notes.trial_seconds(trial)) is not None:
        attributes["seconds"] = round(seconds, 1)
    return attributes | ({"attempts": record.attempts(trial)} if record.attempts(trial) > 1 else {})
