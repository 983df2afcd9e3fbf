"""Training with text: which caption a clip takes, tokens kept once, the same from videos and from prepared latents."""

import json

import pytest
import torch
from safetensors.torch import load_file

import prepare
import train
from data.clips import ClipDataset
from data.prepared import PreparedDataset
from data.synthetic import BALLS, captions_of, write_dataset
from models.text import Words
from pipeline import AVPipeline
from training.draws import Draws, chosen_captions
from training.texts import Texts, cut_summary, prepared_texts

pytestmark = pytest.mark.usefixtures("small_preset")


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Three training and three test videos, a class and four phrasings each."""
    root = tmp_path_factory.mktemp("balls")
    write_dataset(root, train=3, test=3, frames=12, captions=True)
    return root


@pytest.fixture(scope="module")
def prepared(balls, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
        prepare.main(prepare_argv(balls, out))
    return out


def prepare_argv(data, out, *more):
    flags = {"data-path": data, "out": out, "codec": "pixels", "image-size": 16, "n-mels": 20, "device": "cpu"}
    return [*(f"--{name}={value}" for name, value in flags.items()), "--text-encoder=words", *more]


def train_argv(data, experiment, *more):
    flags = {"data-path": data, "experiment-dir": experiment, "model": "FLAV-mini", "codec": "pixels", "image-size": 16}
    flags |= {"n-mels": 20, "predict-frames": 4, "batch-size": 3, "num-workers": 0, "sample-every": 0, "max-steps": 3}
    return [*(f"--{name}={value}" for name, value in flags.items()), *more]


# ---------------------------------------------------------------------------------------------------------------- draws


def test_each_caption_of_a_clip_is_taken_about_as_often_and_none_where_there_is_none():
    captions = torch.tensor([[4, 5, 6], [7, -1, -1], [-1, -1, -1]])
    u = torch.linspace(0, 1 - 1e-9, 999, dtype=torch.float64)
    chosen = torch.stack([chosen_captions(captions, x.expand(3)) for x in u])
    assert chosen[:, 0].bincount(minlength=7)[4:].tolist() == [333, 333, 333]
    assert (chosen[:, 1] == 7).all() and (chosen[:, 2] == -1).all()


def draws(rows=range(4000), drop=0.1):
    tokens = [torch.full((i + 1, 2), float(i + 1)) for i in range(4)]
    texts = Texts(torch.cat(tokens).half(), torch.tensor([1, 3, 6, 10]))
    return Draws(0, rows, ((1, 1, 1, 1), (1, 1, 1)), 0.2, drop, -1, texts=texts)


def test_longest_caption_tells_how_many_tokens_a_batch_may_have():
    assert draws().texts.longest == 4 and Texts(torch.zeros(0, 2), torch.zeros(0)).longest == 0


def said(drawn) -> torch.Tensor:
    """Which text each clip has, -1 for the null text, by the value of its tokens."""
    return (drawn["text"].pooled()[:, 0] - 1).round().long()


def batch(B):
    return torch.zeros(B, 1, 1, 1, 1), torch.ones(B, 1, 1, 1, 1), torch.zeros(B, 1, 1, 1), torch.tensor([[0, 2, 3]] * B)


def test_text_is_dropped_in_a_tenth_of_the_clips_and_depends_on_the_place_alone():
    drawn = draws()(5, *batch(4000))
    counts = (said(drawn) + 1).bincount(minlength=5)
    assert drawn["y"] is None and counts[2] == 0 and 340 < counts[0] < 460
    assert all(1100 < count < 1300 for count in counts[[1, 3, 4]])
    some = draws(range(100, 130))(5, *batch(30))
    assert torch.equal(said(some), said(drawn)[100:130])
    assert not torch.equal(said(draws()(6, *batch(4000))), said(drawn))


# ---------------------------------------------------------------------------------------------------------------- texts


def test_tokens_from_a_file_are_those_in_memory_and_the_encoders_own(tmp_path):
    captions = ["a red ball", "", "here is a blue one"]
    kept = Texts.encoded(captions, Words())
    kept.save(tmp_path / "text.safetensors", encoder="words")
    read, facts = Texts.open(tmp_path / "text.safetensors")
    assert facts == {"encoder": "words"} and len(read) == len(kept) == 3 and read.width == 64
    for texts in (kept, read):
        found = texts(torch.tensor([2, -1, 1, 0]))
        assert found.mask.sum(1).tolist() == [5, 0, 0, 3]
        assert torch.equal(found.tokens[0].half(), Words().encode(captions)[2].half())
    assert cut_summary(["x " * 301, "y"], Words()) == "1 of 2 captions were cut to 300 tokens"
    assert cut_summary(captions, Words()) == ""


def test_damaged_file_is_refused(tmp_path):
    (tmp_path / "text.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"text.safetensors is missing or damaged .*; run prepare.py again"):
        Texts.open(tmp_path / "text.safetensors")


# -------------------------------------------------------------------------------------------------------------- prepare


def test_prepared_folder_keeps_each_caption_once_and_which_file_has_which(prepared):
    index = json.loads((prepared / "prepared.json").read_text())
    text = index["text"]
    assert (text["encoder"], text["source"], text["width"]) == ("words", None, 64) and len(text["captions"]) == 18
    ends = load_file(prepared / "text.safetensors")["ends"]
    assert len(ends) == 18
    balls = {ball.name: ball for ball in BALLS}
    for split in ("train", "test"):
        for entry in index["splits"][split]["files"]:
            found = [text["captions"][i] for i in entry["captions"]]
            assert found == captions_of(balls[entry["class"]], split)
    found = PreparedDataset(prepared, "train", 4).captions()
    assert sorted(map(len, found.of_file.values())) == [4, 4, 4]


def test_captions_of_pieces_come_back_from_a_prepared_folder(tmp_path):
    write_dataset(tmp_path / "balls", train=2, test=0, frames=12, captions=True)
    rows = [{"file_name": "green/ball_00001.mp4", "caption": "it falls", "start": 0, "end": 0.5}]
    with (tmp_path / "balls/train/metadata.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
        prepare.main(prepare_argv(tmp_path / "balls", tmp_path / "out"))
    there = ClipDataset(tmp_path / "balls", "train", 4, 16).captions()
    kept = PreparedDataset(tmp_path / "out", "train", 4).captions()
    assert list(kept.spans.values()) == list(there.spans.values()) == [(None,) * 4 + ((0, 0.5),)]
    for file, places in there.of_file.items():
        latents = kept.of_file[f"{file}.safetensors"]
        assert [kept.texts[i] for i in latents] == [there.texts[i] for i in places]
    index = json.loads((tmp_path / "out/prepared.json").read_text())
    index["splits"]["train"]["files"][1]["spans"][4] = [0.5, 0.0]
    (tmp_path / "out/prepared.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a value cannot be right"):
        PreparedDataset(tmp_path / "out", "train", 4)


def test_second_run_encodes_no_text_and_another_encoder_is_refused(balls, prepared, monkeypatch, capsys):
    monkeypatch.setattr("training.texts.load_text_encoder", lambda *_: pytest.fail("encoded again"))
    prepare.main(prepare_argv(balls, prepared))
    assert "nothing is written" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was prepared with text encoder words; repeat its own arguments"):
        prepare.main(prepare_argv(balls, prepared, "--text-encoder=t5"))


def test_folder_without_captions_is_refused_before_anything_is_encoded(tmp_path):
    write_dataset(tmp_path / "balls", train=1, test=0, frames=12)
    with pytest.raises(ValueError, match=r"has no caption for any of its videos; give metadata.jsonl"):
        prepare.main(prepare_argv(tmp_path / "balls", tmp_path / "out"))
    assert not [*(tmp_path / "out").rglob("*.mp4.safetensors")]
    with pytest.raises(ValueError, match=r"has no caption for any of its videos; give metadata.jsonl"):
        train.main(train_argv(tmp_path / "balls", tmp_path / "run", "--text-encoder=words"))


# ---------------------------------------------------------------------------------------------------------------- train


@pytest.fixture(scope="module")
def trained(balls, tmp_path_factory):
    """A run of three steps with text."""
    experiment = tmp_path_factory.mktemp("trained")
    train.main(train_argv(balls, experiment, "--text-encoder=words", "--dtype=float64", "--ckpt-every=2"))
    return experiment


def test_run_with_text_leaves_a_checkpoint_that_follows_prompts(trained):
    pipe = AVPipeline.from_pretrained(trained / "export")
    assert pipe.model.text_width == 64 and pipe.spec.text_encoder == "words" and pipe.spec.class_names == ()
    assert pipe.model.num_classes == 0 and pipe.cfg_scale == 2
    clips = pipe.sample([0, 1], 5, ["a red ball", "a blue ball"])
    assert clips.frames.shape[:2] == (2, 5)
    facts = json.loads((trained / "run.json").read_text())
    assert facts["arguments"]["text_encoder"] == "words"


def test_run_with_text_resumes_bit_for_bit(balls, trained, tmp_path):
    how = ("--text-encoder=words", "--dtype=float64", "--ckpt-every=2")
    train.main(train_argv(balls, tmp_path, *how, "--max-steps=2"))
    train.main(train_argv(balls, tmp_path, *how))
    one, two = (load_file(folder / "export" / "model.safetensors") for folder in (trained, tmp_path))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_prepared_captions_train_the_model_of_their_videos(balls, prepared, trained, tmp_path):
    """Up to the float16 of the latents: the same captions are drawn, whatever stands beside them in the file."""
    train.main(train_argv(prepared, tmp_path, "--text-encoder=words", "--dtype=float64", "--ckpt-every=2"))
    losses = [[json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
              for run in (trained, tmp_path)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_arguments_of_text_that_contradict_each_other_are_refused(balls, prepared, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(train_argv(balls, tmp_path, "--text-encoder=words", "--num-classes=3"))
    assert "--text-encoder puts texts in the place of classes; leave --num-classes out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--text-encoder word is unknown; choose one of words, t5"):
        train.main(train_argv(balls, tmp_path, "--text-encoder=word"))
    with pytest.raises(ValueError, match="was prepared with text encoder words; give that"):
        prepared_texts(PreparedDataset(prepared, "train", 4), "t5", None)
