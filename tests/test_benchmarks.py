"""The command of the benchmarks: what it accepts, and when it says that something got worse."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as command


def test_a_ratio_that_is_much_worse_is_named() -> None:
    before = {"epoch.vs_reference": 10.0, "epoch.vs_matmul": 2.0, "service.vs_optuna_100": 0.1}
    assert command.much_worse(before, {"epoch.vs_reference": 8.1, "epoch.vs_matmul": 2.4}) == []
    assert command.much_worse(before, {"epoch.vs_reference": 30.0, "epoch.vs_matmul": 0.5}) == [], "much better"
    assert command.much_worse(
        before, {"epoch.vs_reference": 7.5, "epoch.vs_matmul": 3.0, "scaling.workers_2": 1.0}
    ) == [
        "epoch.vs_reference was 10 and is 7.5, 1.33 times worse",
        "epoch.vs_matmul was 2 and is 3, 1.50 times worse",
    ]


@pytest.mark.parametrize("arguments", [["spped"], ["table", "epoch"]])
def test_a_part_that_does_not_exist_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_without_names_everything_but_worth_is_meant() -> None:
    assert set(command.PARTS) - set(command._arguments([]).parts) == {"worth"}


def test_the_table_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["table"])
    assert capsys.readouterr().out.startswith("| figure | measured | target |\n")
