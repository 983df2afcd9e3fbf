"""evaluate.py with networks that listen: stand-ins on real films, and what is refused before anything is heard."""

import json

import pytest

import evaluate
from evaluation.features import RANDOM
from evaluation.measures import measures
from tests.listeners import tiny_tagger
from tests.test_evaluate import argv, complaint, figures, no_features, place, run

HEARD = ("--metrics", "clap", "clap-sound", "kl", "inception")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """`fake` with prompts, and `set/test` with the same names in a class folder."""
    root = tmp_path_factory.mktemp("films")
    place(root / "fake", *range(6), shift=20)
    place(root / "set" / "test" / "red", *range(6))
    rows = ({"file": f"{i:03d}.mp4", "prompt": f"a ball {i}"} for i in range(6))
    (root / "fake" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def heard(films, out, *more, **changed):
    return run(films, out, *HEARD, *more, **{"num": 6, "features": "pretrained"} | changed)


def test_every_metric_of_the_command_is_in_the_registry_and_the_reverse():
    assert set(evaluate.METRICS) == set(measures())


def test_stand_ins_are_asked_for_by_name_and_told_in_table_record_and_report(films, tmp_path, capsys):
    found = heard(films, tmp_path / "out", "--clap", "random", "--tagger", "random")
    table = capsys.readouterr().out
    assert set(figures(found)) == {"CLAP score", "CLAP score of sounds", "KL of classes", "inception score"}
    for name, figure in figures(found).items():
        assert "random stand-in for" in figure["protocol"] and RANDOM in figure["note"] and figure["fake"] == 6
        (line,) = (line for line in table.splitlines() if line.startswith(f"{name}  "))
        assert "random stand-in for" in line and RANDOM in line
    assert RANDOM in (tmp_path / "out" / "report.html").read_text()
    assert {network["weights_sha256"] for network in found["features"].values()} == {RANDOM}
    assert found["data"]["KL of classes"]["pairs"][3]["with"] == str(films / "set" / "test" / "red" / "003.mp4")
    again = heard(films, tmp_path / "again", features="random")
    assert again["figures"] == found["figures"]
    assert all(network["computed"] == 0 for network in again["features"].values())


def test_tagger_of_a_directory_is_named_with_its_weights(films, tmp_path, capsys):
    folder = tiny_tagger(tmp_path / "tagger")
    found = run(films, tmp_path / "out", "--metrics", "kl", "--tagger", folder, num=6, features="pretrained")
    kl = figures(found)["KL of classes"]
    assert f"tagger {folder}" in kl["note"] and RANDOM not in kl["note"] and "softmax over 5 logits" in kl["protocol"]
    assert f"tagger {folder}" in capsys.readouterr().out
    assert all(len(network["weights_sha256"]) == 64 for network in found["features"].values())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (HEARD, "CLAP laion/clap-htsat-unfused cannot be loaded"),
        (("--metrics", "kl", "--tagger", "nowhere"), "give --tagger the directory or hub id of a tagger of "
         "transformers, or give --features random to try the rest without"),
        (("--metrics", "sync", "clap", "--clap", "random", "--fake", "SET"), "has no caption for any of its videos"),
        (("--metrics", "sync", "kl", "--tagger", "random", "--fake", "ODD"), "0 of 7 videos"),
        (("--metrics", "sync", "clap-sound", "--clap", "random", "--fake", "ODD"), "0 of 7 videos"),
        (("--metrics", "clap", "--sweep", "num_timesteps", "1", "--model-ckpt", "x"), "samples without prompts"),
    ],
)  # fmt: skip
def test_what_cannot_be_heard_is_refused_before_anything_is(films, tmp_path, capsys, more, said):
    """Not even what another measure would look at."""
    place(tmp_path / "odd", *range(20, 27))
    places = {"SET": films / "set", "ODD": tmp_path / "odd"}
    given = argv(films, tmp_path / "out", features="pretrained", num=6)
    assert said in complaint(capsys, *given, *(places.get(part, part) for part in more))
    assert no_features(tmp_path)


def test_tolerance_of_onsets_that_is_given_is_the_figures_and_needs_no_network(films, tmp_path, capsys):
    found = run(films, tmp_path / "out", "--metrics", "onset-acc", "--onset-tolerance", "0.25", num=6)
    assert set(figures(found)) == {"onset-acc@0.25s"} and found["features"] == {}
    assert figures(found)["onset-acc@0.25s"]["value"] == 1, "pictures differ, sounds do not"
    assert "onset-acc@0.25s" in capsys.readouterr().out
