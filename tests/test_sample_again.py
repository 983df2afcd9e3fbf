"""sample.py once more: into the folder of another run, for others to read; guided by its class."""

import json
from types import SimpleNamespace

import pytest

import cli
import sample_a2v
from data.av import replace_older
from pipeline import AVPipeline
from tests.test_conditional import tone, write_sound
from tests.test_sample import checkpoint, latents, results, run  # noqa: F401


@pytest.fixture(autouse=True)
def blank_sheet(monkeypatch):
    """That of `results`, which are made before, is a real one."""
    monkeypatch.setattr("contact.contact_sheets", lambda clips, path: path.write_bytes(b""))


@pytest.fixture
def untrained(checkpoint, tmp_path):  # noqa: F811
    """The same checkpoint without a step of training, as a released one is."""
    pipe = AVPipeline.from_pretrained(checkpoint)
    pipe.save(tmp_path / "untrained")
    facts = json.loads((tmp_path / "untrained" / "pipeline.json").read_text())
    (tmp_path / "untrained" / "pipeline.json").write_text(json.dumps(facts | {"step": 0}))
    return tmp_path / "untrained"


def used(folder):
    return json.loads((folder / "run.json").read_text())["arguments"]["cfg_scale"]


def test_all_files_have_the_mode_of_other_files(checkpoint, results, tmp_path):  # noqa: F811
    (tmp_path / "other").touch()
    usual = (tmp_path / "other").stat().st_mode
    files = [path for folder in (results, checkpoint) for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"sample_00000.latents.safetensors", "model.safetensors"}
    assert {path.stat().st_mode for path in files} == {usual}


def test_clip_replaces_the_films_that_earlier_runs_left_of_its_sample(checkpoint, tmp_path):  # noqa: F811
    older = ["sample_00000.mkv", "sample_00000_of a bell.mp4", "sample_00000_of a bell.wav", "sample_00000_x.mkv"]
    others = ["sample_00001.mkv", "sample_000001.mp4", "sample_00000_notes.txt", "long_00000.mkv"]
    for name in older + others:
        (tmp_path / name).touch()
    run(checkpoint, tmp_path, "--num-videos", 1)
    there = {path.name for path in tmp_path.iterdir()}
    assert not there & set(older) and there >= {*others, "sample_00000.mp4", "sample_00000.wav"}


def test_film_of_another_container_replaces_the_older_one(tmp_path):
    for name in ("sample_00002.mkv", "sample_00002.mp4", "sample_00002.wav"):
        (tmp_path / name).touch()
    replace_older(tmp_path / "sample_00002.mkv", "sample_00002")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample_00002.mkv", "sample_00002.wav"]


def test_film_for_a_given_sound_replaces_the_older_one_in_another_container(checkpoint, tmp_path):  # noqa: F811
    for name, codec in (("song.flac", "flac"), ("song.m4a", "aac")):
        song = write_sound(tmp_path / name, tone(0.5, 16000), 16000, codec)
        sample_a2v.main(["--model-ckpt", str(checkpoint), "--device=cpu", f"--results-dir={tmp_path / 'out'}",
                         "--input", str(song), "--method=replace"])  # fmt: skip
        films = [path.suffix for path in (tmp_path / "out").iterdir() if path.suffix in (".mkv", ".mp4")]
        assert films == [{"flac": ".mkv", "aac": ".mp4"}[codec]]


def test_clips_of_a_trained_model_follow_their_class_unless_told_otherwise(checkpoint, tmp_path, capsys):  # noqa: F811
    folders = {}
    for name, more in {"default": (), "2": ("--cfg-scale", 2), "1": ("--cfg-scale", 1)}.items():
        folders[name] = run(checkpoint, tmp_path / name, "--num-videos", 1, *more)
        said = capsys.readouterr().err
        assert ("frames may ignore their class; give --cfg-scale 2" in said) == (name == "1")
        assert ("cfg scale 2: frames follow their class" in said) == (name != "1")
    assert [used(folder) for folder in folders.values()] == [2, 2, 1]
    default, guided, plain = (latents(folder)[0]["v"] for folder in folders.values())
    assert default.equal(guided) and not default.allclose(plain)


def test_released_checkpoint_keeps_the_guidance_of_its_figures(untrained, tmp_path, capsys):
    assert used(run(untrained, tmp_path / "out", "--num-videos", 1)) == 1
    assert "frames may ignore their class" in capsys.readouterr().err


def test_pipeline_guides_as_the_scripts_do(checkpoint, untrained):  # noqa: F811
    for folder, scale in ((checkpoint, 2.0), (untrained, 1.0)):
        pipe = AVPipeline.from_pretrained(folder)
        default, explicit = (pipe.sample([0], 2, y=1, **how).v for how in ({}, dict(cfg_scale=scale)))
        assert default.equal(explicit)
        default, explicit = (next(pipe.stream(y=1, **how)).v for how in ({}, dict(cfg_scale=scale)))
        assert default.equal(explicit)


def test_model_without_classes_is_not_guided_and_nothing_is_said():
    model = SimpleNamespace(conditional=False, text_width=0, has_null_label=False, links={})
    args = SimpleNamespace(cfg_scale=None)
    assert cli.settle_guidance(args, SimpleNamespace(model=model, cfg_scale=1.0)) == "" and args.cfg_scale == 1


def test_what_a_linked_model_has_learnt_is_said():
    rolls = SimpleNamespace(rolls=True, conditioning_times=[0.96, 0.8])
    assert "one side for a given other; both at once may not keep step" in cli.told_of_both(
        SimpleNamespace(model=rolls)
    )
    assert cli.told_of_both(SimpleNamespace(model=SimpleNamespace(rolls=True, conditioning_times=None))) == ""
    clips = SimpleNamespace(rolls=False, conditioning_times=[0.96, 0.8], links={"v2a": ("sound",)}, text_width=0)
    assert cli.told_of_both(SimpleNamespace(model=clips)) == ""
    args = SimpleNamespace(cfg_scale=None)
    told = cli.settle_guidance(args, SimpleNamespace(model=clips, cfg_scale=5.0))
    assert "cfg scale 5: a side follows the given one and its text, at a call of its tower alone besides" in told
