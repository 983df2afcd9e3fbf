"""benchmarks/tables.py: what is run for each row, and what the table says of where its figures are from."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tables.py"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ran(tables, monkeypatch):
    """Commands that would run; each leaves what its script leaves."""
    commands = []

    def call(script, *options):
        commands.append([script, *map(str, options)])
        folder = Path(options[options.index("--results-dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        if script == "evaluate.py":
            figure = {"name": "FVD", "value": 7.5, "note": "random features, not comparable", "fake": 8}
            (folder / "metrics.json").write_text(json.dumps({"figures": [figure]}))
        else:
            (folder / "run.json").write_text(json.dumps({"seconds": 2.0}))

    monkeypatch.setattr(tables.cli, "call", call)
    return commands


def option(command, name):
    return command[command.index(name) + 1]


def test_table_of_steps_samples_one_checkpoint_with_2_10_and_20(tables, ran, tmp_path):
    tables.main(["steps", "--checkpoints", "ours=C", "--real", "D", "--num", "8", "--out", str(tmp_path)])
    sampled = [command for command in ran if command[0] == "sample.py"]
    assert [option(command, "--num-timesteps") for command in sampled] == ["2", "10", "20"]
    assert {option(command, "--model-ckpt") for command in sampled} == {"C"}
    films = [option(command, "--results-dir") for command in sampled]
    assert [option(command, "--fake") for command in ran if command[0] == "evaluate.py"] == films


def test_conditional_table_gives_the_test_videos_to_both_scripts(tables, ran, tmp_path):
    tables.main(["conditional", "--checkpoints", "ours=C", "--real", "D", "--num", "8", "--out", str(tmp_path)])
    assert [command[0] for command in ran] == ["sample_a2v.py", "evaluate.py", "sample_v2a.py", "evaluate.py"]
    assert all(option(command, "--data-path") == "D" for command in ran if command[0] != "evaluate.py")


def test_rows_say_whether_they_were_measured_or_quoted_and_a_second_run_measures_nothing(tables, ran, tmp_path):
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps([{"row": "them", "figures": {"FVD": 9.25, "FAD": 1.5}, "source": "their Table 2"}]))
    arguments = [
        "fusions",
        "--checkpoints",
        "a=A",
        "c=C",
        "--real",
        "D",
        "--quoted",
        str(theirs),
        "--out",
        str(tmp_path),
    ]
    tables.main(arguments)
    count = len(ran)
    tables.main(arguments)
    assert len(ran) == count == 4
    text = (tmp_path / "fusions.md").read_text()
    assert "| a | 7.5 |  | 8 | measured; random features, not comparable |" in text
    assert "| them | 9.25 | 1.5 |  | quoted: their Table 2 |" in text
    rows = json.loads((tmp_path / "fusions.json").read_text())["rows"]
    assert [row["source"] for row in rows] == ["measured", "measured", "quoted: their Table 2"]


def test_figures_without_a_source_are_refused(tables, ran, tmp_path):
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps([{"row": "them", "figures": {"FVD": 9.25}}]))
    with pytest.raises(ValueError, match="has no source for 'them'"):
        tables.quoted(theirs)


def test_script_that_fails_is_quoted_in_one_sentence(tables):
    with pytest.raises(ValueError, match=r"sample\.py failed: sample\.py: error: .*--model-ckpt"):
        tables.cli.call("sample.py")


@pytest.mark.parametrize("text", ["C", "runs/c"])
def test_checkpoint_without_a_row_is_refused(tables, text, capsys):
    with pytest.raises(SystemExit):
        tables.main(["fusions", "--checkpoints", text, "--real", "D"])
    assert f"--checkpoints {text} is not ROW=PATH" in capsys.readouterr().err
