"""benchmarks/systems.py and avlink.py: what is trained and sampled for each row, and the tables of what is there."""

import json
from pathlib import Path

import pytest

import train
from benchmarks import avlink, systems
from benchmarks.rows import Record
from benchmarks.systems_table import markdown

FILM = {
    "f1": 0.5, "interval": [0.25, 0.75], "shuffled": 0.125, "seconds_a_clip": 2.0, "peak_mib": 700.0,
    "onsets": {"accuracy": 0.875, "interval": [0.75, 1.0]}, "av_align": {"mean": 0.375, "shuffled": 0.1875},
    "motion": {"mean": 1.5, "low": 1.25, "high": 1.75},
}  # fmt: skip


def stage(steps, seconds):
    return {"steps": steps, "frames": 100 * steps, "step_seconds": seconds, "cpu_seconds": 10.0, "peak_mib": 800.0,
            "parameters": 2_000_000, "learning": 500_000}  # fmt: skip


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A record, where its videos would be, and the trainings and films that were asked for."""
    calls = []

    def trained(how, steps, seed, begins=()):
        run = Path(how[how.index("--experiment-dir") + 1])
        calls.append(("train", run.name, steps, [path.name for path in begins], how))
        return stage(steps, steps / 10)

    def sampled(task, run, work, frames, real, how):
        calls.append((task, run.name, [str(x) for x in how]))
        return FILM

    for module in (systems, avlink):
        monkeypatch.setattr(module, "trained", trained)
        monkeypatch.setattr(module, "sampled", sampled)
    monkeypatch.setattr(systems, "frames_per_step", lambda how: 100)
    data = systems.Data(tmp_path, tmp_path / "data", tmp_path / "clips", tmp_path / "prompts.txt", [None] * 6)
    return Record(tmp_path / "x.json", {}), data, calls


def args_of(**how):
    from argparse import Namespace

    return Namespace(**how)


@pytest.mark.parametrize("row", systems.ROWS.values(), ids=systems.ROWS)
def test_stages_of_a_row_have_all_of_its_frames_and_are_what_train_takes(row, tmp_path):
    assert sum(stage.share for stage in row.stages) == pytest.approx(1)
    names = [stage.name for stage in row.stages]
    assert all(begun in names[: names.index(stage.name)] for stage in row.stages for begun in stage.begins)
    for part in row.stages:
        if not part.how.startswith(f"@{systems.BALLS / 'avlink.args'}"):
            args = train.parse([*part.how.split(), "--data-path", "D", "--experiment-dir", str(tmp_path)])
            assert args.text_encoder == "words" and args.cuts == 0
    assert set(row.tasks) <= {"joint", "a2v", "v2a"}


def test_as_many_frames_then_as_many_seconds_shared_among_stages(ran):
    record, data, calls = ran
    systems.measure(record, args_of(frames=100_000, seconds=40), "syncflow", 1, data)
    trainings = [call[1:4] for call in calls if call[0] == "train"]
    assert trainings == [
        ("syncflow-video_400", 400, []), ("syncflow_600", 600, ["syncflow-video_400"]),
        ("syncflow-video_160", 160, []), ("syncflow_240", 240, ["syncflow-video_160"]),
    ]  # fmt: skip
    assert set(record.figures) == {
        f"{limit}/syncflow/1/{part}" for limit in ("100000 frames", "40 s") for part in ("training", "joint", "v2a")
    }
    count = len(calls)
    systems.measure(record, args_of(frames=100_000, seconds=40), "syncflow", 1, data)
    assert len(calls) == count


def test_films_come_of_the_last_stage_by_prompts_or_by_the_held_out_videos(ran):
    record, data, calls = ran
    systems.measure(record, args_of(frames=100_000, seconds=0), "link", 0, data)
    films = {call[0]: call[1:] for call in calls if call[0] != "train"}
    assert set(films) == {"joint", "a2v", "v2a"} and {run for run, _ in films.values()} == {"link_500"}
    assert "--prompts" in films["joint"][1] and str(data.videos) in films["v2a"][1]


def test_table_has_a_line_for_each_row_that_is_there_and_says_what_cannot_be_done(ran):
    record, data, _ = ran
    for row in ("c", "syncflow"):
        systems.measure(record, args_of(frames=100_000, seconds=0), row, 0, data)
    del record.figures["100000 frames/c/0/v2a"]
    synchrony, pictures, costs = markdown(record.figures, systems.ROWS).split("\n\n")
    assert synchrony.splitlines()[0].startswith("| 100000 frames of training | text to both: onset accuracy |")
    full, none, missing = "0.875 (0.750 to 1.000) | 0.500 (0.250 to 0.750) | 0.125", "— | — | —", " |  | "
    assert synchrony.splitlines()[2:] == [
        f"| R-FLAV, fusion c | {full} | {full} | {missing} |", f"| SyncFlow | {full} | {none} | {full} |",
    ]  # fmt: skip
    motion = "1.500 (1.250 to 1.750)"
    assert f"| SyncFlow | 0.375; chance 0.188 | — | 0.375; chance 0.188 | {motion} | — |" in pictures
    assert (
        "| SyncFlow | 2,000,000 | 500,000 | 400 + 600 | 100,000 | 100 | 20 | 800 | 2.000 | — | 2.000 | 700 |" in costs
    )
    assert all(
        len({line.count("|") for line in part.strip().splitlines()}) == 1 for part in (synchrony, pictures, costs)
    )


def test_avlink_trains_towers_once_a_seed_and_the_ablations_of_the_first_seed_alone(ran):
    """Rows A29 to A34."""
    record, data, calls = ran
    args = args_of(seeds=[0, 1], only=[*avlink.ROWS, "a2v", "guidance"], steps=[7, 8, 9], cfg_scale=2.0)
    for seed in args.seeds:
        avlink.Seed(record, args, seed, data).measure()
    trainings = [call[1:] for call in calls if call[0] == "train"]
    assert [run for run, *_ in trainings].count("video") == 2 and trainings[0][1] == 7 and trainings[1][1] == 8
    links = [(run, how[how.index("--stage") + 1 :]) for run, _, begins, how in trainings if begins]
    assert [run for run, _ in links].count("main") == 2 and [run for run, _ in links].count("symcross") == 1
    assert all(begins in ([], ["video", "audio"]) for _, _, begins, _ in trainings)
    hows = {run: " ".join(map(str, how)) for run, how in links}
    assert "--conditioning-times uniform" in hows["uniform"] and "--conditioning-times 0.5 0.8" in hows["time-0.5"]
    assert "--variant no-reinject" in hows["no-reinject"] and hows["a2v"].startswith("a2v")
    scales = [how[how.index("--cfg-scale", how.index("--cfg-scale") + 1) + 1] for task, run, how in
              (call for call in calls if call[0] == "v2a") if how.count("--cfg-scale") == 2]  # fmt: skip
    assert scales == ["1", "2", "4", "5", "6", "8"]


def test_avlinks_table_quotes_the_paper_beside_what_is_there(ran):
    record, data, _ = ran
    args = args_of(seeds=[0, 1], only=["main", "no-reinject", "time-0.5", "guidance"], steps=[7, 8, 9], cfg_scale=2.0)
    for seed in args.seeds:
        avlink.Seed(record, args, seed, data).measure()
    ablations, times, guidance, *_ = avlink.markdown(record.figures).split("\n\n")
    mean = "0.875 (0.875 to 0.875, 2 seeds) | 0.500 (0.500 to 0.500, 2 seeds) | 0.125 (0.125 to 0.125, 2 seeds)"
    assert f"| conditioning time | fixed, 0.96 | {mean} | 0.415 |" in ablations
    one = "0.875 (0.750 to 1.000) | 0.500 (0.250 to 0.750) | 0.125"
    assert f"| injection | no reinjection | {one} | 0.365 |" in ablations and "symmetric" not in ablations
    assert [line.split(" | ")[0] for line in times.splitlines()[2:]] == ["| 0.5", "| 0.96"]
    assert guidance.count("\n") == 7


def test_rows_that_are_quoted_are_in_the_papers_table():
    theirs = avlink.quoted(avlink.PAPER)
    assert {row.quoted for row in avlink.ROWS.values() if row.quoted} <= theirs.keys()
    assert theirs["after block 1"] == "0.433" and json.loads(avlink.PAPER.read_text())["AV-Link"]
