"""Questions of the papers' studies: what a page asks, of how many pairs, and what comes of the votes."""

import json

import pytest

import evaluate
from evaluation.questions import SETS
from evaluation.study import table, tally, write_study
from tests.evaluation.test_study import Page, form, methods, page, picture, study, write_key


@pytest.mark.parametrize("name, quality", [("av-link", "audio quality"), ("av-link-a2v", "video quality")])
def test_study_of_av_link_asks_its_four_questions_of_50_pairs_and_counts_wins_in_percent(tmp_path, name, quality):
    """Ours wins on quality with 34 of 50 pairs of each voter, on the rest with all."""
    a, b = methods(tmp_path, 51)
    assert write_study(a, b, tmp_path / "handout", asked=SETS[name]) == 50
    key, found = json.loads((tmp_path / "handout.key.json").read_text()), Page(page(tmp_path / "handout"))
    names = [quality, "audio-video alignment", "semantic alignment", "temporal alignment"]
    assert list(key["questions"]) == names and key["voters"] == 5
    asked = {(r["data-pair"], r["data-question"]) for r in found.all("input") if r["type"] == "radio"}
    assert asked == {(str(i), q) for i in range(1, 51) for q in names}
    ours = {p["pair"]: "left" if p["left"]["method"] == "rolling" else "right" for p in key["pairs"]}
    other = {"left": "right", "right": "left"}
    votes = [(i, q, other[side] if q == quality and i > 34 else side) for i, side in ours.items() for q in names]
    forms = [form(tmp_path, f"voter {n}", *votes, study=key["study"]) for n in range(5)]
    rows = {line.split("  ")[0]: line for line in table(tally(tmp_path / "handout.key.json", forms)).splitlines()}
    assert "68.0 %" in rows[quality] and all("100.0 %" in rows[name] for name in names[1:])


def test_fewer_voters_than_the_study_takes_are_told_and_a_key_of_before_takes_any_number(tmp_path):
    key = study(tmp_path, 2)
    some = tally(tmp_path / "handout.key.json", [form(tmp_path, "Ann", (1, "sound", "left"), study=key["study"])])
    assert some["wanted"] == 5 and "voters: 1 of 5 asked for" in table(some)
    assert "voters: 1\n" in table(tally(write_key(tmp_path), [form(tmp_path, "Bob", *picture("l"))]))


def test_script_says_how_many_pairs_and_voters_the_questions_of_a_paper_take(tmp_path, capsys):
    both = ["--user-study", *map(str, methods(tmp_path, 4)), "--results-dir"]
    evaluate.main([*both, str(tmp_path / "link"), "--questions", "av-link-a2v"])
    assert "4 of 50 pairs; hand out the folder to 5 voters or more, keep" in capsys.readouterr().out
    assert page(tmp_path / "link").count('data-question="video quality"') == 4 * 3
    evaluate.main([*both, str(tmp_path / "flav"), "--pairs", "2"])
    assert "flav: 2 pairs; hand out" in capsys.readouterr().out
    assert 'data-question="motion"' in page(tmp_path / "flav")
