"""evaluate.py on a part of the clips: which ones, what it says of them, and when it says that they are too few."""

import shutil
from pathlib import Path

import pytest

from tests.networks import small_networks
from tests.test_evaluate import figures, place, run


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    small_networks(monkeypatch.setattr)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """`fake` in a plain folder, `set` with a class in each of two folders, the darker one first."""
    root = tmp_path_factory.mktemp("films")
    place(root / "fake", *range(8), shift=20)
    place(root / "set" / "test" / "blue", *range(10, 14))
    place(root / "set" / "test" / "red", *range(20, 24), shift=60)
    return root


def test_figures_of_some_clips_are_those_of_the_same_videos_under_other_names(films, tmp_path):
    """Sorted by name the first six would be of another class."""
    names = {"blue": "z", "red": "a"}
    for path in (films / "set" / "test").rglob("*.mp4"):
        target = tmp_path / "renamed" / names[path.parent.name] / f"{999 - int(path.stem)}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    one, two = (run(films, tmp_path / real.name, "--metrics", "fvd", "kvd", num=6, real=real)
                for real in (films / "set", tmp_path / "renamed"))  # fmt: skip
    for name in ("FVD", "KVD"):
        for number in ("value", "low", "high", "reference"):
            assert figures(one)[name][number] == pytest.approx(figures(two)[name][number], rel=1e-6)
    chosen = [Path(name).parent.name for name in one["folders"]["real"]["chosen"]]
    assert sorted(chosen) == ["blue"] * 3 + ["red"] * 3


def test_chosen_files_are_listed_and_another_seed_chooses_others(films, tmp_path):
    lists = {}
    for seed in (0, 1):
        found = run(films, tmp_path / f"out{seed}", "--metrics", "fvd", num=4, seed=seed)["folders"]
        assert f"seed {seed}" in found["fake"]["chosen_by"] and len(found["real"]["chosen"]) == 4
        assert all((films / "fake" / name).is_file() for name in found["fake"]["chosen"])
        lists[seed] = found["fake"]["chosen"]
    assert lists[0] != lists[1] and "4 chosen by hash of the content" in (tmp_path / "out1/report.html").read_text()


def test_too_few_clips_are_warned_of_with_real_against_real_at_that_number(films, tmp_path, capsys):
    found = figures(run(films, tmp_path / "out", "--metrics", "fvd", num=4))["FVD"]
    out, err = capsys.readouterr()
    assert f"warning: {found['warning']}" in err.splitlines() and "not told from real" in out
    assert f"real against real, 4 clips a side, is {found['reference']:.4g}" in found["warning"]
    assert "of 4 clips says nothing" in (tmp_path / "out" / "report.html").read_text()
