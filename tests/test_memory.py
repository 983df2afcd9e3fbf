"""A memory beyond the window: what it shows is kept, exactly; streams, states, guidance and training with it."""

from dataclasses import replace

import pytest
import torch

import train
from data.clips import ClipDataset
from data.latents import EncodedFile, LatentDataset
from data.past import with_past
from data.synthetic import write_dataset
from diffusion.flow import flow_loss, uniform_weight
from diffusion.guidance import Guidance
from diffusion.noise import Modality, frame_noise
from models import FLAV
from models.fusion import FUSIONS
from pipeline import Streams, StreamState
from pipeline.film import RealClip
from tests.given import WINDOW, tiny, write_video
from tests.randomised import randomised
from tests.test_streams import film, run_together
from training.draws import Draws
from training.encode import encode_batch
from training.finetune import initialise
from training.opening import make_draws

AGES, T = [1, 3, 6], WINDOW
K, A = len(AGES), max(AGES)
CONFIG = dict(latent_size=4, patch_size=2, in_channels=3, n_mels=5, audio_fr=2, hidden_size=16, depth=2, num_heads=2,
              num_classes=3, predict_frames=T)  # fmt: skip


def flav(**more) -> FLAV:
    return randomised(FLAV(**CONFIG | {"memory_ages": AGES} | more), 0.3).double()


def gaussians(B, frames, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(B, frames, *shape, generator=rng, dtype=torch.float64) for shape in ((3, 4, 4), (2, 5)))


def clip(B=2, frames=T, seed=0):
    """A memory and a window: v, a, t (B,K + frames), y (B,K + frames)."""
    v, a = gaussians(B, K + frames, seed)
    times = torch.rand(B, frames, generator=torch.Generator().manual_seed(seed)).double()
    t = torch.cat([torch.tensor([[0.0, 1, 1], [1, 1, 1]])[:B].double(), times], 1)
    y = torch.arange(B * (K + frames)).view(B, -1) % 3
    return v, a, t, y


@pytest.fixture(scope="module")
def pipe():
    return tiny(memory_ages=AGES)


# ----------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_what_a_memory_shows_may_be_kept_whatever_the_window_is(fusion):
    model, (v, a, t, y) = flav(fusion=fusion), clip()
    past, now = slice(K), slice(K, None)
    kept = model.remember(v[:, past], a[:, past], t[:, past], y[:, past])
    for frames in (T, 2):
        now = slice(K, K + frames)
        whole = model(v[:, : K + frames], a[:, : K + frames], t[:, : K + frames], y[:, : K + frames], memory=True)
        part = model(v[:, now], a[:, now], t[:, now], y[:, now], kept=kept)
        for one, other in zip(whole, part):
            assert one.shape[1] == frames
            torch.testing.assert_close(other, one, rtol=0, atol=1e-10)
    other = v.clone()
    other[:, 0] += 1
    assert (model(other, a, t, y, memory=True)[0] - model(v, a, t, y, memory=True)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("fusion", ["c", "link"])
@torch.no_grad()
def test_frames_of_a_memory_have_places_of_their_own(fusion):
    model, inputs = flav(fusion=fusion), clip()
    base = model(*inputs, memory=True)[0]
    for name in ("video_memory_pos", "audio_memory_pos"):
        getattr(model, name)[0] += 0.5
        assert (model(*inputs, memory=True)[0] - base).abs().max() > 1e-6 or (fusion == "c" and "audio" in name)


@torch.no_grad()
def test_ages_are_times_that_a_link_sees():
    """The frame of age 6 stands six frames before the window's first."""
    one, two = flav(fusion="link"), flav(fusion="link", memory_ages=[1, 3, 9])
    two.load_state_dict(one.state_dict())
    assert (one(*clip(), memory=True)[0] - two(*clip(), memory=True)[0]).abs().max() > 1e-6


def test_model_without_a_memory_is_what_it_was():
    plain, remembering = FLAV(**CONFIG), FLAV(**CONFIG | {"memory_ages": AGES})
    more = remembering.state_dict().keys() - plain.state_dict().keys()
    assert more == {"video_memory_pos", "audio_memory_pos"} and not remembering.video_memory_pos.any()
    assert plain.memory_ages == () and list(plain.state_dict()) == [
        k for k in remembering.state_dict() if k not in more
    ]


def test_checkpoint_without_a_memory_is_a_beginning_for_one_with(tmp_path):
    plain = randomised(FLAV(**CONFIG), 0.3)
    plain.save_pretrained(tmp_path)
    model = FLAV(**CONFIG | {"memory_ages": AGES})
    report = initialise(model, tmp_path)
    assert set(report.left) == {"video_memory_pos", "audio_memory_pos"}
    assert all(model.state_dict()[name].equal(x) for name, x in plain.state_dict().items())
    model.save_pretrained(tmp_path / "more")
    assert FLAV.from_pretrained(tmp_path / "more").memory_ages == tuple(AGES)


def test_what_cannot_be_remembered_is_refused(tmp_path):
    for ages in ([0], [2, 2], [1.5], [-1]):
        with pytest.raises(ValueError, match="are not whole numbers above 0, each once; take 1 8 9 16 17 28"):
            FLAV(**CONFIG, memory_ages=ages)
    with pytest.raises(ValueError, match="leave --no-causal-attn out"):
        FLAV(**CONFIG, memory_ages=AGES, causal_attn=False)
    v, a, t, y = clip()
    with pytest.raises(ValueError, match=r"this model has a memory of ages \(1, 3, 6\); give it"):
        flav()(v[:, K:], a[:, K:], t[:, K:], y[:, K:])
    with pytest.raises(ValueError, match="this model has no memory; leave it out"):
        flav(memory_ages=None)(v, a, t, y, memory=True)
    with pytest.raises(ValueError, match=r"a memory of ages .* has no released form"):
        FLAV(**CONFIG, memory_ages=AGES).export_official(tmp_path)


# ------------------------------------------------------------------------------------------------------------- streams


def plain_film(pipe, frames, seed, label, n=2, scale=1.5):
    """The same film by a loop that keeps all frames and nothing else: what the sampler must equal."""
    model, shapes = pipe.model, pipe.model.frame_shapes
    noise = lambda k, kind, i: frame_noise(seed, 0, k, kind, shapes[i]).double()  # noqa: E731
    v, a = (torch.stack([noise(k, kind, i) for k in range(frames + T)])[None] for i, kind in enumerate((0, 1)))
    kinds = Modality.MEMORY_VIDEO, Modality.MEMORY_AUDIO
    for first in range(frames):
        past, times = [], []
        for age in sorted(AGES, reverse=True):
            there = first >= age
            past.append([x[:, first - age] if there else noise(age, kinds[i], i)[None] for i, x in enumerate((v, a))])
            times.append(float(there))
        lead = [torch.stack(column, 1) for column in zip(*past)]
        for s in range(n * T if not first else n):
            step = s if not first else n * T - n + s
            now = slice(first, first + T)
            t, after = (((torch.tensor(step + d) - n * torch.arange(T)).clamp(0, n * T) / (n * T)).double()[None]
                        for d in (0, 1))  # fmt: skip
            times_all = torch.cat([torch.tensor([times]).double(), t], 1)
            inputs = [torch.cat([m, x[:, now]], 1) for m, x in zip(lead, (v, a))]
            given, null = (pipe.model(*inputs, times_all, torch.tensor([y]), memory=True) for y in (label, 3))
            for x, one, base in zip((v, a), given, null):
                dx = base + scale * (one - base)
                x[:, now] += (after - t).view(1, T, *[1] * (x.ndim - 2)) * dx
    assert model.memory_ages == tuple(AGES)
    return v[0, :frames], a[0, :frames]


@torch.no_grad()
def test_stream_equals_a_loop_that_computes_all_anew(pipe):
    """Past the oldest age, with guidance, and frames that wait left out of the calls."""
    made = film(pipe.stream(y=1, seed=5, frames=A + 4, cfg_scale=1.5))
    v, a = plain_film(pipe, A + 4, 5, 1)
    torch.testing.assert_close(made.v, v, rtol=0, atol=1e-10)
    torch.testing.assert_close(made.a, a, rtol=0, atol=1e-10)


def test_memory_is_computed_once_a_frame_for_all_of_its_steps(pipe, monkeypatch):
    asked, remember = [], pipe.model.remember
    monkeypatch.setattr(pipe.model, "remember", lambda *x: asked.append(x[2]) or remember(*x))
    made = film(pipe.stream(y=1, seed=5, frames=9, num_timesteps=3))
    assert len(made.v) == 9 and len(asked) == 9 + Streams(pipe).run_on
    assert [t.sum().item() for t in asked[:8]] == [sum(k >= age for age in AGES) for k in range(8)]


def test_streams_of_any_age_and_past_share_calls(pipe):
    frames = torch.rand(A + T + 2, 3, 16, 16) * 2 - 1
    wave = torch.rand((A + T + 2) * 1600 + 2 * pipe.codec.context) - 0.5
    joins = {
        "long": (pipe.new_stream(0, y=0, seed=0), A + 3, {}),
        "extended": (pipe.extending(frames, wave, sample=1, y=1), A + T + 6, {}),
        "late": (pipe.new_stream(0, y=None, seed=7), 6, {}),
    }
    assert joins["extended"][0].window.past_v.any((2, 3, 4)).all()
    for how in (dict(num_timesteps=2), dict(num_timesteps=3, cfg_scale=1.5)):
        together = run_together(pipe, joins, **how)
        for name, (state, end, _) in joins.items():
            streams = Streams(pipe, **how)
            streams.join(name, state, end)
            one, other = film(chunk for _, chunk in streams), film(together[name])
            assert other.first == one.first and len(one.v) == end - one.first
            torch.testing.assert_close(other.v, one.v, rtol=0, atol=1e-10)
            torch.testing.assert_close(other.a, one.a, rtol=0, atol=1e-10)


@pytest.mark.parametrize("how", [{}, {"guidance": Guidance(1.0)}, {"t": 1.0}])
def test_given_sound_is_remembered_beside_the_picture_that_is_made_for_it(pipe, how):
    sound = gaussians(1, 20, seed=3)[1][0].repeat(1, 5, 4).float()
    streams = Streams(pipe, resumable=False, **how)
    streams.join("", pipe.new_stream(y=1), 12, given={Modality.AUDIO: lambda k: sound[k] if k < 20 else None})
    *_, (_, last) = streams
    assert last.state.window.past_a[0].float().equal(sound[12 - A : 12]) and last.state.window.past_v.std() > 0.1


def test_extended_clip_is_remembered(pipe):
    frames = torch.rand(A + T + 2, 3, 16, 16) * 2 - 1
    wave = torch.rand((A + T + 2) * 1600 + 2 * pipe.codec.context) - 0.5
    state = pipe.extending(frames, wave, y=1)
    first = len(frames) - T
    v = pipe.codec.encode(frames[None], wave[None])[0][0]
    assert int(state.window.first) == first
    torch.testing.assert_close(state.window.past_v[0], v[first - A : first].double(), rtol=0, atol=1e-6)
    chunk = next(iter(pipe.stream(state=state, frames=first + 3)))
    assert chunk.state.window.past_v[0, -1].equal(v[int(chunk.state.window.first) - 1].to(chunk.v))
    short = pipe.extending(frames[: T + 2], wave[: (T + 2) * 1600 + 2 * pipe.codec.context], y=1)
    assert not short.window.past_v[0, : A - 2].any() and short.window.past_v[0, -2:].any()


def test_a_clip_in_a_file_is_read_back_as_far_as_the_memory_reaches(pipe, tmp_path):
    real = RealClip.open(write_video(tmp_path / "clip.mp4", A + T + 3), pipe.codec)
    state, asked = real.begun(pipe, y=1), real.frames - T - A
    assert asked > 0 and int(state.window.first) == real.frames - T
    v = pipe.codec.encode(*(x[None] for x in real.read(asked, A)))[0][0]
    torch.testing.assert_close(state.window.past_v[0], v.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("stop", [2, A + 2])
def test_state_goes_on_bit_for_bit_from_a_file_and_forks_share_their_past(pipe, tmp_path, stop):
    whole = film(pipe.stream(state=pipe.new_stream(3, y=1, seed=4), frames=A + 6))
    *_, last = pipe.stream(state=pipe.new_stream(3, y=1, seed=4), frames=stop)
    last.state.save(tmp_path / "state.safetensors")
    state, _ = StreamState.load(tmp_path / "state.safetensors")
    assert state.window.past_v.shape == (1, A, 3, 16, 16) and state.window.past_y.shape == (1, A)
    rest = film(pipe.stream(state=state, frames=A + 6))
    assert rest.v.equal(whole.v[stop:]) and rest.a.equal(whole.a[stop:]) and rest.first == stop
    forks = [film(pipe.stream(state=state.forked(seed), frames=stop + 3 * T)) for seed in (8, 9)]
    assert not forks[0].v.equal(forks[1].v)


def test_state_has_a_constant_size(pipe):
    sizes = {sum(x.numel() for x in vars(chunk.state.window).values() if x is not None)
             for chunk in pipe.stream(y=1, frames=2 * A)}  # fmt: skip
    assert len(sizes) == 1


def test_class_switch_leaves_what_was_with_its_own_class(pipe):
    streams, seen = Streams(pipe), []
    streams.join("", pipe.new_stream(0, y=0), 14, labels=lambda k: 0 if k < 8 else 2)
    for _, chunk in streams:
        window = chunk.state.window
        seen.append((int(window.first) - 1, window.past_y[0, -1].item()))
    assert len(seen) == 14 and all(label == (0 if frame < 8 else 2) for frame, label in seen)


def test_states_of_another_shape_of_past_are_refused(pipe, tmp_path):
    state = pipe.new_stream(0, y=1)
    replace(state, window=replace(state.window, past_v=state.window.past_v[..., :8])).save(tmp_path / "bad")
    with pytest.raises(ValueError, match="its frames differ in shape"):
        StreamState.load(tmp_path / "bad")


# ------------------------------------------------------------------------------------------------------------ training


def test_frames_of_a_memory_come_before_the_clip_and_zeros_where_the_file_has_none():
    x = torch.arange(20.0)
    assert with_past(x[3:14], 9, AGES).tolist() == [3, 6, 8, 9, 10, 11, 12, 13]
    assert with_past(x[:6], 2, AGES).tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert with_past(x[2:6], 2, ()).tolist() == [2, 3, 4, 5]


def test_videos_and_their_latents_give_the_same_memory(pipe, tmp_path):
    write_dataset(tmp_path, train=1, test=0, frames=16)
    how = dict(clip_frames=T, image_size=16, context=pipe.codec.context)
    videos = ClipDataset(tmp_path, **how, ages=AGES)
    item = ClipDataset(tmp_path, **how).file(0)
    encoded = pipe.codec.encode(item["frames"][None], item["wave"][None])
    latents = LatentDataset([EncodedFile(*(x[0] for x in encoded), 0, "")], T, AGES)
    assert len(videos) == len(latents) == 16 - T + 1
    for k in (0, 2, 5, 9):
        one, other = (torch.utils.data.default_collate([data[k]]) for data in (videos, latents))
        of_video = encode_batch(one, pipe.codec, torch.device("cpu"), torch.float32, AGES)
        of_latents = encode_batch(other, pipe.codec, torch.device("cpu"), torch.float32, AGES)
        there = [k >= age for age in sorted(AGES, reverse=True)] + [True] * T
        assert of_video[4].tolist() == of_latents[4].tolist() == [k]
        for x, y in zip(of_video[:3], of_latents[:3]):
            assert x.shape[1] == K + T
            torch.testing.assert_close(x[:, there], y[:, there], rtol=1e-4, atol=1e-3)


SHAPES = ((K + T, 3, 4, 4), (K + T, 2, 5))


def drawn(B=4000, start=100, **more):
    draws = Draws(
        0, range(B), tuple((n, 1, 1, 1)[: len(s)] for s in SHAPES for n in s[:1]), 0.2, 0.1, 3, ages=AGES, **more
    )
    zeros = torch.zeros(B, K + T, 1, 1, 1)
    return draws(0, zeros, zeros, zeros[..., 0], torch.zeros(B, dtype=torch.long), torch.full((B,), start))


def test_memory_is_clean_or_forgotten_as_a_whole_in_a_tenth_and_where_a_stream_begins():
    inputs = drawn()
    t = inputs["times"][0][:, :K]
    assert inputs["memory"] is True and inputs["times"][1][:, :K].equal(t) and set(t.unique().tolist()) == {0.0, 1.0}
    assert (t == t[:, :1]).all() and t.mean().item() == pytest.approx(0.9, abs=0.02)
    some = drawn(start=4)["times"][0][:, :K]
    assert not some[:, 0].any() and some[:, 1].equal(t[:, 1])


def test_memory_noise_is_one_time_for_all_of_a_clip_that_leaves_what_is_not_there_and_the_window_as_they_are():
    plain, noisy = (drawn(memory_noise=x)["times"] for x in (0.0, 0.25))
    for clean, t in zip(plain, noisy):
        assert t[:, K:].equal(clean[:, K:]) and t[clean == 0].eq(0).all() and (t[:, :K] == t[:, :1]).all()
        there = t[clean[:, 0] == 1, 0]
        assert there.min() == pytest.approx(0.75, abs=0.01) and there.max() == pytest.approx(1, abs=0.01)
        assert there.mean().item() == pytest.approx(0.875, abs=0.01)
    assert noisy[0].equal(noisy[1])


def test_noise_on_a_memory_is_asked_for_with_one(pipe, tmp_path, capsys):
    how = ["--data-path", str(tmp_path), "--experiment-dir", str(tmp_path / "run")]
    args = train.parse([*how, "--predict-frames", str(T), "--memory", "1", "--memory-noise", "0.3"])
    assert make_draws(args, pipe.codec, pipe.model, range(2), None).memory_noise == 0.3
    for more, complaint in (
        (["--memory-noise", "0.3"], "--memory-noise is of the frames of a memory; give --memory"),
        (["--memory", "1", "--memory-noise", "1.5"], "--memory-noise 1.5 leads to no flow time; choose 0 to 1"),
    ):
        with pytest.raises(SystemExit):
            train.parse([*how, *more])
        assert complaint in capsys.readouterr().err


def test_loss_is_that_of_the_window_alone():
    model, (v, a, t, y) = flav(), clip()
    noise = gaussians(2, K + T, seed=1)
    loss = flow_loss(model, v, a, y, t, noise, uniform_weight, memory=True)
    assert loss.error_v.shape == loss.error_a.shape == (2, T)
    points = [(t.view(2, -1, *[1] * (x.ndim - 2)) * x + (1 - t).view(2, -1, *[1] * (x.ndim - 2)) * e)
              for x, e in zip((v, a), noise)]  # fmt: skip
    made = model(*points, t, y, memory=True)
    expected = sum((m - (x - e)[:, K:]).square().mean() for m, x, e in zip(made, (v, a), noise))
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)


def test_cuts_change_the_window_and_not_what_it_remembers():
    draws = Draws(0, range(4), SHAPES, 0.0, 0.0, 3, cuts=1.0, ages=AGES)
    v, a = (x.float() for x in gaussians(4, K + T))
    inputs = draws(0, v, 0 * v, a, torch.tensor([0, 1, 2, 0]), torch.full((4,), 50))
    assert inputs["v"][:, :K].equal(v[:, :K]) and not inputs["v"].equal(v)
    assert inputs["y"].shape == (4, K + T) and inputs["y"][:, :K].eq(torch.tensor([[0], [1], [2], [0]])).all()
