"""benchmarks/tables.py: what is run for each row, and what the table says of where its figures are from."""

import json
from pathlib import Path

import pytest

from benchmarks import tables


@pytest.fixture
def ran(monkeypatch):
    """Commands that would run; each leaves what its script leaves."""
    commands = []

    def call(script, *options):
        commands.append([script, *map(str, options)])
        folder = Path(options[options.index("--results-dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        if script == "evaluate.py":
            figure = {
                "name": "FVD",
                "value": 7.5,
                "note": "random features, not comparable",
                "fake": 8,
                "warning": "of 8",
            }
            (folder / "metrics.json").write_text(json.dumps({"figures": [figure]}))
        else:
            (folder / "run.json").write_text(json.dumps({"seconds": 2.0}))

    monkeypatch.setattr(tables.cli, "call", call)
    return commands


def option(command, name):
    return command[command.index(name) + 1]


def test_table_of_steps_samples_one_checkpoint_with_2_10_and_20(ran, tmp_path):
    tables.main(["steps", "--checkpoints", "ours=C", "--real", "D", "--num", "8", "--out", str(tmp_path)])
    sampled = [command for command in ran if command[0] == "sample.py"]
    assert [option(command, "--num-timesteps") for command in sampled] == ["2", "10", "20"]
    assert {option(command, "--model-ckpt") for command in sampled} == {"C"}
    films = [option(command, "--results-dir") for command in sampled]
    assert [option(command, "--fake") for command in ran if command[0] == "evaluate.py"] == films


def test_syncflows_table_has_a_row_of_text_and_one_of_pictures_beside_the_papers_figures(ran, tmp_path, capsys):
    """Row S28."""
    where = ["--checkpoints", "VGG=C", "--real", "D", "--num", "8", "--out", str(tmp_path)]
    tables.main(["syncflow", *where, "--prompts", "P.txt", "--evaluate=--metrics fvd fad kl clap"])
    assert [command[0] for command in ran] == ["sample.py", "evaluate.py", "sample_v2a.py", "evaluate.py"]
    assert option(ran[0], "--prompts") == "P.txt" and "--prompts" not in ran[2] and option(ran[2], "--data-path") == "D"
    assert ran[1][-5:] == ["--metrics", "fvd", "fad", "kl", "clap"]
    text = (tmp_path / "syncflow.md").read_text()
    assert "| VGG, text to both | 7.5 | 8 | measured" in text and "| VGG, V2A |" in text
    assert "| SyncFlow-VGG KL | 2.53 |  | quoted: SyncFlow, arXiv 2412.15220" in text
    for table, more in (("syncflow", []), ("steps", ["--prompts", "P.txt"])):
        with pytest.raises(SystemExit):
            tables.main([table, *where, *more])
        assert "--prompts belongs to the table syncflow, and to no other" in capsys.readouterr().err


def test_conditional_table_gives_the_test_videos_to_both_scripts(ran, tmp_path):
    tables.main(["conditional", "--checkpoints", "ours=C", "--real", "D", "--num", "8", "--out", str(tmp_path)])
    assert [command[0] for command in ran] == ["sample_a2v.py", "evaluate.py", "sample_v2a.py", "evaluate.py"]
    assert all(option(command, "--data-path") == "D" for command in ran if command[0] != "evaluate.py")


@pytest.mark.parametrize(
    ("table", "script", "metrics", "row"),
    [
        ("avlink-v2a", "sample_v2a.py", "onset-acc",
         "| AV-Link, with prompt | 1.33 | 11.99 | 0.228 | 12.4 | 0.214 | 0.226 | 0.54 |"),
        ("avlink-a2v", "sample_a2v.py", "fid fvd12",
         "| TempoTokens, without prompt | 103.09 | 2406.6 | 0.112 | 0.114 |"),
    ],
)  # fmt: skip
def test_avlinks_tables_are_of_one_script_each_beside_the_papers_with_and_without_prompt(
    ran, tmp_path, table, script, metrics, row
):
    """Rows A26 and A27."""
    where = ["--checkpoints", "ours=C", "--real", "D", "--num", "8", "--out", str(tmp_path)]
    tables.main([table, *where, f"--evaluate=--metrics {metrics}"])
    assert [command[0] for command in ran] == [script, "evaluate.py"] and option(ran[0], "--data-path") == "D"
    assert ran[1][-len(metrics.split()) :] == metrics.split()
    text = (tmp_path / f"{table}.md").read_text()
    assert f"{row}  | quoted: AV-Link, arXiv 2412.15191" in text and "| ours | 7.5 | 8 | measured" in text


def fusions(folder, *more):
    tables.main(["fusions", "--checkpoints", "a=A", "c=C", "--real", "D", *more, "--out", str(folder)])
    return (folder / "fusions.md").read_text(), json.loads((folder / "fusions.json").read_text())


def test_measured_and_quoted_rows_stand_apart_and_say_which_they_are_and_a_second_run_measures_nothing(ran, tmp_path):
    fusions(tmp_path)
    count = len(ran)
    text, found = fusions(tmp_path)
    assert len(ran) == count == 4
    ours, theirs = text.split("Table 1.A: fusion blocks, quoted")
    assert "| a | 7.5 | 8 | measured; random features, not comparable; not told from real: FVD |" in ours
    assert "quoted" not in ours and "measured" not in theirs
    assert [row["source"] for row in found["rows"]] == ["measured", "measured"]
    assert all(row["source"].startswith("quoted: R-FLAV, arXiv 2503.08307") for row in found["quoted"])


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("fusions", "| c | 3.94 | 2.7 | 50.92 | 8.73 | 8.4 |"),
        ("windows", "| 20 | 77.55 | 12.71 | 8.53 |"),
        ("steps", "| ground truth |  |  | 3.67 | -0.28 | 8.25 | 7.45 | -0.15 | 9.33 |"),
        ("steps", "| R-FLAV n = 20 | 421 M | 200 | 38.36 | 6.15 | 8.28 | 80.19 | 3.3 | 9.88 |"),
        ("conditional", "| R-FLAV | 421 M | 200 | 46.81 | 8.72 | 8.52 | 94.47 | 4.0 | 9.34 |"),
    ],
)
def test_paper_is_quoted_to_its_last_digit_without_being_asked_for(ran, tmp_path, table, row):
    tables.main([table, "--checkpoints", "5=C", "--real", "D", "--out", str(tmp_path)])
    assert f"{row}  | quoted: R-FLAV, arXiv" in (tmp_path / f"{table}.md").read_text()


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "no JSON", '{"R-FLAV": {"table_1a": {"columns": ["FVD"], "a": [1.0]}}}',
     '{"R-FLAV": {"source": "them", "table_1a": {"columns": ["FVD", "KVD"], "a": [1.0]}}}'],
    ids=["list", "empty", "text", "no source", "short row"],
)  # fmt: skip
def test_figures_that_cannot_be_quoted_are_refused_before_anything_is_measured(ran, tmp_path, content):
    (tmp_path / "theirs.json").write_text(content)
    with pytest.raises(ValueError, match=r"theirs\.json has no table_1a of R-FLAV .*; give a file like"):
        fusions(tmp_path / "out", "--quoted", str(tmp_path / "theirs.json"))
    assert not ran


def test_script_that_fails_is_quoted_in_one_sentence():
    with pytest.raises(ValueError, match=r"sample\.py failed: sample\.py: error: .*--model-ckpt"):
        tables.cli.call("sample.py")


@pytest.mark.parametrize("text", ["C", "runs/c"])
def test_checkpoint_without_a_row_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        tables.main(["fusions", "--checkpoints", text, "--real", "D"])
    assert f"--checkpoints {text} is not ROW=PATH" in capsys.readouterr().err
