"""evaluate.py: what it writes, what it refuses and when, the same figures from two processes, sweeps."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
from argparse import Namespace
from fractions import Fraction
from html.parser import HTMLParser
from importlib.metadata import version

import pytest
import torch

import cli
import evaluate
import evaluation.plots
from data.av import write_clip
from evaluation.features import RANDOM, CompatSound, Motion, Sound
from tests.networks import Eye, cells, small_networks
from tests.processes import ROOT, run_ranks


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    small_networks(monkeypatch.setattr)


def place(folder, *seeds, shift=0.0, frames=16, size=16, fps=10):
    """Films of noise of one mean; `shift` makes them brighter."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed)
        cell = (90 + shift + 30 * torch.randn(1, 4, 4, 3, generator=rng)).clamp(0, 255).byte()
        still = cell.repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
        wave = 0.1 * torch.randn(frames * 16000 // fps, generator=rng)
        write_clip(folder / f"{seed:03d}.mp4", still.repeat(frames, 1, 1, 1), wave, fps)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """`fake` in a plain folder, `set` with train and test in class folders, `few` short of one."""
    root = tmp_path_factory.mktemp("films")
    place(root / "fake", *range(8), shift=20)
    place(root / "few", *range(5), shift=20)
    for i in range(8):
        place(root / "set" / "test" / ("red" if i % 2 else "blue"), 10 + i, size=32)
        place(root / "set" / "train" / ("red" if i % 2 else "blue"), 20 + i, fps=25, frames=41)
    return root


def argv(films, out, *more, **changed):
    flags = dict(fake=films / "fake", real=films / "set", results_dir=out, cache=out.parent / "cache", num=8,
                 features="random", device="cpu", batch_size=1) | changed  # fmt: skip
    return [*(f"--{name}={value}" for name, value in flags.items() if value is not None), *map(str, more)]


def run(films, out, *more, **changed):
    """What metrics.json says of a run."""
    evaluate.main(argv(films, out, *more, **changed))
    return json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)


def figures(metrics):
    return {figure["name"]: figure for figure in metrics["figures"]}


ALL = ("--metrics", "fvd", "kvd", "fad", "sync", "memorisation")


@pytest.fixture(scope="module")
def results(films, tmp_path_factory):
    """One run of all measures that short films allow; its figures are FVD, KVD, FAD, synchrony and memorisation."""
    out = tmp_path_factory.mktemp("work") / "new" / "results"
    with pytest.MonkeyPatch.context() as patch:
        small_networks(patch.setattr)
        run(films, out, *ALL, train=films / "set")
    return out


@pytest.fixture
def metrics(results):
    return json.loads((results / "metrics.json").read_text(), parse_constant=pytest.fail)


# ------------------------------------------------------------------------------------------------------------- record


NETWORKS = {"FVD", "KVD", "FAD compat", "FAD sound", "memorisation ratio", "memorised share"}


def test_folder_holds_figures_report_pictures_and_record(results):
    assert sorted(path.name for path in results.iterdir()) == [
        "closest_pairs.png", "metrics.json", "report.html", "run.json"]  # fmt: skip
    assert (results / "closest_pairs.png").read_bytes().startswith(b"\x89PNG")


def test_every_figure_has_its_value_protocol_and_counts(metrics):
    found = figures(metrics)
    assert set(found) > NETWORKS and all(isinstance(figure["value"], float) for figure in found.values())
    assert all(figure["protocol"] and figure["fake"] == figure["real"] == 8 for figure in found.values())
    assert all("antialias False" in found[name]["protocol"] for name in ("FVD", "KVD", "memorisation ratio"))


def test_folders_are_recorded_with_their_sizes_and_rates(metrics, films):
    fake, real, train = (metrics["folders"][name] for name in ("fake", "real", "train"))
    assert (fake["videos"], fake["sizes"], fake["fps"], fake["resampled_by_time"]) == (8, ["16x16"], [10], False)
    assert (real["path"], real["sizes"]) == (str(films / "set" / "test"), ["32x32"])
    assert (train["videos"], train["fps"], train["resampled_by_time"]) == (8, [25], True)


def test_networks_are_recorded_with_their_weights_and_what_they_cost(metrics):
    networks = metrics["features"]
    assert set(networks) == {"fake i3d", "real i3d", "train i3d", "fake audioclip_compat", "real audioclip_compat",
                             "fake audioclip", "real audioclip"}  # fmt: skip
    for network in networks.values():
        assert network["weights_sha256"] == RANDOM and network["computed"] == 8 and network["cached"] == 0
        assert network["seconds_of_2048_here"] == pytest.approx(2048 * network["seconds_per_clip"])
    assert set(metrics["seconds"]) == {"fvd", "kvd", "fad", "sync", "memorisation"}
    assert metrics["versions"]["torch"] == version("torch") and metrics["processes"] == 1


def test_figures_of_random_networks_are_labelled_everywhere(metrics, results):
    labelled = {name for name, figure in figures(metrics).items() if RANDOM in figure["note"]}
    assert labelled == NETWORKS
    assert (results / "report.html").read_text().count(f"<span class=note>{RANDOM}") == len(NETWORKS)


def test_second_run_computes_nothing_and_tells_the_same(films, results, metrics, monkeypatch, capsys):
    for kind in (Motion, Sound, CompatSound):
        monkeypatch.setattr(kind, "embed", None)
    again = run(films, results.parent / "again", *ALL, train=films / "set", cache=results.parent / "cache")
    assert again["figures"] == metrics["figures"]
    assert all(network["computed"] == 0 and network["cached"] == 8 for network in again["features"].values())
    table, summary = capsys.readouterr().out.strip().rsplit("\n", 1)
    assert summary == f"{results.parent / 'again'}: metrics.json, report.html"
    assert [line.split("  ")[0] for line in table.splitlines()[1:]] == [*figures(metrics)]


def test_antialias_is_said_and_gives_other_features(films, results, tmp_path):
    """The small network does not shrink frames, so what differs is the folder of the cache."""
    found = run(films, tmp_path / "out", "--antialias", "--metrics", "fvd", cache=results.parent / "cache")
    assert "antialias True" in figures(found)["FVD"]["protocol"] and found["features"]["fake i3d"]["computed"] == 8


class Page(HTMLParser):
    """What a browser would fetch, and which elements stay open."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_data(self, data):
        self.words.append(data)


def test_report_is_one_page_that_needs_nothing_else(results, metrics):
    text = (results / "report.html").read_text()
    page = Page(text)
    assert page.links and all(link.startswith("data:image/png;base64,iVBOR") for link in page.links)
    assert "http://" not in text and "https://" not in text and "url(" not in text and "script" not in page.tags
    assert set(figures(metrics)) < set(page.words) and RANDOM in page.words
    assert "networks" in page.words and any(f"torch {version('torch')}" in word for word in page.words)


def test_names_of_folders_are_no_tags_in_the_report(films, tmp_path):
    fake = shutil.copytree(films / "fake", tmp_path / "<b>&")
    run(films, tmp_path / "out", "--metrics", "fvd", fake=fake)
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "b" not in page.tags and any("<b>&: 8 videos" in word for word in page.words)


def test_skipped_files_are_named_in_the_record_and_counted_in_the_report(films, tmp_path):
    fake = shutil.copytree(films / "fake", tmp_path / "fake")
    (fake / "notes.mp4").write_text("no video")
    found = run(films, tmp_path / "out", "--metrics", "fvd", fake=fake)
    ((path, reason),) = found["folders"]["fake"]["problems"]
    assert path == str(fake / "notes.mp4") and reason.startswith("cannot be read")
    assert "skipped 1 cannot be read" in (tmp_path / "out" / "report.html").read_text()


# ------------------------------------------------------------------------------------------------------- counts allowed


def test_fewer_clips_are_compared_when_allowed_and_told(films, tmp_path):
    found = run(films, tmp_path / "out", "--allow-fewer", "--metrics", "fvd", fake=films / "few", num=2048)
    assert (figures(found)["FVD"]["fake"], figures(found)["FVD"]["real"]) == (5, 8)


def test_identical_folders_are_compared(films, tmp_path):
    found = figures(run(films, tmp_path / "out", "--metrics", "fvd", "kvd", real=films / "fake"))
    assert abs(found["FVD"]["value"]) < 1e-6 and found["KVD"]["value"] < 0


def test_what_is_no_number_is_null_in_the_record(tmp_path):
    dead = tmp_path / "dead"
    dead.mkdir()
    for i in range(6):
        write_clip(dead / f"{i}.mp4", torch.full((16, 16, 16, 3), 20 * i, dtype=torch.uint8), torch.zeros(1))
    found = figures(run(tmp_path, tmp_path / "out", "--metrics", "sync", fake=dead, real=dead, num=6))
    assert found["lag (frames)"]["value"] is None and "nan" in (tmp_path / "out" / "report.html").read_text()


# ---------------------------------------------------------------------------------------------------------- bad input


def complaint(capsys, *command) -> str:
    """The one sentence with which evaluate.py refuses; bars may come before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(functools.partial(evaluate.main, [str(part) for part in command]))
    out, err = capsys.readouterr()
    *_, line = err.splitlines()
    assert (
        end.value.code == 2 and err.count("error: ") == 1 and "error: " in line and "Traceback" not in err and not out
    )
    return line


def no_features(folder):
    return not list(folder.rglob("*.npz")) and not list(folder.rglob("metrics.json"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--num", 0], "--num-clips: 0 is not a whole number of 1 or more"),
        (["--metrics", "fod"], "--metrics: invalid choice: 'fod'"),
        (
            ["--metrics", "onset-acc", "--onset-tolerance", "0"],
            "--onset-tolerance 0 lets no onsets agree; give seconds",
        ),
        (
            ["--metrics", "fid", "--features", "pretrained", "--fid-weights", "x.pth"],
            "x.pth does not exist; get it from",
        ),
        (["--metrics", "memorisation"], "memorisation compares with the videos trained on; give --train"),
        (["--real", "nowhere"], "nowhere is no folder; give one with videos"),
        (["--split", "valid"], "has no folder 'valid', but train and test; give --split"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["--num", 9], "has 8 clips of 16 frames at 10 fps, not 9; give --num 8, or --allow-fewer"),
        (["--num", 3], "gives 3 clips, and distances need 4"),
        (["--num", 5, "--metrics", "fvd", "sync"], "gives 5 videos, and sync shuffles at least 6"),
        (["--metrics", "fvd", "long"], "has 0 videos of 64 frames or more at 10 fps"),
        (["--sweep", "num_timesteps"], "--sweep takes an option of sample.py and its values, and --model-ckpt"),
    ],
)
def test_what_cannot_be_is_refused_before_features_are_computed(films, tmp_path, capsys, more, said):
    assert said in complaint(capsys, *argv(films, tmp_path / "out"), *more)
    assert no_features(tmp_path)


@pytest.mark.parametrize("missing", ["fake", "real"])
def test_missing_folder_is_asked_for(films, tmp_path, capsys, missing):
    assert f"--{missing} is missing" in complaint(capsys, *argv(films, tmp_path / "out", **{missing: None}))


def test_file_in_the_way_of_the_results_or_the_cache(films, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name in ("results_dir", "cache"):
        line = complaint(capsys, *argv(films, tmp_path / "out", **{name: tmp_path / "file"}))
        assert "cannot be written" in line and "choose another output folder" in line


def test_unusable_folders_say_why(films, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    place(tmp_path / "short", *range(4), frames=15)
    shutil.copytree(films / "few", tmp_path / "mixed")
    place(tmp_path / "one", 1)
    (tmp_path / "mixed" / "notes.mp4").write_text("no video")
    expected = {
        "empty": ".webm, .wmv); give a folder that has some",
        "short": "has no usable video: 000.mp4: fewer than 16 frames at 10 fps: 15;",
        "mixed": "has 5 clips of 16 frames at 10 fps, not 8 (1 files cannot be used: notes.mp4: cannot be read",
        "one": "has 1 clips of 16 frames at 10 fps, not 8; give --num 1, or --allow-fewer",
    }
    for name, said in expected.items():
        assert said in complaint(capsys, *argv(films, tmp_path / "out", fake=tmp_path / name)), name
        assert said in complaint(capsys, *argv(films, tmp_path / "out", real=tmp_path / name)), name
    line = complaint(capsys, *argv(films, tmp_path / "out", "--allow-fewer", fake=tmp_path / "one"))
    assert "gives 1 clips, and distances need 4" in line
    assert no_features(tmp_path)


def test_missing_sound_is_a_problem_only_of_measures_that_listen(films, tmp_path, capsys):
    import av

    fake = shutil.copytree(films / "fake", tmp_path / "fake")
    with av.open(str(fake / "000.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 16
        blank = av.VideoFrame(16, 16, "rgb24")
        for _ in range(16):
            container.mux(stream.encode(blank))
        container.mux(stream.encode(None))
    line = complaint(capsys, *argv(films, tmp_path / "out", "--metrics", "fvd", "fad", fake=fake))
    assert (
        "has 7 clips" in line and "(1 files cannot be used: 000.mp4: no sound track)" in line and no_features(tmp_path)
    )
    assert figures(run(films, tmp_path / "out", "--metrics", "fvd", fake=fake))["FVD"]["fake"] == 8


def test_features_that_are_not_finite_name_their_file(films, tmp_path, capsys, monkeypatch):
    def spoilt(self, clip):
        return cells(self, clip) * (torch.nan if clip.video.path.name == "005.mp4" else 1)

    monkeypatch.setattr(Motion, "read", spoilt)
    line = complaint(capsys, *argv(films, tmp_path / "out", "--metrics", "fvd"))
    assert f"i3d features of {films / 'fake' / '005.mp4'} from frame 0 are not finite; replace that file" in line
    assert not (tmp_path / "out" / "metrics.json").exists()


# ------------------------------------------------------------------------------------------------------------ weights


def pretrained(films, out, weights, *more):
    return argv(films, out, "--metrics", "fvd", *more, features="pretrained", i3d_weights=weights)


def test_missing_weights_say_where_to_get_them_and_how_to_do_without(films, tmp_path, capsys):
    line = complaint(capsys, *pretrained(films, tmp_path / "out", tmp_path / "eye.pt"))
    assert f"{tmp_path / 'eye.pt'} does not exist; get it from {Motion.source}" in line
    assert "or give --features random" in line and no_features(tmp_path)
    line = complaint(capsys, *argv(films, tmp_path / "out", "--metrics", "fad", features="pretrained",
                                   audioclip_weights=tmp_path / "ear.pt"))  # fmt: skip
    assert f"{tmp_path / 'ear.pt'} does not exist; get it from {Sound.source}" in line


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda table: table.pop("look.bias"), "lacks look.bias"),
        (lambda table: table.update(more=torch.zeros(2)), "has unknown more"),
        (lambda table: table.update({"look.bias": torch.zeros(2)}), "has look.bias (2,), not (12,)"),
    ],
)
def test_weights_of_another_network_are_refused_by_their_keys(films, tmp_path, capsys, spoil, said):
    table = Eye().state_dict()
    spoil(table)
    torch.save(table, tmp_path / "eye.pt")
    line = complaint(capsys, *pretrained(films, tmp_path / "out", tmp_path / "eye.pt"))
    assert said in line and f"get it from {Motion.source}" in line and no_features(tmp_path)


def test_published_weights_are_recorded_by_their_hash_and_their_figures_bear_no_label(films, tmp_path):
    torch.save(Eye().state_dict(), tmp_path / "eye.pt")
    evaluate.main(pretrained(films, tmp_path / "out", tmp_path / "eye.pt"))
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    sha256 = hashlib.sha256((tmp_path / "eye.pt").read_bytes()).hexdigest()
    assert found["features"]["fake i3d"]["weights_sha256"] == sha256 and figures(found)["FVD"]["note"] == ""
    report = (tmp_path / "out" / "report.html").read_text()
    assert sha256 in report and RANDOM not in report


# ---------------------------------------------------------------------------------------------------------- processes


def test_two_processes_give_the_figures_of_one(films, results, metrics, tmp_path):
    """A script of their own gives them the same small networks. Batches of one leave no rounding between the two."""
    (tmp_path / "small.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.networks import small_networks\nsmall_networks(setattr)\n"
        "import cli, evaluate\ncli.run(evaluate.main)\n"
    )
    measures = [name for name in ALL if name != "sync"]  # its librosa takes seconds to import, in each
    ours = argv(films, tmp_path / "out", *measures, train=films / "set", num=None, num_clips=8)
    first, second = run_ranks(2, tmp_path / "small.py", *ours)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["processes"] == 2 and all(network["computed"] == 8 for network in found["features"].values())
    one, two = figures(metrics), figures(found)
    assert two.keys() == NETWORKS
    for name in two:
        numbers = [key for key, value in one[name].items() if isinstance(value, float)]
        assert [two[name][key] for key in numbers] == pytest.approx([one[name][key] for key in numbers], abs=1e-6)
    assert (first.printed + second.printed).count("metrics.json, report.html") == 1


# ------------------------------------------------------------------------------------------------------------- sweeps


def test_sweep_measures_each_value_against_its_seconds(films, tmp_path, monkeypatch, capsys):
    made = []

    def sampled(args, folder, option, value):
        made.append((option, value))
        place(folder, *range(8), shift=100 / int(value))
        (folder / "run.json").write_text(json.dumps({"seconds": 4.0 * int(value), "made": 8}))

    monkeypatch.setattr(evaluate, "sampled", sampled)
    sweep = ("--sweep", "num_timesteps", 1, 4, "--model-ckpt", "runs/x", "--metrics", "fvd", "kvd")
    evaluate.main(argv(films, tmp_path / "out", *sweep, fake=None))
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert made == [("num-timesteps", "1"), ("num-timesteps", "4")]
    assert [(row["num-timesteps"], row["seconds_per_clip"]) for row in found["rows"]] == [("1", 0.5), ("4", 2)]
    fvd = [figures(row)["FVD"]["value"] for row in found["rows"]]
    assert fvd[0] > 2 * fvd[1] and all(RANDOM in figures(row)["KVD"]["note"] for row in found["rows"])
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"num-timesteps {value}" for value in (1, 4)
    ]


def test_sweep_over_two_options_measures_each_with_each_and_draws_a_curve_a_value(films, tmp_path, monkeypatch, capsys):
    made, drawn = [], []

    def sampled(args, folder, *asked):
        made.append(asked)
        slow, better = 1 / float(Fraction(asked[1])), asked[3] == "ab2"
        place(folder, *range(8), shift=20 * slow / (1 + better))
        (folder / "run.json").write_text(json.dumps({"seconds": 8 / slow, "made": 8}))

    draw = evaluation.plots.against_seconds
    monkeypatch.setattr(evaluate, "sampled", sampled)
    monkeypatch.setattr(evaluation.plots, "against_seconds", lambda points: drawn.append(points) or draw(points))
    sweep = ("--sweep", "num_timesteps", "1/2", 1, "--sweep", "solver", "euler", "ab2")
    command = argv(films, tmp_path / "out", *sweep, "--model-ckpt", "runs/x", "--metrics", "fvd", fake=None)
    evaluate.main(command)
    asked = [("1/2", "euler"), ("1/2", "ab2"), ("1", "euler"), ("1", "ab2")]
    assert made == [("num-timesteps", n, "solver", solver) for n, solver in asked]
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [(row["num-timesteps"], row["solver"]) for row in found["rows"]] == asked
    curves = drawn[0]["FVD"]
    assert {name: [(x, label) for x, _, label in places] for name, places in curves.items()} == {
        f"solver {solver}": [(0.5, "1/2"), (1, "1")] for solver in ("euler", "ab2")
    }
    (axes, *_) = draw(drawn[0]).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["solver euler", "solver ab2"]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[y for _, y, _ in c] for c in curves.values()]
    assert "num-timesteps 1/2, solver ab2: 0.500 s a clip, FVD" in capsys.readouterr().out
    twice = complaint(capsys, *argv(films, tmp_path / "out", *sweep, "--sweep", "solver", "heun", "--model-ckpt=x"))
    assert "--sweep names an option twice; give all of its values at once" in twice


def sweep_arguments(**changed):
    return Namespace(**(dict(model_ckpt="runs/x", num=8, seed=3, device="cpu") | changed))


def test_sweep_samples_as_a_user_would_and_says_why_it_failed(tmp_path, monkeypatch):
    commands = []

    def spawned(command, **_):
        commands.append(command)
        return Namespace(returncode=2, stderr="bar\nsample.py: error: no checkpoint; give one\n")

    monkeypatch.setattr(subprocess, "run", spawned)
    with pytest.raises(
        ValueError, match=r"--num-timesteps 5: sample\.py failed: sample\.py: error: no checkpoint; give one"
    ):
        evaluate.sampled(sweep_arguments(), tmp_path / "films", "num-timesteps", "5")
    asked = ["--model-ckpt", "runs/x", "--num-videos", "8", "--num-timesteps", "5"]
    how = ["--results-dir", str(tmp_path / "films"), "--seed", "3", "--device", "cpu"]
    assert commands == [[sys.executable, str(ROOT / "sample.py"), *asked, *how]]


@pytest.mark.parametrize(("name", "value"), [("model_ckpt", "runs/y"), ("num", 9), ("seed", 4)])
def test_films_of_an_earlier_sweep_are_kept_but_not_mistaken_for_others(tmp_path, monkeypatch, name, value):
    monkeypatch.setattr(subprocess, "run", None)
    arguments = {"model_ckpt": "runs/x", "num_videos": 8, "seed": 3}
    (tmp_path / "run.json").write_text(json.dumps({"arguments": arguments}))
    evaluate.sampled(sweep_arguments(), tmp_path, "num-timesteps", "5")
    with pytest.raises(ValueError, match=r"holds films of .*; give another --results-dir, or remove it"):
        evaluate.sampled(sweep_arguments(**{name: value}), tmp_path, "num-timesteps", "5")
