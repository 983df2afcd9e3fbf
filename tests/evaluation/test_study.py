"""A study that is blind and can be unblinded by its key, and a count of votes that people could do by hand."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy.stats import binomtest

from evaluation.questions import SETS, Questions
from evaluation.study import bootstrap_share, sign_test, table, tally, wilson, write_study

QUESTIONS = SETS["r-flav"].texts
VOID = {"meta", "input", "link", "br", "img", "hr", "source"}


def videos(folder: Path, *names: str) -> Path:
    """A folder of files whose bytes say whose they are."""
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        (folder / name).write_bytes(f"{folder} {name}".encode() * (i + 1))
    return folder


def methods(root: Path, n: int = 6) -> tuple[Path, Path]:
    names = [f"clip_{i:05d}.mp4" for i in range(n)]
    return videos(root / "rolling", *names), videos(root / "baseline", *names)


def study(root: Path, n: int = 6, pairs: int = 100, seed: int = 0, out: str = "handout") -> dict:
    """Write a study of n pairs and return its key."""
    a, b = (root / name for name in ("rolling", "baseline"))
    if not a.exists():
        methods(root, n)
    write_study(a, b, root / out, pairs, seed)
    return json.loads((root / f"{out}.key.json").read_text())


def left_titles(key: dict) -> list[str]:
    return [pair["left"]["method"] for pair in key["pairs"]]


def write_key(root: Path, pairs: int = 4) -> Path:
    """A key made by hand: A is on the left of odd pairs."""
    sides = [("A's", "B's") if i % 2 else ("B's", "A's") for i in range(1, pairs + 1)]
    entries = [
        {"pair": i, "left": {"method": left, "file": "x.mp4"}, "right": {"method": right, "file": "x.mp4"}}
        for i, (left, right) in enumerate(sides, 1)
    ]
    questions = {"picture": "Which picture?", "sound": "Which sound?"}
    path = root / "s.key.json"
    path.write_text(json.dumps({"study": "abc", "a": "A's", "b": "B's", "questions": questions, "pairs": entries}))
    return path


def form(root: Path, voter: str, *votes: tuple, study: str = "abc", name: str | None = None) -> Path:
    path = root / (name or f"votes_{voter}.json")
    votes = [dict(zip(("pair", "question", "choice"), vote)) for vote in votes]
    path.write_text(json.dumps({"study": study, "voter": voter, "votes": votes}))
    return path


def picture(choices: str) -> list[tuple]:
    """Votes on the picture of pair 1, 2, ...: l, r or s."""
    return [(i, "picture", {"l": "left", "r": "right", "s": "same"}[c]) for i, c in enumerate(choices, 1)]


class Page(HTMLParser):
    """Reads a page and fails on a tag that closes another."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def handout(tmp_path):
    study(tmp_path)
    return tmp_path / "handout"


def page(handout: Path) -> str:
    return (handout / "index.html").read_text()


def test_what_voters_get_names_neither_folders_nor_files(handout):
    names = {path.name for path in handout.iterdir()}
    assert names == {"index.html", *(f"pair_{i:03d}_{side}.mp4" for i in range(1, 7) for side in ("left", "right"))}
    assert not re.search(f"rolling|baseline|clip_|{re.escape(str(handout.parent))}", page(handout))


def test_copies_share_no_date_or_inode_with_the_originals(handout):
    copies = list(handout.glob("*.mp4"))
    originals = {path.stat().st_ino for path in handout.parent.glob("*/clip_*.mp4")}
    assert len({path.stat().st_mtime_ns for path in copies}) == 1
    assert not any(path.is_symlink() or path.stat().st_ino in originals for path in copies)


def test_key_inverts_the_shuffle_and_lies_outside_the_folder(tmp_path):
    key = study(tmp_path)
    assert not list((tmp_path / "handout").rglob("*key*"))
    for pair in key["pairs"]:
        for side in ("left", "right"):
            original = Path(key["folders"][pair[side]["method"]]) / pair[side]["file"]
            assert (tmp_path / "handout" / f"pair_{pair['pair']:03d}_{side}.mp4").read_bytes() == original.read_bytes()
        assert pair["left"]["file"] == pair["right"]["file"] and pair["left"]["method"] != pair["right"]["method"]


def test_each_method_is_on_the_left_in_half_of_the_pairs(tmp_path):
    counts = [left_titles(study(tmp_path, 7, seed=seed, out=str(seed))).count("rolling") for seed in range(6)]
    assert set(counts) == {3, 4}


def test_side_of_a_pair_is_a_toss_of_a_coin(tmp_path):
    first = [left_titles(study(tmp_path, 4, seed=seed, out=str(seed)))[0] for seed in range(60)]
    assert 18 <= first.count("rolling") <= 42  # 99.8 % of fair coins


def test_same_seed_gives_the_same_study_and_another_seed_another(tmp_path):
    key, again, other = (study(tmp_path, 8, seed=seed, out=out) for seed, out in ((3, "x"), (3, "y"), (4, "z")))
    assert key == again and (tmp_path / "x/index.html").read_text() == (tmp_path / "y/index.html").read_text()
    assert key["study"] != other["study"] and key["pairs"] != other["pairs"]


def test_studies_of_other_methods_do_not_share_their_sides(tmp_path):
    key = study(tmp_path, 16)
    (tmp_path / "baseline").rename(tmp_path / "third")
    write_study(tmp_path / "rolling", tmp_path / "third", tmp_path / "out", 16)
    other = json.loads((tmp_path / "out.key.json").read_text())
    assert [t == "rolling" for t in left_titles(key)] != [t == "rolling" for t in left_titles(other)]


def test_changed_video_is_another_study(tmp_path):
    before = study(tmp_path, out="x")["study"]
    (tmp_path / "rolling/clip_00002.mp4").write_bytes(b"generated again")
    assert study(tmp_path, out="y")["study"] != before


def test_few_pairs_are_drawn_from_all(tmp_path):
    files = [[pair["left"]["file"] for pair in study(tmp_path, 9, 3, seed, str(seed))["pairs"]] for seed in range(12)]
    assert all(len(set(names)) == 3 for names in files) and len({name for names in files for name in names}) == 9


def test_equal_names_pair_and_the_others_by_order(tmp_path):
    a = videos(tmp_path / "a", "b.mp4", "c.mp4", "x.mp4", "notes.txt", ".hidden.mp4")
    b = videos(tmp_path / "b", "a.mp4", "c.mp4", "x.mp4")
    assert write_study(a, b, tmp_path / "out", 100) == 3
    pairs = json.loads((tmp_path / "out.key.json").read_text())["pairs"]
    found = {tuple(p[s]["file"] for s in sorted(("left", "right"), key=lambda s: p[s]["method"])) for p in pairs}
    assert found == {("c.mp4", "c.mp4"), ("x.mp4", "x.mp4"), ("b.mp4", "a.mp4")}


def test_partners_of_a_smaller_folder_are_not_the_first_of_a_larger_one(tmp_path):
    """Sorted by name the first eight would be of one class."""
    a = videos(tmp_path / "a", *(f"generated_{i}.mp4" for i in range(8)))
    b = videos(tmp_path / "b", *(f"{name}_{i:02d}.mp4" for name in ("blue", "green", "red") for i in range(20)))
    assert write_study(a, b, tmp_path / "out", 100) == 8
    pairs = json.loads((tmp_path / "out.key.json").read_text())["pairs"]
    real = [pair[side]["file"] for pair in pairs for side in ("left", "right") if pair[side]["method"] == "b"]
    assert {name.partition("_")[0] for name in real} == {"blue", "green", "red"} and len(set(real)) == 8


def test_folders_of_equal_name_are_titled_by_their_parents(tmp_path):
    a, b = (videos(tmp_path / name / "samples", "0.mp4") for name in ("ours", "theirs"))
    write_study(a, b, tmp_path / "out", 1)
    key = json.loads((tmp_path / "out.key.json").read_text())
    assert (key["a"], key["b"]) == ("ours", "theirs")


def test_nothing_half_written_is_left(tmp_path):
    study(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_page_is_closed_html_with_every_video_and_every_choice_once(handout):
    found = Page(page(handout))
    assert sorted(v["src"] for v in found.all("video")) == sorted(p.name for p in handout.glob("*.mp4"))
    assert all("controls" in v and v["preload"] == "metadata" for v in found.all("video"))
    radios = [(r["data-pair"], r["data-question"], r["value"]) for r in found.all("input") if r["type"] == "radio"]
    choices = {(str(i), q, c) for i in range(1, 7) for q in QUESTIONS for c in ("left", "right", "same")}
    assert len(radios) == len(choices) and set(radios) == choices
    assert len({r["name"] for r in found.all("input") if r["type"] == "radio"}) == 6 * len(QUESTIONS)


def test_ids_are_unique_and_the_script_finds_all_it_asks_for(handout):
    ids = [attrs["id"] for _, attrs in Page(page(handout)).tags if "id" in attrs]
    asked = set(re.findall(r'getElementById\("([^"]+)"\)', page(handout)))
    assert len(ids) == len(set(ids)) and asked <= set(ids) and {"votes", "voter", "bar", "done", "save"} <= asked


def test_page_needs_no_network(handout):
    assert "//" not in re.sub(r"\s//\s.*", "", page(handout))  # no address; // begins a comment only
    assert not Page(page(handout)).all("link") and all("src" not in s for s in Page(page(handout)).all("script"))


def test_question_with_markup_is_shown_as_it_is_written(tmp_path):
    a, b = methods(tmp_path, 1)
    write_study(a, b, tmp_path / "out", 1, asked=Questions({'x"y': "Is a < b & c?"}))
    found = Page(page(tmp_path / "out"))
    assert {r["data-question"] for r in found.all("input") if r["type"] == "radio"} == {'x"y'}
    assert "Is a &lt; b &amp; c?" in page(tmp_path / "out")


@pytest.mark.parametrize("pairs", [0, -1])
def test_study_of_no_pairs_is_refused(tmp_path, pairs):
    with pytest.raises(ValueError, match=f"a study of {pairs} pairs shows nothing; ask for at least 1"):
        write_study(*methods(tmp_path), tmp_path / "out", pairs)


def test_folder_without_videos_is_refused_and_nothing_written(tmp_path):
    a, b = videos(tmp_path / "a", "x.mp4"), videos(tmp_path / "b", "x.wav")
    with pytest.raises(ValueError, match=r"b has no videos \(.mkv, .mp4, .webm\)"):
        write_study(a, b, tmp_path / "out", 1)
    with pytest.raises(ValueError, match="missing has no videos"):
        write_study(a, tmp_path / "missing", tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_folder_against_itself_is_refused(tmp_path):
    a, _ = methods(tmp_path)
    with pytest.raises(ValueError, match=r"both folders are .*rolling"):
        write_study(a, tmp_path / "baseline" / ".." / "rolling", tmp_path / "out", 1)


def test_folder_in_use_is_refused_and_an_empty_one_taken(tmp_path):
    a, b = methods(tmp_path)
    with pytest.raises(ValueError, match="rolling is not an empty folder"):
        write_study(a, b, a, 1)
    (tmp_path / "out").mkdir()
    assert write_study(a, b, tmp_path / "out", 1) == 1


def test_key_of_a_study_that_was_handed_out_is_not_overwritten(tmp_path):
    a, b = methods(tmp_path)
    (tmp_path / "out.key.json").write_text("precious")
    with pytest.raises(ValueError, match=r"out\.key\.json belongs to a study"):
        write_study(a, b, tmp_path / "out", 1)
    assert (tmp_path / "out.key.json").read_text() == "precious" and not (tmp_path / "out").exists()


def test_pair_that_its_suffixes_tell_apart_is_refused(tmp_path):
    a, b = videos(tmp_path / "a", "x.mp4"), videos(tmp_path / "b", "x.webm")
    with pytest.raises(ValueError, match=r"\.mp4 and \.webm tell them apart; convert"):
        write_study(a, b, tmp_path / "out", 1)


def test_tally_of_votes_counted_by_hand(tmp_path):
    # A is on the left of pairs 1 and 3: Ann votes A A A same, Bob A B same.
    ann = form(tmp_path, "Ann", *picture("lrls"))
    bob = form(tmp_path, "Bob", *picture("lls"), (1, "sound", "right"))
    result = tally(write_key(tmp_path), [ann, bob])
    found = result["questions"]["picture"]
    assert (found["a"], found["b"], found["same"], found["voters"]) == (4, 1, 2, 2)
    assert found["share_a"] == pytest.approx((4 + 2 / 2) / 7)
    assert found["wilson"] == pytest.approx(tuple(binomtest(4, 5).proportion_ci(method="wilson")))
    assert found["p"] == pytest.approx(2 * (1 + 5) / 32) and found["bootstrap"] is None
    assert (result["a"], result["b"], result["pairs"], result["voters"]) == ("A's", "B's", 4, 2)
    sound = result["questions"]["sound"]
    assert (sound["a"], sound["b"], sound["same"], sound["voters"]) == (0, 1, 0, 1)
    assert result["incomplete"] == {"Ann": 4, "Bob": 4}


def test_votes_for_what_the_key_calls_a_all_count_for_a(tmp_path):
    key = study(tmp_path, 6)
    votes = [(p["pair"], q, s) for p in key["pairs"] for q in QUESTIONS for s in ("left", "right")
             if p[s]["method"] == "rolling"]  # fmt: skip
    result = tally(tmp_path / "handout.key.json", [form(tmp_path, "Ann", *votes, study=key["study"])])
    assert all((q["a"], q["b"], q["same"]) == (6, 0, 0) for q in result["questions"].values())
    assert result["incomplete"] == {} and result["a"] == "rolling"


def test_question_without_votes_or_with_ties_only_has_no_figures_made_up(tmp_path):
    result = tally(write_key(tmp_path), [form(tmp_path, "Ann", *picture("ss"))])
    tied, empty = result["questions"]["picture"], result["questions"]["sound"]
    assert tied["share_a"] == 0.5 and tied["wilson"] is tied["p"] is None
    assert empty["voters"] == 0 and empty["share_a"] is empty["wilson"] is empty["bootstrap"] is None
    assert json.loads(json.dumps(result))["questions"].keys() == result["questions"].keys()


@pytest.mark.parametrize("a, b", [(0, 1), (3, 3), (8, 2), (2, 8), (40, 61), (1200, 1300)])
def test_sign_test_and_wilson_interval_agree_with_scipy(a, b):
    known = binomtest(a, a + b)
    assert sign_test(a, b) == pytest.approx(known.pvalue, rel=1e-9)
    assert wilson(a, a + b) == pytest.approx(tuple(known.proportion_ci(method="wilson")), abs=1e-12)


def test_voters_who_agree_leave_no_interval_and_those_who_differ_a_wide_one():
    agree = [{"a": 3, "b": 1, "same": 0}] * 6
    differ = [{"a": 4, "b": 0, "same": 0}] * 3 + [{"a": 0, "b": 4, "same": 0}] * 3
    assert bootstrap_share(agree) == (0.75, 0.75)
    low, high = bootstrap_share(differ)
    # none of 6 draws is a voter for A in 1/64 of cases, at most one in 7/64: the 2.5 % point is one of six
    assert (low, high) == pytest.approx((1 / 6, 5 / 6)) and bootstrap_share(differ) == (low, high)


def test_interval_over_voters_begins_with_five(tmp_path):
    key = write_key(tmp_path)
    forms = [form(tmp_path, f"voter {i}", *picture("lrlr" if i % 2 else "rlrl")) for i in range(5)]
    assert tally(key, forms[:4])["questions"]["picture"]["bootstrap"] is None
    low, high = tally(key, forms)["questions"]["picture"]["bootstrap"]
    assert low < 2 / 5 < high


@pytest.mark.parametrize(
    "vote, said",
    [
        ((5, "picture", "left"), "votes for pair 5,"),
        ((0, "picture", "left"), "votes for pair 0,"),
        (("1", "picture", "left"), "votes for pair '1',"),
        ((1, "smell", "left"), "votes for question 'smell',"),
        ((1, "picture", "both"), "votes for choice 'both',"),
        ((1, ["picture"], "left"), r"votes for question \['picture'\],"),
        ((1,), "votes for question None,"),
    ],
)
def test_vote_that_the_study_does_not_know_is_refused(tmp_path, vote, said):
    with pytest.raises(ValueError, match=rf"votes_Ann\.json {said}"):
        tally(write_key(tmp_path), [form(tmp_path, "Ann", (2, "picture", "same"), vote)])


def test_two_votes_on_one_question_are_refused(tmp_path):
    with pytest.raises(ValueError, match="votes twice for 'picture' of pair 1"):
        tally(write_key(tmp_path), [form(tmp_path, "Ann", *picture("l"), *picture("r"))])


def test_form_of_another_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"votes_Ann\.json votes in study 'xyz', not 'abc'"):
        tally(write_key(tmp_path), [form(tmp_path, "Ann", *picture("l"), study="xyz")])


def test_voter_with_two_files_is_refused_naming_both(tmp_path):
    first, second = form(tmp_path, "Ann", name="1.json"), form(tmp_path, " ann ", *picture("l"), name="2.json")
    with pytest.raises(ValueError, match=r"1\.json and .*2\.json are both of voter 'ann'"):
        tally(write_key(tmp_path), [first, second])


@pytest.mark.parametrize("voter", ["", "  ", None, 7])
def test_form_without_a_name_is_refused(tmp_path, voter):
    with pytest.raises(ValueError, match="has no name of a voter"):
        tally(write_key(tmp_path), [form(tmp_path, voter, name="x.json")])


@pytest.mark.parametrize(
    "text, said",
    [("{", "is no JSON"), ("[]", "lacks one of study, voter, votes"), ("{}", "lacks one of study, voter, votes"),
     ('{"study": "abc", "voter": "Ann", "votes": {"1": "left"}}', "has no list of votes")],
)  # fmt: skip
def test_file_that_is_no_form_is_refused(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json {said}.*; ask the voter to save the votes again"):
        tally(write_key(tmp_path), [tmp_path / "x.json"])


def test_missing_key_missing_form_and_no_forms_are_refused(tmp_path):
    ann = form(tmp_path, "Ann")
    with pytest.raises(ValueError, match=r"y\.json does not exist; give the key"):
        tally(tmp_path / "y.json", [ann])
    with pytest.raises(ValueError, match=r"votes_Ann\.json lacks .*; give the key"):
        tally(ann, [ann])
    with pytest.raises(ValueError, match=r"y\.json does not exist; ask the voter"):
        tally(write_key(tmp_path), [tmp_path / "y.json"])
    with pytest.raises(ValueError, match="there are no forms"):
        tally(write_key(tmp_path), [])


def test_name_of_a_voter_becomes_neither_a_path_nor_a_terminal_command(tmp_path):
    key, path = write_key(tmp_path), form(tmp_path, "../../\x1b[2Jann", *picture("l"), name="x.json")
    before = sorted(tmp_path.rglob("*"))
    shown = table(tally(key, [path]))
    assert "\x1b" not in shown and "'../../\\x1b[2Jann' left open: 7" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_table_has_a_row_per_question_in_line_with_its_head(tmp_path):
    result = tally(
        write_key(tmp_path), [form(tmp_path, "Ann", *picture("lrls")), form(tmp_path, "Bob", *picture("lls"))]
    )
    lines = table(result).splitlines()
    head, row = (next(line for line in lines if line.startswith(name)) for name in ("question", "picture"))
    assert row.split()[:7] == ["picture", "4", "1", "2", "2", "71.4", "%"] and row.split()[-1] == "0.38"
    assert row[head.index("voters") + len("voters") - 1] == "2" and row[: head.index("A")].strip() == "picture"
    assert "A: A's" in lines and "B: B's" in lines and "'Bob' left open: 5" in lines
    assert result["protocol"] in lines
