"""prepare.py on real mp4 files: what it writes, that killed and divided runs end alike, what it refuses."""

import json
import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import cli
import prepare
import training.encode
from data.av import MediaError, write_clip
from data.clips import ClipDataset, clip_sound
from data.index import is_prepared
from data.prepared import PreparedDataset
from data.synthetic import write_dataset
from models.codec import PatchPCA
from pipeline import AVCodec, AVSpec
from pipeline.avcodec import MEL_DB
from tests.closeness import assert_close_by_size
from tests.gaps import write_jumping
from tests.kills import kill_when
from tests.processes import Script, run_ranks
from tests.small_prepare import SHOWN
from training.encode import BLOCK, encode_files, picture_blocks, sound_blocks
from training.prepare import WINDOW, encode_file, hash_codec
from vocoder import GriffinLim, log_mel, to_model

FRAMES = BLOCK + 8  # of the videos: two blocks each
DIFFERENT = {"report.json"}  # from run to run: it has times
SHEET = {"contact_sheet.png"}


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Five training and two test videos."""
    root = tmp_path_factory.mktemp("balls")
    write_dataset(root, train=5, test=2, frames=FRAMES)
    return root


@pytest.fixture
def videos(balls, tmp_path):
    return shutil.copytree(balls, tmp_path / "videos")


@pytest.fixture
def few(videos):
    """Two training videos, of two classes."""
    for path in ("test", "train/green"):
        shutil.rmtree(videos / path)
    (videos / "train" / "blue" / "ball_00003.mp4").unlink()
    return videos


@pytest.fixture(scope="module", autouse=True)
def short_sheet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "SHOWN", SHOWN)
        yield


@pytest.fixture
def no_sheet(monkeypatch):
    """The picture takes longer than all the rest."""
    monkeypatch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))


def argv(data, out, *more):
    flags = {"data-path": data, "out": out, "codec": "pixels", "image-size": 16, "n-mels": 20}
    return [*(f"--{name}={value}" for name, value in flags.items()), *map(str, more)]


def run(data, out, *more):
    prepare.main(argv(data, out, "--device=cpu", *more))
    return out


@pytest.fixture(scope="module")
def folder(balls, tmp_path_factory):
    return run(balls, tmp_path_factory.mktemp("prepared") / "new" / "folder")


@pytest.fixture
def out(folder, tmp_path):
    """A prepared folder that a test may change."""
    return shutil.copytree(folder, tmp_path / "out")


@pytest.fixture(scope="module")
def fitted(balls, tmp_path_factory):
    """Latents of a codec that was fitted to the videos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
        return run(balls, tmp_path_factory.mktemp("fitted"), "--codec=patch-pca", "--image-size=32")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def index(folder):
    return json.loads((folder / "prepared.json").read_text())


def modified(folder):
    return {path: (folder / path).stat().st_mtime_ns for path in files(folder)}


def assert_same(one, two, but=frozenset()):
    """To the byte: every latent, the codecs, the index, the sheet."""
    assert files(one) == files(two) and len(files(one)) > 7
    differ = {path for path in files(one) if (one / path).read_bytes() != (two / path).read_bytes()}
    assert differ - DIFFERENT - but == set()


# ----------------------------------------------------------------------------------------------------- what is written


def test_folder_holds_a_file_per_video_the_codecs_the_report_and_the_index(folder, balls):
    latents = [f"{path.relative_to(balls)}.safetensors" for path in balls.rglob("*.mp4")]
    more = ["contact_sheet.png", "pipeline/pipeline.json", "pipeline/vocoder/config.json"]
    assert files(folder) == sorted([*latents, *more, "prepared.json", "report.json"]) and len(latents) == 7
    assert is_prepared(folder) and not is_prepared(balls)
    assert (folder / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_latents_are_float16_of_all_frames_and_say_what_they_are_of(folder, balls):
    found = index(folder)
    for split, count in (("train", 5), ("test", 2)):
        assert len(found["splits"][split]["files"]) == found["totals"][split]["files"] == count
        for entry in found["splits"][split]["files"]:
            path = folder / split / f"{entry['path']}.safetensors"
            tensors = {name: (x.dtype, tuple(x.shape)) for name, x in load_file(path).items()}
            shape, half = (FRAMES, 3, 16, 16), torch.float16
            expected = {"mean": (half, shape), "std": (half, shape), "mel": (half, (FRAMES, 10, 20))}
            assert tensors == expected | {"crc": (torch.uint32, (FRAMES,))}
            with safe_open(path, framework="pt") as file:
                noted = file.metadata()
            assert noted["source"] == f"{split}/{entry['path']}" and noted["frames"] == str(FRAMES)
            assert noted["sha256"] == entry["sha256"] and path.stat().st_size == entry["bytes"]
            assert entry["class"] == Path(entry["path"]).parts[0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_clips_are_those_of_files_encoded_in_memory_up_to_float16(folder, balls, split):
    codec = AVCodec.load(folder / "pipeline")
    videos = ClipDataset(balls, split, clip_frames=9, image_size=16, context=AVCodec.context)
    expected, got = encode_files(videos, codec, torch.device("cpu")), PreparedDataset(folder, split, 9)
    assert len(got) == len(expected) == len(videos) and got.class_names == videos.class_names
    for i in range(len(got)):
        ours, theirs = got[i], expected[i]
        assert (ours["y"], ours["start"]) == (theirs["y"], theirs["start"])
        assert Path(ours["path"]).name == f"{Path(theirs['path']).name}.safetensors"
        for name in ("mean", "std", "a"):
            assert ours[name].dtype == torch.float32 and ours[name].shape == theirs[name].shape
            torch.testing.assert_close(ours[name], theirs[name], rtol=2**-10, atol=1e-5)


def test_audio_scale_and_statistics_are_those_of_all_training_files(folder, balls):
    videos, spec = ClipDataset(balls, image_size=16, context=AVCodec.context), AVSpec.load(folder / "pipeline")
    items = [videos.file(i) for i in range(5)]
    mel = to_model(log_mel(torch.stack([item["wave"] for item in items]), 20, padded=True), 1.0)
    assert 1 / mel.double().std().item() == pytest.approx(spec.audio_scale, rel=1e-4)
    assert spec.audio_scale == index(folder)["audio_scale"] and spec.class_names == ("blue", "green", "red")
    frames = torch.cat([item["frames"] for item in items]).double().transpose(0, 1).flatten(1)  # pixels are latents
    found = index(folder)["statistics"]["latents"]
    expected = {"mean": frames.mean(1), "std": frames.std(1), "min": frames.amin(1), "max": frames.amax(1)}
    for name, x in expected.items():
        assert found[name] == pytest.approx(x.tolist(), rel=1e-3, abs=1e-3)


def test_report_is_of_every_file_of_each_data_set_and_says_what_it_covers(folder):
    report = json.loads((folder / "report.json").read_text())
    assert report["files"] == report["encoded"] == 7 and report["skipped"] == 0 == len(report["skipped_files"])
    assert {split: found["files"] for split, found in report["quality"].items()} == {"train": 5, "test": 2}
    for found in report["quality"].values():
        assert 60 < found["psnr_least_db"] <= found["psnr_db"] < 100  # of float16: pixels lose nothing else
        assert 0 < found["mel_mean_db"] < found["mel_max_db"] < 0.03
        assert "10 frames from the middle of each file" in found["covered"]
    assert report["psnr_db"] == report["quality"]["train"]["psnr_db"] and report["cpu_share"] > 0


def test_reported_quality_is_that_of_the_stored_numbers(balls, fitted):
    codec, found = AVCodec.load(fitted / "pipeline"), []
    data = ClipDataset(balls, image_size=32, context=AVCodec.context)
    codec.spec = replace(codec.spec, audio_scale=1.0)
    for i, entry in enumerate(data.entries):
        stored, video = load_file(fitted / "train" / f"{entry.path}.safetensors"), data.file(i)
        middle = slice((BLOCK - WINDOW) // 2, (BLOCK + WINDOW) // 2)  # of the first block of two
        decoded = codec.frames.decode(stored["mean"][None, middle].float())[0]
        psnr = 10 * math.log10(4 / (decoded - video["frames"][middle]).square().mean().item())
        off = (stored["mel"].float() - codec.encode_sound(video["wave"][None])[0]).abs()
        found.append((psnr, off.mean().item() * MEL_DB, off.max().item() * MEL_DB))
    report, psnrs = json.loads((fitted / "report.json").read_text())["quality"]["train"], [row[0] for row in found]
    assert report["psnr_db"] == pytest.approx(sum(psnrs) / 5) and report["psnr_least_db"] == pytest.approx(min(psnrs))
    assert report["psnr_least_of"] == data.entries[psnrs.index(min(psnrs))].path
    assert report["mel_mean_db"] == pytest.approx(sum(row[1] for row in found) / 5, rel=1e-3)
    assert report["mel_max_db"] == pytest.approx(max(row[2] for row in found), rel=1e-2)


def test_fitted_codec_is_stored_and_an_error_of_one_grey_level_shows(balls, fitted, tmp_path):
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    codec = AVCodec.load(tmp_path / "pipeline")
    assert (
        isinstance(codec.frames, PatchPCA) and 15 < json.loads((tmp_path / "report.json").read_text())["psnr_db"] < 60
    )
    assert index(tmp_path)["facts"]["codec_sha256"] == hash_codec(codec.frames)
    other = PatchPCA(codec.frames.mean + 1e-3, codec.frames.basis, codec.frames.scale)
    assert hash_codec(other) != hash_codec(codec.frames)
    other.save(tmp_path / "pipeline" / "codec")
    with pytest.raises(ValueError, match="was prepared with another codec_sha256; repeat"):
        run(balls, tmp_path, "--codec=patch-pca", "--image-size=32")


def test_class_folders_can_be_ignored(few, tmp_path, no_sheet):
    out = tmp_path / "out"
    data = PreparedDataset(run(few, out, "--num-classes", 0))
    assert data.class_names == () and data[0]["y"] == -1 and AVSpec.load(out / "pipeline").class_names == ()


# -------------------------------------------------------------------------------------------- blocks of a long file


@pytest.mark.parametrize("fps", [10, 25, 50])
def test_blocks_are_the_whole_file_cut(balls, fps):
    """At 25 and 50 fps a frame has less sound than the context reaches."""
    data = ClipDataset(balls, "train", 3, 16, fps, context=AVCodec.context)
    entry, per_frame = data.entries[0], 16000 // fps
    assert entry.frames % BLOCK
    assert torch.cat(list(picture_blocks(data, entry))).equal(data.file(0)["frames"])
    how = dict(fps=fps, sample_rate=16000, context=data.context, channels="mean")
    whole = clip_sound(data.folder / entry.path, 0, entry.frames, entry.frames, **how) * 0.95 / entry.peak
    for i, wave in enumerate(sound_blocks(data, entry)):
        begin, stop = i * BLOCK * per_frame, min((i + 1) * BLOCK, entry.frames) * per_frame + 2 * data.context
        assert_close_by_size(wave, whole[begin:stop])


def test_sound_that_ends_before_the_picture_is_followed_by_silence(balls):
    data = ClipDataset(balls, image_size=16, context=AVCodec.context)
    longer = replace(data.entries[0], frames=3 * BLOCK)
    waves = list(sound_blocks(data, longer))
    assert len(waves) == 3 and not waves[2].any() and waves[1][:1000].any()


def memory():
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path):
    """40 s at 192 px are 177 MB of pictures."""
    path = tmp_path / "train" / "long.mp4"
    path.parent.mkdir()
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 255, (400, 16, 16, 3), generator=rng, dtype=torch.uint8)
    write_clip(path, noise, 2 * torch.rand(640000, generator=rng) - 1)
    data = ClipDataset(tmp_path, image_size=192, context=AVCodec.context)
    codec = AVCodec(AVSpec(n_mels=20, image_size=192, codec="patch-pca"), PatchPCA.fit(noise), GriffinLim(20))
    encode, seen = codec.encode, []
    codec.encode = lambda *x: seen.append(memory()) or encode(*x)
    encode_file(data, replace(data.entries[0], frames=BLOCK), codec, tmp_path / "short", {})
    short, seen[:] = max(seen), []
    encode_file(data, data.entries[0], codec, tmp_path / "long", {})
    assert len(seen) == math.ceil(400 / BLOCK) and max(seen) - short < 90e6


# ------------------------------------------------------------------------------------ again, interrupted, in parallel


def test_second_run_writes_nothing_and_says_so(folder, balls, capsys):
    before = modified(folder)
    run(balls, folder)
    assert modified(folder) == before
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "7 files, 1.0 MB, skipped none; all" in out and "nothing is written" in out


def test_first_run_says_what_it_did_in_one_line(few, tmp_path, capsys, no_sheet):
    (few / "train" / "red" / "broken.mp4").write_bytes(b"no video")
    run(few, tmp_path / "out")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "2 files, 0.3 MB, skipped 1 unreadable; encoded 2 in" in out and "CPU" in out


def test_killed_run_goes_on_to_the_files_of_an_undisturbed_one(folder, balls, tmp_path):
    child = Script("tests/small_prepare.py", *argv(balls, tmp_path))
    assert kill_when(child, lambda: len(list(tmp_path.glob("train/*/ball*.safetensors"))) > 1)
    assert not is_prepared(tmp_path)
    kept = {path: made for path, made in modified(tmp_path).items() if Path(path).name.startswith("ball")}
    (tmp_path / "test" / "blue").mkdir(parents=True, exist_ok=True)
    (tmp_path / "test" / "blue" / ".ball_00000.mp4.safetensors.1.part").write_bytes(b"half")
    (tmp_path / ".pipeline.1.part").mkdir()
    run(balls, tmp_path)
    assert_same(folder, tmp_path)
    assert 1 < len(kept) < 7 and kept.items() <= modified(tmp_path).items()


def test_two_processes_make_the_files_of_one_to_the_byte(folder, balls, tmp_path):
    first, second = run_ranks(2, "tests/small_prepare.py", *argv(balls, tmp_path))
    assert_same(folder, tmp_path)
    assert "| 4/4 [" in first.said and first.printed.count("\n") == 1 and "encoded 7" in first.printed
    assert not second.printed
    assert json.loads((tmp_path / "report.json").read_text())["processes"] == 2


# -------------------------------------------------------------------------------------------------- changing sources


def test_changed_new_and_removed_videos_lead_to_the_folder_of_a_fresh_run(videos, out, tmp_path, no_sheet):
    before, train = modified(out), videos / "train"
    shutil.copy(train / "red" / "ball_00002.mp4", train / "blue" / "ball_00000.mp4")
    (train / "green" / "ball_00004.mp4").unlink()
    shutil.copytree(train / "red", train / "violet")
    run(videos, out)
    assert_same(run(videos, tmp_path / "fresh"), out)
    assert AVSpec.load(out / "pipeline").class_names == ("blue", "green", "red", "violet")
    same = [path for path in before if modified(out).get(path) == before[path]]
    assert len([path for path in same if path.endswith(".mp4.safetensors")]) == 5
    shutil.rmtree(train / "violet")
    shutil.rmtree(videos / "test")
    run(videos, out)
    assert list(index(out)["splits"]) == ["train"] and not list((out / "test").rglob("*.safetensors"))
    assert len(PreparedDataset(out).entries) == 4


def test_damaged_latents_are_made_again(folder, balls, out, no_sheet):
    for path, data in (("blue/ball_00000", b""), ("red/ball_00002", b"x" * 100)):
        (out / "train" / f"{path}.mp4.safetensors").write_bytes(data)
    (out / "train" / "green" / "ball_00001.mp4.safetensors").unlink()
    run(balls, out)
    assert_same(folder, out, SHEET)
    assert json.loads((out / "report.json").read_text())["encoded"] == 3


def test_flipped_bit_stops_training_and_only_that_file_is_mended(folder, balls, out, no_sheet):
    before, path = modified(out), out / "train" / "red" / "ball_00002.mp4.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"ball_00002\.mp4\.safetensors is damaged .*; run prepare\.py again"):
        clips = PreparedDataset(out)
        [clips[i] for i in range(len(clips))]
    run(balls, out)
    assert_same(folder, out, SHEET)
    now, latents = modified(out), [name for name in before if name.endswith(".mp4.safetensors")]
    assert [name for name in latents if now[name] != before[name]] == ["train/red/ball_00002.mp4.safetensors"]


def test_unusable_videos_are_skipped_with_their_reasons(videos, tmp_path, no_sheet, monkeypatch):
    """One passes the look at its packets and cannot be decoded; a second run does not try it again."""
    train, tried = videos / "train", []
    (train / "red" / "broken.mp4").write_bytes(b"no video")
    write_clip(train / "red" / "silent.mp4", torch.zeros(20, 16, 16, 3, dtype=torch.uint8), torch.zeros(32000))
    write_jumping(train / "red" / "jump.mp4", picture=5)
    write_jumping(train / "red" / "hole.mp4", sound=5)
    frames = training.encode.iter_frames

    def damaged(path, *args):
        if Path(path).name == "ball_00004.mp4":
            tried.append(path)
            raise MediaError(f"{path} cannot be decoded; replace it")
        yield from frames(path, *args)

    monkeypatch.setattr(training.encode, "iter_frames", damaged)
    bars = []
    monkeypatch.setattr(cli, "bar", lambda desc: lambda work, total=None: bars.append(desc) or work)
    out = run(videos, tmp_path / "out", "--codec=patch-pca")
    assert {*bars} == {"indexing", "reading"}  # what takes long has a bar
    found = {e["path"]: e["reason"].partition(":")[0] for e in index(out)["splits"]["train"]["skipped"]}
    bad = "green/ball_00004.mp4"
    gaps = dict.fromkeys(("red/jump.mp4", "red/hole.mp4"), "too long gaps")
    assert found == {"red/broken.mp4": "unreadable", "red/silent.mp4": "silent", bad: "unreadable", **gaps}
    assert not (out / "train" / f"{bad}.safetensors").exists() and len(PreparedDataset(out).skipped) == 5
    told = json.loads((out / "report.json").read_text())["skipped_files"]
    assert {(e["split"], e["path"], e["reason"].partition(":")[0]) for e in told} == {
        ("train", *e) for e in found.items()
    }
    before, tried[:] = modified(out), []
    run(videos, out, "--codec=patch-pca")
    assert modified(out) == before and not tried


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--codec=patch-pca"], "was prepared with codec 'pixels', not 'patch-pca'"),
        (["--image-size=24"], "was prepared with image_size 16, not 24"),
        (["--n-mels=32"], "was prepared with n_mels 20, not 32"),
        (["--resize=crop"], "was prepared with resize 'pad', not 'crop'"),
        (["--fps=20"], "was prepared with fps 10, not 20"),
        (["--codec=jpeg"], "codec 'jpeg' is unknown; choose one of sd-vae"),
        (["--num-classes=2"], "--num-classes 2 contradicts the 3 class folders"),
        (["--fps=30"], "is not a whole number of mel frames per video frame"),
        (["--device=cuda:99"], "--device cuda:99 cannot be used"),
    ],
)
def test_other_facts_and_impossible_arguments_are_refused_and_nothing_changes(folder, balls, more, said):
    before = modified(folder)
    with pytest.raises(ValueError, match=said):
        run(balls, folder, *more)
    assert modified(folder) == before


def test_bad_folders_are_refused_in_one_sentence(balls, tmp_path, capsys):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no videos"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"):
        run(balls, tmp_path / "file" / "out")
    for more, said in (
        ("--normalise=clip", "--normalise clip scales each clip"),
        (f"--out={balls}", "is the folder of"),
    ):
        with pytest.raises(SystemExit):
            run(balls, tmp_path / "out", more)
        assert said in capsys.readouterr().err


def test_errors_of_the_script_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare.py", *argv(tmp_path / "nowhere", tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        cli.run(prepare.main)
    assert capsys.readouterr().err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------- names


def test_names_that_are_not_utf8_are_prepared_or_skipped_by_name(videos, tmp_path, capsys, no_sheet):
    """As recorders and old discs leave them; bytes that are not UTF-8 must reach every file and the terminal."""
    shutil.rmtree(videos / "test")
    shutil.rmtree(videos / "train" / "green")
    red, name = videos / "train" / "red", os.fsdecode(b"caf\xe9$.mp4")
    (red / "ball_00002.mp4").rename(red / name)
    red.rename(videos / "train" / os.fsdecode(b"ros\xe9"))
    broken = os.fsdecode(b"ros\xe9/tot\xff.mp4")
    (videos / "train" / broken).write_bytes(b"no video")
    out = run(videos, tmp_path / "out")
    assert "skipped 1 unreadable" in capsys.readouterr().out
    assert [e["path"] for e in index(out)["splits"]["train"]["skipped"]] == [broken]
    data = PreparedDataset(out)
    assert data.class_names == ("blue", r"ros\xe9")
    paths = {data[i]["path"] for i in range(len(data)) if data[i]["y"] == 1}
    assert paths == {str(out / "train" / r"ros\xe9" / r"caf\xe9$.mp4.safetensors")}
    before = modified(out)
    run(videos, out)
    assert modified(out) == before


def test_folder_for_latents_must_be_utf8(balls, tmp_path, capsys):
    with pytest.raises(SystemExit):
        prepare.parse(argv(balls, tmp_path / os.fsdecode(b"l\xe9")))
    assert "is not UTF-8" in capsys.readouterr().err
