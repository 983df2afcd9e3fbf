"""What the scripts share: the released command lines, how they fail, what they leave on record."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cli
import sample
import train
from tests import processes
from training.opening import check_names

ROOT = Path(__file__).parents[1]
# As DESIGN.md prints them, with values for D, E, K, X.
RELEASED_TRAIN = """--model FLAV-B/1 --data-path D --image-size 256 --batch-size 16 --num-classes 9 --experiment-dir E
    --results-dir results/ --sample-every 20000 --ckpt-every 5000 --log-every 100 --video-length 50 --predict-frames 10
    --sampling logit --num-workers 16 --grad-ckpt --causal-attn --use_sd_vae --audio-scale 3.5"""
RELEASED_SAMPLE = """--model-ckpt MaverickAlex/R-FLAV-B-1-AIST --results-dir results --video-length 16 --num-videos 2048
    --audio-scale 3.5 --num-timesteps 2"""


def complaint(capsys, run, *args) -> str:
    """The one line of stderr with which `run` refuses."""
    with pytest.raises(SystemExit) as end:
        run(*args)
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_underscores_and_hyphens_mean_the_same():
    given = ["--model-ckpt", "a_b", "--num-timesteps", "7", "--batch-size=3", "--results-dir=under_score"]
    hyphens = sample.parse(given)
    underscores = sample.parse(
        ["--model_ckpt", "a_b", "--num_timesteps", "7", "--batch_size=3", "--results_dir=under_score"]
    )
    assert vars(hyphens) == vars(underscores)
    assert (hyphens.model_ckpt, hyphens.num_timesteps, str(hyphens.results_dir)) == ("a_b", 7, "under_score")


def test_underscores_and_hyphens_mean_the_same_on_the_real_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample.py", "--model_ckpt", "m", "--num_videos=2"])
    assert sample.parse().num_videos == 2


def test_released_training_line_parses_as_printed():
    args = train.parse(shlex.split(RELEASED_TRAIN))
    expected = dict(
        model="FLAV-B/1",
        data_path=Path("D"),
        image_size=256,
        batch_size=16,
        num_classes=9,
        experiment_dir=Path("E"),
        results_dir=Path("results"),
        sample_every=20000,
        ckpt_every=5000,
        log_every=100,
        video_length=50,
        predict_frames=10,
        sampling="logit",
        num_workers=16,
        grad_ckpt=True,
        causal_attn=True,
        use_sd_vae=True,
        codec="sd-vae",
        audio_scale=3.5,
    )
    assert {name: getattr(args, name) for name in expected} == expected


def test_released_sampling_line_parses_as_printed():
    args = sample.parse(shlex.split(RELEASED_SAMPLE))
    assert (args.model_ckpt, args.video_length, args.num_videos) == ("MaverickAlex/R-FLAV-B-1-AIST", 16, 2048)
    assert (args.audio_scale, args.num_timesteps, args.results_dir) == (3.5, 2, Path("results"))


def test_defaults_of_training_are_those_of_the_paper():
    args = train.parse(["--data-path", "D", "--experiment-dir", "E"])
    paper = dict(lr=1e-4, weight_decay=0.02, beta2=0.999, clip_grad_norm=1.0, ema_decay=0.9999, theta=0.2,
                 class_dropout_prob=0.1, fusion="c", lr_schedule="constant",
                 codec="sd-vae", model="FLAV-B/1", causal_attn=True, image_size=256, n_mels=256)  # fmt: skip
    assert args.predict_frames is args.sampling is args.lr is None  # until it is known which system's
    assert check_names(args).frames == 10 and args.sampling == "logit"
    assert {name: getattr(args, name) for name in paper} == paper


def test_arguments_are_read_from_a_file_with_comments_and_later_ones_win(tmp_path):
    (tmp_path / "one.args").write_text("# why\n--model FLAV-tiny --lr 1e-3  # fast\n\n--seed 3\n")
    args = train.parse([f"@{tmp_path / 'one.args'}", "--data-path", "D", "--experiment-dir", "E", "--seed", "4"])
    assert (args.model, args.lr, args.seed) == ("FLAV-tiny", 1e-3, 4)


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        (None, "(No such file or directory); give"),
        ('--model "FLAV', "(No closing quotation); give"),
        (b"\xff", "codec"),
    ],
)
def test_file_of_arguments_that_cannot_be_read_is_named(tmp_path, capsys, holds, said):
    file = tmp_path / "one.args"
    if holds:
        file.write_bytes(holds if isinstance(holds, bytes) else holds.encode())
    with pytest.raises(SystemExit) as end:
        train.parse([f"@{file}", "--data-path", "D", "--experiment-dir", "E"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and f"@{file} cannot be read" in err and said in err and err.count("\n") == 1


def test_guidance_that_is_no_number_is_refused(capsys):
    with pytest.raises(SystemExit):
        sample.parse(["--model-ckpt", "x", "--cfg-scale", "nan"])
    assert "--cfg-scale: nan is not a finite number" in capsys.readouterr().err


def test_causal_attention_can_be_switched_off():
    assert not train.parse(["--data-path", "D", "--experiment-dir", "E", "--no-causal-attn"]).causal_attn


def test_sd_vae_contradicts_another_codec(capsys):
    argv = ["--data-path", "D", "--experiment-dir", "E", "--use_sd_vae", "--codec", "pixels"]
    assert "--use-sd-vae contradicts --codec pixels" in complaint(capsys, train.parse, argv)


@pytest.mark.parametrize("flag", ["--video-length", "--num-videos", "--num-timesteps", "--batch-size"])
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many"])
def test_counts_are_whole_numbers_from_1(capsys, flag, value):
    line = complaint(capsys, sample.parse, ["--model-ckpt", "m", f"{flag}={value}"])
    assert flag in line and f"{value} is not a whole number of 1 or more" in line


def test_seed_0_is_a_seed_and_a_negative_one_is_not(capsys):
    assert sample.parse(["--model-ckpt", "m", "--seed", "0"]).seed == 0
    assert "0 or more" in complaint(capsys, sample.parse, ["--model-ckpt", "m", "--seed=-1"])


def test_unknown_and_missing_arguments_are_named_in_one_line(capsys):
    assert "--model-ckpt" in complaint(capsys, sample.parse, [])
    assert "--video-lenght" in complaint(capsys, sample.parse, ["--model-ckpt", "m", "--video-lenght", "3"])


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, FloatingPointError])
def test_errors_of_input_become_one_line_and_exit_code_2(capsys, error):
    def main():
        raise error("the thing\n  is wrong;   change it")

    assert complaint(capsys, cli.run, main).endswith("error: the thing is wrong; change it\n")


def test_errors_of_the_program_keep_their_traceback():
    def main():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        cli.run(main)


def test_traceback_of_an_error_of_input_can_be_asked_for(monkeypatch):
    def main():
        raise ValueError("wrong")

    monkeypatch.setenv("RFLAV_TRACEBACK", "1")
    with pytest.raises(ValueError):
        cli.run(main)


def test_script_that_refuses_says_one_line_and_no_traceback(tmp_path):
    """The hub id of a model, without network."""
    ran = processes.run("sample.py", "--model-ckpt", "nobody/nothing", "--results-dir", tmp_path / "out")
    assert ran.poll() == 2 and ran.printed == "" and ran.said.count("\n") == 1
    assert ran.said.startswith("sample.py: error: nobody/nothing is no local folder")
    assert "give its local folder" in ran.said


@pytest.mark.slow
def test_libraries_say_nothing_on_import(tmp_path):
    """A whole process, for what stderr gets besides."""
    done = subprocess.run(
        [sys.executable, "sample.py", "--model-ckpt", "nobody/nothing", "--results-dir", tmp_path / "out"],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_classes_go_in_turn_by_name_or_number():
    names = ("blue", "green", "red")
    assert cli.labels("red,0", names, 5) == [2, 0, 2, 0, 2]
    assert cli.labels(None, names, 4) == [0, 1, 2, 0]
    assert cli.labels(None, (), 4) is None


def test_a_name_that_is_a_number_is_a_name_first():
    assert cli.labels("1", ("1", "0"), 1) == [0]


@pytest.mark.parametrize("text", ["3", "-1", "purple", "red,", "1.0"])
def test_class_that_does_not_exist_is_named_with_those_that_do(text):
    with pytest.raises(ValueError, match="does not exist; choose blue, green, red or 0 to 2"):
        cli.labels(text, ("blue", "green", "red"), 4)


def test_classes_of_a_model_without_classes_are_refused():
    with pytest.raises(ValueError, match="no classes; leave it out"):
        cli.labels("red", (), 4)


def test_output_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = cli.output_folder(tmp_path / "a" / "b")
    assert folder.is_dir() and not list(folder.iterdir())


def test_file_in_the_way_of_an_output_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot be written .*; choose another output folder"):
            cli.output_folder(path)


def test_json_that_fails_to_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "x.json"
    cli.write_json(path, {"old": 1})
    circular = []
    circular.append(circular)
    with pytest.raises(ValueError):
        cli.write_json(path, circular)
    assert json.loads(path.read_text()) == {"old": 1}


def test_run_json_says_what_ran_with_what(tmp_path):
    cli.write_run(tmp_path, argparse.Namespace(seed=3, results_dir=Path("x")), seconds=1.5)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["arguments"] == {"seed": 3, "results_dir": "x"} and record["seconds"] == 1.5
    assert set(cli.PACKAGES) == set(record["versions"]) and {"git_commit", "time", "command", "python"} <= set(record)


def test_device_that_is_not_there_is_refused_in_one_sentence():
    args = sample.parse(["--model-ckpt", "m", "--device", "nonsense"])
    with pytest.raises(ValueError, match="--device nonsense cannot be used"):
        cli.load_pipeline(args)


@pytest.mark.parametrize("text", ["rad", "Red", "RED", "reed"])
def test_wrong_class_is_answered_with_the_nearest(text):
    with pytest.raises(ValueError, match=r"does not exist \(did you mean 'red'\?\); choose blue, green, red or 0 to 2"):
        cli.labels(text, ("blue", "green", "red"), 4)


def test_class_is_the_same_whether_its_letters_are_composed_or_not():
    assert cli.labels("cafe\u0301", ("bar", "caf\u00e9"), 1) == [1]


def test_names_that_are_not_utf8_can_be_printed_and_written(tmp_path, monkeypatch):
    """stdout is strict about them where stderr is not."""
    with open(tmp_path / "out", "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        cli.run(lambda: print(os.fsdecode(b"caf\xe9")))
        cli.write_text(tmp_path / "text", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "out").read_text() == "caf\\udce9\n" and (tmp_path / "text").read_text() == "caf\\udce9"


@pytest.mark.parametrize("given", ["demo/exprot", "demo", "Demo", "dmeo/export", "demo/checkpoints/step_1", "x/y"])
def test_wrong_checkpoint_is_answered_with_the_nearest(tmp_path, given):
    """One of another name, or the folder of the experiment."""
    from pipeline.spec import fetch_checkpoint

    export = tmp_path / "demo" / "export"
    (tmp_path / "demo" / "checkpoints" / "step_1").mkdir(parents=True)
    export.mkdir()
    for name in ("config.json", "model.safetensors"):
        (export / name).touch()
    with pytest.raises(FileNotFoundError) as error:
        fetch_checkpoint(str(tmp_path / given))
    assert (f" (did you mean {export}?)" in str(error.value)) == (given != "x/y")
