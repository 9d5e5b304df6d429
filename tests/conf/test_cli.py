"""The command `vilau`: what it passes on, what it refuses, and with which exit status it leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from vilau_common.errors import UserError
from vilau_common.training.interrupt import TrainingInterrupted
from vilau_unified_lm import cli, cli_use, cli_verbs
from vilau_unified_lm.cli_verbs import Verb


@dataclass(kw_only=True)
class ToyConfig:
    steps: int
    name: str = "toy"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    directory = tmp_path / "conf"
    directory.mkdir()
    (directory / "toy.yaml").write_text("defaults: [toy_schema, _self_]\nname: ours\n")
    return directory


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the functions behind the commands were called with; each returns a line or two to print."""
    calls: list[Any] = []

    def recorder(result: Any) -> Callable[..., Any]:
        def function(*positional: Any, **named: Any) -> Any:
            calls.extend([*positional, named] if named else positional)
            return result

        return function

    use = types.ModuleType(cli_use.USE_MODULE)
    use.ask = recorder("two")  # type: ignore[attr-defined]
    use.draw = recorder([Path("a.png"), Path("b.png")])  # type: ignore[attr-defined]
    use.reconstruct = recorder(Path("out.png"))  # type: ignore[attr-defined]
    report = types.ModuleType(cli_use.REPORT_MODULE)
    report.build_report = recorder(Path("report/index.html"))  # type: ignore[attr-defined]
    report.compare_runs = recorder(Path("comparison/index.html"))  # type: ignore[attr-defined]
    guidance = types.ModuleType(cli_use.GUIDANCE_MODULE)
    guidance.sweep_guidance = recorder(Path("guidance.png"))  # type: ignore[attr-defined]
    page = types.ModuleType(cli_use.APP_MODULE)
    page.serve = recorder(None)  # type: ignore[attr-defined]
    toy = types.ModuleType("toy_stage")
    toy.ToyConfig = ToyConfig  # type: ignore[attr-defined]
    toy.run = recorder(None)  # type: ignore[attr-defined]
    for module in (use, report, guidance, page, toy):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


TOY = Verb(name="toy", summary="", config="toy", module="toy_stage", schema="ToyConfig", function="run")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.touch()
    return path


def test_verb_gets_its_typed_configuration(
    conf: Path, given: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = cli._command(TOY)
    command(["steps=3"], conf, print_config=False)
    assert given == [ToyConfig(steps=3, name="ours")]
    command(["steps=3"], conf, print_config=True)
    assert len(given) == 1  # printed instead of run
    assert capsys.readouterr().out == "steps: 3\nname: ours\n"


def test_a_verb_that_sweeps_gets_the_overrides_themselves(
    conf: Path, given: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    toy = sys.modules["toy_stage"]
    toy.with_group = lambda overrides: [*overrides, "name=swept"]  # type: ignore[attr-defined]
    toy.first_point = lambda overrides, place: ToyConfig(steps=3, name=f"{overrides}")  # type: ignore[attr-defined]
    command = cli._command(replace(TOY, sweeps=True))
    command(["steps=3,4"], conf, print_config=True)
    assert "steps=3,4" in capsys.readouterr().out
    assert not given
    command(["steps=3,4"], conf, print_config=False)
    assert given == [["steps=3,4"], conf]


def test_every_verb_is_a_command_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli_verbs.VERBS:
        assert cli.main([verb.name, "--help"]) == 0
        assert f"conf/{verb.config}.yaml" in " ".join(capsys.readouterr().out.split())


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from vilau_unified_lm.cli import main; main(['--help']); "
        "print('imported', *{'torch', 'transformers', 'hydra', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported"


def test_use_verbs_pass_their_options_on(
    tmp_path: Path, picture: Path, given: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.png"
    assert cli.main(["ask", str(tmp_path), str(picture), "how many objects?"]) == 0
    assert (
        cli.main(
            ["draw", str(tmp_path), "a red circle", "-o", str(output), "--top-k", "5", "--guidance", "2"]
        )
        == 0
    )
    assert cli.main(["reconstruct", str(tmp_path), str(picture), "-o", str(output)]) == 0
    assert cli.main(["report", str(tmp_path)]) == 0
    as_stored = {"dtype": "auto", "device_map": None}
    assert given == [
        {"run": tmp_path, "image": picture, "question": "how many objects?", **as_stored},
        {
            "run": tmp_path,
            "prompt": "a red circle",
            "negative": "",
            "output": output,
            "count": 1,
            "seed": 0,
            "guidance": 2.0,
            "temperature": None,
            "top_k": 5,
            "top_p": None,
            **as_stored,
        },
        {"run": tmp_path, "image": picture, "output": output, **as_stored},
        tmp_path,
    ]
    assert capsys.readouterr().out.split() == ["two", "a.png", "b.png", "out.png", "report/index.html"]


def test_reports_guidance_and_the_page(
    tmp_path: Path, given: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for run in (first, second):
        run.mkdir()
    assert cli.main(["report", str(first), str(second)]) == 0
    assert cli.main(["report", str(first), str(second), "-o", str(tmp_path / "page")]) == 0
    assert cli.main(["guidance", str(first)]) == 0
    assert cli.main(["guidance", str(first), "1", "2.5"]) == 0
    assert cli.main(["app", str(first), "--port", "8000", "--device", "cuda", "--compile", "graph"]) == 0
    served = {"run": first, "host": "127.0.0.1", "port": 8000, "device": "cuda", "compile": "graph"}
    assert given == [
        *([first, second], None),
        *([first, second], tmp_path / "page"),
        first,
        *(first, [1.0, 2.5]),
        served,
    ]
    assert capsys.readouterr().out.split() == ["comparison/index.html"] * 2 + ["guidance.png"] * 2
    assert cli.main(["report", str(first), "-o", str(tmp_path / "page")]) == 2
    assert "--output is for a comparison of several runs" in capsys.readouterr().err
    assert cli.main(["report", str(first), str(tmp_path / "third")]) == 2
    assert f"there is no run directory {tmp_path / 'third'}" in capsys.readouterr().err
    assert cli.main(["guidance", str(first), "--", "-1"]) == 2
    assert "SCALE must be 0 or more, got -1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--top-k", "0"], "--top-k must be 1 or more, got 0"),
        (["--top-p", "0"], "--top-p must be above 0 and at most 1, got 0.0"),
        (["--top-p", "1.5"], "--top-p must be above 0 and at most 1, got 1.5"),
        (["--top-p", "nan"], "--top-p must be above 0 and at most 1, got nan"),
        (["--guidance", "-1"], "--guidance must be 0 or more, got -1.0"),
        (["--temperature", "nan"], "--temperature must be 0 or more, got nan"),
        (["--count", "0"], "--count must be 1 or more, got 0"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["-o", "out.gif"], "--output out.gif must end in one of .png, .jpg, .jpeg, .webp"),
        (["-o", "no/such/out.png"], "--output no/such/out.png: there is no directory no/such"),
        (["--top-k", "many"], "Invalid value for '--top-k'"),
        (["--topk", "3"], "No such option: --topk"),
    ],
)
def test_bad_option_is_one_sentence(
    tmp_path: Path, given: list[Any], capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert cli.main(["draw", str(tmp_path), "a red circle", *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"vilau: error: {sentence}")
    assert told.count("\n") == 1
    assert not given


def test_missing_files_are_told(tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "nowhere"
    assert cli.main(["ask", str(nowhere), str(picture), "why?"]) == 2
    assert f"there is no run directory {nowhere}" in capsys.readouterr().err
    assert cli.main(["reconstruct", str(tmp_path), str(nowhere)]) == 2
    assert f"there is no picture {nowhere}" in capsys.readouterr().err
    assert cli.main(["train-towr"]) == 2
    assert "Did you mean 'train-tower'" in capsys.readouterr().err


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (
            UserError("data/[x] is not prepared " + "and so on " * 20),
            2,
            "vilau: error: data/[x] is not prepared and",
        ),
        (
            TrainingInterrupted(7, signal.SIGTERM),
            143,
            "vilau: stopped at step 7 by SIGTERM; run the same command",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    told: str,
) -> None:
    monkeypatch.setattr(cli_use, "_use", lambda *_: raising(error))
    assert cli.main(["report", str(tmp_path)]) == status
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(told) if told else not lines
    assert len(lines) <= 1


def test_defect_keeps_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_use, "_use", lambda *_: raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["report", str(tmp_path)])
