"""Where everything meets: released folders, clips and streams, and what a checkpoint says when it does not fit."""

import json
import math
from dataclasses import replace
from itertools import islice

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.clips import ClipDataset
from data.synthetic import calibrate, detect_pings, write_dataset
from models import FLAV
from models.codec import PatchPCA, Pixels
from pipeline import AVCodec, AVPipeline, AVSpec
from tests.closeness import assert_close_by_size
from tests.randomised import randomised
from vocoder import GriffinLim, HiFiGAN, HiFiGANConfig

HIFIGAN = dict(
    resblock="2",
    upsample_initial_channel=32,
    upsample_rates=(8, 5, 4),
    upsample_kernel_sizes=(16, 10, 8),
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 2),),
)
SMALL = dict(hidden_size=32, depth=2, num_heads=2, predict_frames=4)


def random(module, std=0.1):
    """The module with random weights everywhere: fresh ones give zeros."""
    return randomised(module, std).eval()


def hifigan(n_mels):
    return random(HiFiGAN(HiFiGANConfig(num_mels=n_mels, **HIFIGAN)))


def small(dtype=torch.float32, vocoder=None, **more):
    """A pipeline on 16 px pictures with 20 mel bins and three classes."""
    facts = dict(n_mels=20, audio_scale=2.0, image_size=16, codec="pixels", class_names=("x", "y", "z"))
    spec = AVSpec(**facts, vocoder="griffin-lim" if isinstance(vocoder, GriffinLim) else "hifigan")
    config = dict(latent_size=16, patch_size=8, in_channels=3, n_mels=20, num_classes=3) | SMALL | {"depth": 1} | more
    if not config["num_classes"]:
        spec = replace(spec, class_names=())
    codec = AVCodec(spec, Pixels(), vocoder or hifigan(20))
    return AVPipeline(random(FLAV(**config), 0.2), codec, dtype=dtype)


# ----------------------------------------------------------------------------------------------------- released layout


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A tiny AutoencoderKL, 8 pixels to 4 channels."""
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    model = diffusers.AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4)
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def released(tmp_path):
    """A folder as on the hub: model under released names, vocoder.pt with weight norm, no pipeline.json."""
    folder = tmp_path / "R-FLAV-B-1-AIST"
    model = random(FLAV(latent_size=4, patch_size=1, in_channels=4, n_mels=24, num_classes=2, **SMALL))
    model.export_official(folder)
    voice = hifigan(24)
    weights = {}
    for key, w in voice.state_dict().items():
        if key.endswith(".weight"):  # v is any multiple of the weight, g its norm
            norm = w.norm(dim=tuple(range(1, w.ndim)), keepdim=True)
            weights |= {f"{key}_g": norm, f"{key}_v": 3 * w}
        else:
            weights[key] = w
    (folder / "vocoder").mkdir()
    config = HIFIGAN | {"num_mels": 24, "sampling_rate": 16000, "learning_rate": 2e-4}
    (folder / "vocoder" / "config.json").write_text(json.dumps(config))
    torch.save({"generator": weights}, folder / "vocoder" / "vocoder.pt")
    return folder


def test_released_folder_has_the_released_names(released):
    assert sorted(path.name for path in released.iterdir()) == ["config.json", "model.safetensors", "vocoder"]
    assert "v_embedder.proj.weight" in load_file(released / "model.safetensors")
    assert "fusion" not in json.loads((released / "config.json").read_text())


def test_released_folder_loads_samples_and_decodes(released, vae):
    pipe = AVPipeline.from_pretrained(released, codec_source=vae)
    clips = pipe.sample([0, 1], 3, y=torch.tensor([0, 1]))
    assert clips.frames.shape == (2, 3, 32, 32, 3) and clips.frames.dtype == torch.uint8
    assert clips.wave.shape == (2, 3 * 1600) and clips.wave.abs().max() <= 1
    assert clips.v.isfinite().all() and clips.v.std() > 0.1 and clips.wave.std() > 0
    assert (pipe.spec.normalise, pipe.spec.channels, pipe.spec.image_size) == ("clip", "first", 32)


def test_what_makes_sampling_faster_changes_nothing_when_it_is_switched_off(released, vae):
    def sampled(**off):
        pipe = AVPipeline.from_pretrained(released, dtype=torch.float64, codec_source=vae, **off)
        return pipe.sample([0, 1], 4, y=torch.tensor([0, 1]), cfg_scale=2)

    fast = sampled()
    for off in (dict(skip=False), dict(tables=False), dict(skip=False, tables=False)):
        plain = sampled(**off)
        assert (fast.v - plain.v).abs().max() < 1e-12 and (fast.a - plain.a).abs().max() < 1e-12
    assert fast.v.std() > 0.1


def test_released_weights_give_the_same_model_and_vocoder(released, vae):
    pipe = AVPipeline.from_pretrained(released, codec_source=vae)
    model = random(FLAV(latent_size=4, patch_size=1, in_channels=4, n_mels=24, num_classes=2, **SMALL))
    own = model.state_dict()
    assert all(weight.equal(own[name]) for name, weight in pipe.model.state_dict().items())
    mel = torch.randn(1, 24, 30)
    assert_close_by_size(pipe.codec.vocoder(mel), hifigan(24)(mel))


@pytest.mark.parametrize(
    ("name", "scale"), [("R-FLAV-B-1-AIST", 3.5009668382765917), ("R-FLAV-B-1-LS", 3.0951129410195515)]
)
def test_audio_scale_of_a_released_folder_follows_from_its_name(released, vae, name, scale):
    folder = released.rename(released.with_name(name))
    assert AVPipeline.from_pretrained(folder, codec_source=vae).spec.audio_scale == scale


def test_audio_scale_of_an_unknown_released_folder_must_be_given(released, vae):
    folder = released.rename(released.with_name("mine"))
    with pytest.raises(ValueError, match="give --audio-scale"):
        AVPipeline.from_pretrained(folder, codec_source=vae)
    assert AVPipeline.from_pretrained(folder, audio_scale=1.5, codec_source=vae).spec.audio_scale == 1.5
    with pytest.raises(ValueError, match=r"audio scale 0.* is not positive"):
        AVPipeline.from_pretrained(folder, audio_scale=0.0, codec_source=vae)


def test_audio_scale_that_contradicts_the_stored_one_is_refused(tmp_path):
    small().save(tmp_path / "p")
    assert AVPipeline.from_pretrained(tmp_path / "p", audio_scale=2.0).spec.audio_scale == 2.0
    with pytest.raises(ValueError, match=r"audio scale 3.0 contradicts the checkpoint's 2.0"):
        AVPipeline.from_pretrained(tmp_path / "p", audio_scale=3.0)


def test_missing_vocoder_is_named_and_griffin_lim_does_without(released, vae):
    for path in (released / "vocoder").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"vocoder.config.json does not exist; give the folder of a HiFi-GAN"):
        AVPipeline.from_pretrained(released, codec_source=vae)
    pipe = AVPipeline.from_pretrained(released, codec_source=vae, vocoder="griffin-lim")
    assert pipe.sample([0], 2, y=0).wave.shape == (1, 3200)


def test_checkpoint_without_weights_or_with_others_is_named(released, vae):
    weights = load_file(released / "model.safetensors")
    narrow = {key: w[..., :-1].contiguous() if key.startswith("a_embedder.weight") else w for key, w in weights.items()}
    save_file(narrow, released / "model.safetensors")
    with pytest.raises(ValueError, match=r"audio_embed.weight is \(32, 23\), not \(32, 24\)"):
        AVPipeline.from_pretrained(released, codec_source=vae)
    (released / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors"):
        AVPipeline.from_pretrained(released, codec_source=vae)


def test_parts_of_different_checkpoints_do_not_fit_together(tmp_path):
    spec = AVSpec(n_mels=20, image_size=16, codec="pixels", vocoder="hifigan")
    model = FLAV(latent_size=16, patch_size=8, in_channels=3, n_mels=20, **SMALL)
    with pytest.raises(ValueError, match="the model has 20 at 160"):
        AVCodec(spec, Pixels(), hifigan(24))
    with pytest.raises(ValueError, match="take the codec and the image size the model was trained with"):
        AVPipeline(model, AVCodec(replace(spec, image_size=32), Pixels(), hifigan(20)))
    with pytest.raises(ValueError, match="one of the files belongs to another checkpoint"):
        AVPipeline(model, AVCodec(replace(spec, n_mels=24), Pixels(), hifigan(24)))


# ------------------------------------------------------------------------------------------------------ encode, decode


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    root = tmp_path_factory.mktemp("balls")
    write_dataset(root, train=3, test=0, frames=24)
    return ClipDataset(root, clip_frames=10, image_size=64, context=AVCodec.context)


@pytest.fixture(scope="module")
def codec(balls):
    frames = PatchPCA.fit(balls.file(i)["frames"] for i in range(3))
    return AVCodec(AVSpec(n_mels=64, audio_scale=3.0, image_size=64, codec="patch-pca"), frames, GriffinLim(64))


def encoded(codec, item):
    return codec.encode(item["frames"][None], item["wave"][None])


def test_encoding_a_clip_gives_the_slice_of_encoding_its_file(balls, codec):
    whole = encoded(codec, balls.file(1))
    first = next(i for i in range(len(balls)) if balls.path(i) == balls.file(1)["path"])
    for start in (0, 3, 14):
        item = balls[first + start]
        assert item["start"] == start
        for part, full in zip(encoded(codec, item), whole):
            assert_close_by_size(part, full[:, start : start + 10])


def test_a_shift_by_one_sample_would_show_in_the_encoding(balls, codec):
    item = balls[3]
    shifted = codec.encode(item["frames"][None], item["wave"].roll(1)[None])[2]
    assert (shifted - encoded(codec, item)[2]).abs().max() > 1e-2


def test_encoded_clip_has_one_latent_and_ten_mel_frames_per_picture(balls, codec):
    mean, std, a = encoded(codec, balls[0])
    assert mean.shape == std.shape == (1, 10, 12, 8, 8) and a.shape == (1, 10, 10, 64)


def test_decoding_gives_back_picture_and_sound_at_the_same_times(balls, codec):
    for i in range(2):
        item = balls.file(i)
        mean, _, a = encoded(codec, item)
        frames, wave = codec.decode(mean, a)
        assert frames.shape == (1, 24, 64, 64, 3) and wave.shape == (1, 24 * 1600)
        original = (127.5 * (item["frames"].movedim(1, -1) + 1)).clamp(0, 255)
        error = (frames[0] - original).abs()
        assert error.mean() < 3 and error.mean((1, 2, 3)).max() < 6
        sound = item["wave"][codec.context : -codec.context]
        real = detect_pings(sound.numpy(), 16000, 10, calibrate([sound.numpy()]))
        heard = detect_pings(wave[0].numpy(), 16000, 10, calibrate([wave[0].numpy()]))
        assert len(real) == len(heard) >= 2 and np.abs(real - heard).max() < 0.05, np.abs(real - heard).max()


def test_mel_survives_the_way_to_the_model_and_back(balls, codec):
    a = encoded(codec, balls[0])[2]
    mel = codec.mel(a)
    assert mel.shape == (1, 64, 100)
    torch.testing.assert_close(codec.mel(a)[0, :, 37], codec.mel(a[:, 3:4])[0, :, 7])
    scaled = replace(codec.spec, audio_scale=6.0)
    torch.testing.assert_close(AVCodec(scaled, codec.frames, codec.vocoder).mel(2 * a), mel)


# ------------------------------------------------------------------------------------------------------- clips, streams


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_a_clip_does_not_depend_on_its_neighbours(dtype, close):
    pipe, y = small(dtype), torch.tensor([0, 1, 2, 0])
    four = pipe.sample([0, 1, 2, 3], 6, y)
    assert four.v.dtype == dtype and not four.v[0].allclose(four.v[3])
    three, one = pipe.sample([1, 2, 3], 6, y[1:]), pipe.sample([2], 6, y[2:3])
    for some, rows in ((three, slice(1, 4)), (one, slice(2, 3))):
        torch.testing.assert_close(some.v, four.v[rows], rtol=0, atol=close)
        torch.testing.assert_close(some.a, four.a[rows], rtol=0, atol=close)
        torch.testing.assert_close(some.wave, four.wave[rows], rtol=0, atol=1e-3)
        assert (some.frames.int() - four.frames[rows].int()).abs().max() <= 1


def test_seed_sample_class_steps_and_guidance_each_change_the_clip():
    pipe = small()
    one = pipe.sample([0], 3, y=0, seed=0).v
    assert one.equal(pipe.sample([0], 3, y=0, seed=0).v)
    others = [dict(y=1), dict(seed=1), dict(num_timesteps=3), dict(cfg_scale=2.0)]
    assert not any(one.allclose(pipe.sample([0], 3, **({"y": 0} | other)).v) for other in others)
    assert not one.allclose(pipe.sample([1], 3, y=0).v)


@pytest.mark.parametrize("frames", [1, 4, 9])
def test_chunks_of_a_stream_joined_are_the_clip(frames):
    pipe = small()
    clip = pipe.sample([5], frames, y=1, seed=3)
    heard = frames * 1600 - 160 * pipe.codec.vocoder.context  # what comes after the end is heard in the last samples
    for resumable, same in ((False, frames * 1600), (True, max(0, heard))):
        chunks = list(pipe.stream(1, sample=5, seed=3, frames=frames, resumable=resumable))
        wave = torch.cat([chunk.wave for chunk in chunks])
        assert torch.cat([chunk.frames for chunk in chunks]).equal(clip.frames[0]) and len(wave) == frames * 1600
        assert wave[:same].sub(clip.wave[0, :same]).abs().le(1e-5 * clip.wave.abs().max()).all()


def test_picture_and_sound_of_a_chunk_belong_together():
    first, pipe = 0, small()
    for chunk in islice(pipe.stream(0), 6):
        assert chunk.first == first and len(chunk.frames) > 0
        assert len(chunk.wave) == len(chunk.frames) * 1600
        first += len(chunk.frames)


def test_sound_waits_for_its_context_and_no_longer():
    """A chunk leaves as soon as the mel frames that its sound needs are there."""
    pipe = small()
    late = math.ceil(pipe.codec.vocoder.context / 10)
    for resumable, last in (
        (False, 1 + late),
        (True, 1),
    ):  # what still waits comes with the last one, or with what follows
        chunks = list(pipe.stream(0, frames=8, resumable=resumable))
        assert chunks[0].state.window.first.item() == 1 + late and len(chunks[0].frames) == 1
        assert len(chunks[-1].frames) == last


def test_stream_without_end_begins_with_the_clip():
    pipe = small(torch.float64)
    clip, got = pipe.sample([0], 5, y=2), []
    for chunk in pipe.stream(2):
        got.extend(chunk.frames)
        if len(got) >= 5:
            break
    assert torch.stack(got[:5]).equal(clip.frames[0])


def test_saved_pipeline_is_the_same_to_the_bit(tmp_path):
    pipe = small()
    pipe.save(tmp_path / "p")
    again = AVPipeline.from_pretrained(tmp_path / "p")
    assert again.spec == pipe.spec
    one, two = (p.sample([0, 1], 4, y=1, cfg_scale=1.5) for p in (pipe, again))
    assert one.v.equal(two.v) and one.a.equal(two.a) and one.frames.equal(two.frames) and one.wave.equal(two.wave)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]


def test_saved_fitted_codec_is_the_same_to_the_bit(codec, balls, tmp_path):
    codec.save(tmp_path)
    again = AVCodec.load(tmp_path)
    one, two = encoded(codec, balls[0]), encoded(again, balls[0])
    assert again.spec == codec.spec and all(a.equal(b) for a, b in zip(one, two))
    assert codec.decode(one[0], one[2])[1].equal(again.decode(two[0], two[2])[1])


def test_saving_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    pipe = small()
    pipe.save(tmp_path / "p")
    monkeypatch.setattr(pipe.codec, "save", lambda folder: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        pipe.save(tmp_path / "p")
    assert AVPipeline.from_pretrained(tmp_path / "p").spec == pipe.spec
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


# --------------------------------------------------------------------------------------------------------------- labels


def test_null_label_is_what_no_label_means():
    pipe = small()
    assert pipe.label(None).item() == 3
    assert pipe.sample([0], 2).v.equal(pipe.sample([0], 2, y=3).v)


def test_label_may_change_in_mid_stream():
    """Frames see their own label and, being causal, those of earlier ones."""
    pipe = small()
    constant, changing = (pipe.sample([0], 4, y=torch.tensor([y])).v for y in ([0, 0, 0, 0], [0, 0, 1, 1]))
    assert constant[:, :2].equal(changing[:, :2]) and not constant[:, 2:].allclose(changing[:, 2:])


@pytest.mark.parametrize("y", [4, -1, torch.tensor([0, 7])])
def test_label_that_does_not_exist_is_refused(y):
    with pytest.raises(ValueError, match="does not exist; this model has 3 classes, 0 to 2"):
        small().sample([0, 1], 2, y=y)


@pytest.mark.parametrize("y", [torch.tensor([0, 1]), torch.tensor([[0, 1, 2]]), torch.zeros(3, 3, dtype=torch.int64)])
def test_labels_that_are_not_one_per_sample_are_refused(y):
    with pytest.raises(ValueError, match="do not fit 3 samples and a window of 4 frames"):
        small().sample([0, 1, 2], 2, y=y)


def test_label_of_a_model_without_classes_is_refused():
    pipe = small(num_classes=0)
    assert pipe.sample([0], 1).v.shape == (1, 1, 3, 16, 16)
    with pytest.raises(ValueError, match="no classes; leave it out"):
        pipe.sample([0], 1, y=1)


def test_guidance_and_no_label_need_a_null_label():
    pipe = small(class_dropout_prob=0.0)
    assert pipe.sample([0], 1, y=2).v.isfinite().all()
    with pytest.raises(ValueError, match="needs a model with classes or text and a null label"):
        pipe.sample([0], 1, y=2, cfg_scale=2.0)
    with pytest.raises(ValueError, match="does not exist"):
        pipe.sample([0], 1)


# ----------------------------------------------------------------------------------------------------------------- spec


def test_counts_follow_from_the_rates():
    assert (AVSpec().mel_per_frame, AVSpec().samples_per_frame) == (10, 1600)
    other = AVSpec(fps=25, sample_rate=24000, hop=120)
    assert (other.mel_per_frame, other.samples_per_frame) == (8, 960)


def test_spec_survives_its_file(tmp_path):
    spec = AVSpec(audio_scale=1.25, class_names=("a", "b"), step=7, codec_source="somewhere")
    spec.save(tmp_path)
    assert AVSpec.load(tmp_path) == spec


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (dict(hop=150), "choose a hop that divides 1600"),
        (dict(audio_scale=0.0), "is not positive"),
        (dict(audio_scale=float("nan")), "is not positive"),
        (dict(codec="jpeg"), "codec 'jpeg' is unknown; choose one of sd-vae"),
        (dict(vocoder="choir"), "vocoder 'choir' is unknown; choose one of hifigan"),
    ],
)
def test_facts_that_cannot_be_are_refused(facts, said):
    with pytest.raises(ValueError, match=said):
        AVSpec(**facts)


def test_file_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "pipeline.json").write_text('{"fps": 10, "colour": "blue"}')
    with pytest.raises(ValueError, match=r"has \['colour'\], unknown to this version"):
        AVSpec.load(tmp_path)


def test_model_whose_activations_overflow_is_told_in_one_sentence(released, vae):
    pipe = AVPipeline.from_pretrained(released, codec_source=vae)
    pipe.model.video_head.linear.bias.fill_(math.nan)
    with pytest.raises(ValueError, match=r"not finite \(at \[0, 1\] of the batch\).*take another --seed"):
        pipe.sample([0, 1], 2, y=0)


def test_blocks_are_compiled_once_for_all_and_again_for_one_frame_and_one_clip_alone(released, vae):
    from torch._dynamo.testing import CompileCounter  # slow to import

    pipe, counter = AVPipeline.from_pretrained(released, codec_source=vae), CompileCounter()
    for block in pipe.model.blocks:
        block.compile(backend=counter)
    for samples in ([0], [0, 1]):
        pipe.sample(samples, 3, y=0, cfg_scale=1.0)
    assert counter.frame_count == 4  # one frame or more, of one clip or more


@pytest.mark.slow
def test_compiled_blocks_make_the_same_clips(released, vae):
    """Minutes of compiling, for kernels that fuse differently."""
    plain, compiled = (AVPipeline.from_pretrained(released, codec_source=vae) for _ in range(2))
    compiled.model.compile_blocks()
    one, two = (pipe.sample([0, 1], 3, y=0, seed=1) for pipe in (plain, compiled))
    assert torch.allclose(one.v, two.v, atol=1e-4) and torch.allclose(one.a, two.a, atol=1e-4)
