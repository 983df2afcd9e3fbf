"""The sampler: trajectories of the official implementation, and what streaming rests on."""

from functools import partial

import pytest
import torch
from einops import rearrange

from diffusion.guidance import Guidance, class_guided
from diffusion.known import known_clip
from diffusion.noise import Modality, frame_noise
from diffusion.rolling import advance, roll, start
from models import FLAV
from models.fusion import FUSIONS

JOINT = ["joint_uncond_w4_k2", "joint_uncond_w10_k2", "joint_uncond_w4_k5", "joint_class_plain_k2",
         "joint_class_cfg_k3"]  # fmt: skip
A2V = ["a2v_long_s100", "a2v_exhausted_s100", "a2v_class_cfg_s10"]
V2A = ["v2a_long_s100", "v2a_exhausted_s2"]
VIDEO, AUDIO, PAD_VIDEO, PAD_AUDIO, *_ = Modality


def sequence(case, *names):
    """Stored noise of consecutive frames, audio as (B,T,S,M)."""
    x = torch.cat([case.tensors[name] for name in names], 1)
    return rearrange(x, "b t 1 m s -> b t s m") if x.shape[2] == 1 else x


def stored_noise(**by_modality):
    """A noise source that replays the case's draws: sequence of each modality, pads from where they begin."""

    def noise(seed, sample, frame, modality, shape):
        first, frames = by_modality[modality.name]
        assert frames[sample, frame - first].shape == shape
        return frames[sample, frame - first]

    return noise


def sample_case(case, known=None, guidance=None, noise=None, skip=True):
    """All frames (B,K,...) of both modalities, and the window at the end of pre-rolling."""
    model = FLAV(**case.model_config)
    model.load(case.weights)
    model.eval().requires_grad_(False)
    config = case.config
    T, n, B = config["window"], config["num_timesteps"], config["batch"]
    velocity = class_guided(model, config["guidance_scale_labels"] or 1, model.num_classes)
    window = start(T, model.frame_shapes, 0, torch.arange(B), case.tensors.get("in.y"), noise)
    frames = roll(window, velocity, n, config["output_frames"], known=known, guidance=guidance, skip=skip, noise=noise)
    frames = list(frames)
    assert all(frame.rows.tolist() == list(range(B)) for frame in frames)
    return torch.stack([f.v for f in frames], 1), torch.stack([f.a for f in frames], 1), frames[0]


def assert_close(case, got, expected):
    expected = rearrange(expected, "b t 1 m s -> b t s m") if expected.shape[2] == 1 else expected
    torch.testing.assert_close(got, expected, atol=case.tolerance["abs"], rtol=case.tolerance["rel"])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", JOINT)
def test_joint_trajectory_equals_the_official_one(parity, name, skip):
    case = parity(name)
    draws = {m.upper(): (0, sequence(case, f"noise.init_{m}", f"noise.new_{m}")) for m in ("video", "audio")}
    v, a, first = sample_case(case, noise=stored_noise(**draws), skip=skip)
    assert_close(case, v, case.tensors["out.video"])
    assert_close(case, a, case.tensors["out.audio"])
    # the window right after pre-rolling, before its first frame left
    assert_close(case, torch.cat([first.v[:, None], first.window.v[:, :-1]], 1), case.tensors["state.pre_video"])
    assert_close(case, torch.cat([first.a[:, None], first.window.a[:, :-1]], 1), case.tensors["state.pre_audio"])


@pytest.mark.parametrize("name", A2V + V2A)
def test_conditional_trajectory_equals_the_official_one(parity, name):
    case = parity(name)
    given, made = (AUDIO, VIDEO) if case.config["mode"] == "a2v" else (VIDEO, AUDIO)
    clean = sequence(case, "cond.clean")
    draws = {made.name: (0, sequence(case, "noise.init", "noise.new"))}
    # the sampler also starts and refills the given modality, though it overwrites those frames
    spare = clean.new_zeros(*clean.shape[:1], case.config["window"] + case.config["output_frames"], *clean.shape[2:])
    eps = sequence(case, *(name for name in ("noise.cond", "pad.noise") if name in case.tensors))
    spare[:, : eps.shape[1]] = eps[:, : spare.shape[1]]
    draws[given.name] = (0, spare)
    if "pad.clean" in case.tensors:
        draws[f"PAD_{given.name}"] = (clean.shape[1], sequence(case, "pad.clean"))
    noise = stored_noise(**{"PAD_" + given.name: (0, None), **draws})
    clip = known_clip(clean, given, pad="noise" if "pad.clean" in case.tensors else "joint", noise=noise)
    known = (lambda w: (None, clip(w))) if given is AUDIO else (lambda w: (clip(w), None))
    guidance = Guidance(case.config["guidance_scale_cross"], reduction="batch")
    v, a, _ = sample_case(case, known, guidance, noise)
    assert_close(case, v if made is VIDEO else a, case.tensors["out.expected"])
    known_frames = min(clean.shape[1], case.config["output_frames"])
    torch.testing.assert_close((a if made is VIDEO else v)[:, :known_frames], clean[:, :known_frames])


# ---- properties, in float64 ----

SHAPES = (3, 4, 4), (4, 6)


def random_model(**changes):
    torch.manual_seed(0)
    small = dict(latent_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=1, num_heads=2, predict_frames=5,
                 n_mels=6, audio_fr=4)  # fmt: skip
    model = FLAV(**{**small, **changes}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model.eval().requires_grad_(False)


def generate(model, n=2, frames=7, samples=(0, 1), y=None, dtype=torch.float64, T=5, **how):
    window = start(T, SHAPES, 3, torch.tensor(samples), y, dtype=dtype)
    out = list(roll(window, model, n, frames, **how))
    return torch.stack([f.v for f in out], 1), torch.stack([f.a for f in out], 1)


def difference(one, two):
    return max((x - y).abs().max().item() for x, y in zip(one, two))


def counted(velocity):
    """The velocity, with the frames and calls it was asked for."""

    def counting(v, a, t, **conditions):
        counting.frames += v.shape[1]
        counting.calls += 1
        return velocity(v, a, t, **conditions)

    counting.frames = counting.calls = 0
    return counting


@pytest.mark.parametrize("fusion", FUSIONS)
def test_skipping_frames_changes_nothing(fusion):
    model = random_model(fusion=fusion)
    fast, whole = counted(model), counted(model)
    one, two = generate(fast), generate(whole, skip=False)
    assert difference(one, two) < 1e-12
    assert fast.frames < whole.frames and fast.calls == whole.calls


def test_a_16_frame_clip_costs_320_of_500_frame_evaluations():
    def still(v, a, t, **_):
        return torch.zeros_like(v), torch.zeros_like(a)

    fast, whole = counted(still), counted(still)
    generate(fast, n=2, frames=16, samples=[0], T=10)
    generate(whole, n=2, frames=16, samples=[0], T=10, skip=False)
    assert (fast.frames, whole.frames) == (320, 500)
    assert fast.calls == whole.calls == 2 * 10 + 2 * 15


@pytest.mark.parametrize("n", [1, 2, 5])
def test_an_oracle_velocity_returns_every_frame_exactly(n):
    T, frames = 5, 9
    data = torch.randn(2, frames + T, *SHAPES[0]).double(), torch.randn(2, frames + T, *SHAPES[1]).double()

    def eps(first, modality, shape):
        rows = [[frame_noise(3, b, first + k, modality, shape) for k in range(T)] for b in (0, 1)]
        return torch.stack([torch.stack(row) for row in rows])

    window = start(T, SHAPES, 3, torch.arange(2), dtype=torch.float64)
    calls = 0
    while window.first[0] < frames:
        first = int(window.first[0])
        target = [x[:, first : first + T] - eps(first, m, s) for x, m, s in zip(data, (VIDEO, AUDIO), SHAPES)]
        window, emitted = advance(window, lambda v, a, t, target=target: target, n, skip=False)
        calls += 1
        if emitted:
            assert calls == n * T + n * first
            torch.testing.assert_close(emitted.v, data[0][:, first], atol=1e-12, rtol=0)
            torch.testing.assert_close(emitted.a, data[1][:, first], atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_a_clip_does_not_depend_on_its_batch(dtype, tolerance):
    model = random_model(num_classes=3).to(dtype)
    run = partial(generate, model, dtype=dtype)
    alone = run(samples=[2], y=torch.tensor([1]))
    for samples, y in (([0, 2, 5], [0, 1, 2]), ([2, 7, 8, 9], [1, 1, 0, 2])):
        row = samples.index(2)
        together = run(samples=samples, y=torch.tensor(y))
        assert difference(alone, [x[row : row + 1] for x in together]) < tolerance


def test_rows_of_any_age_share_a_call_join_and_leave():
    model, n = random_model(num_classes=3), 2
    labels = torch.tensor([0, 2])
    alone = generate(model, n, frames=6, y=labels)
    window = start(5, SHAPES, 3, torch.tensor([0]), labels[:1], dtype=torch.float64)
    got = {0: [], 1: []}
    for step in range(36):
        if step == 7:  # sample 1 joins while sample 0 still pre-rolls
            new = start(5, SHAPES, 3, torch.tensor([1]), labels[1:], dtype=torch.float64)
            window = window.joined(new)
        if len(got[0]) == 6 and len(window.first) == 2:  # sample 0 leaves
            window = window[1:]
        window, emitted = advance(window, model, n)
        for i in range(len(emitted.rows) if emitted else 0):
            sample = int(window.sample[emitted.rows[i]])
            assert emitted.index[i] == len(got[sample])
            got[sample].append((emitted.v[i], emitted.a[i]))
    for sample in (0, 1):
        row = [torch.stack(x)[:6] for x in zip(*got[sample])]
        assert difference(row, [x[sample] for x in alone]) < 1e-10


def test_a_label_changed_in_mid_stream_changes_no_earlier_frame():
    model, n = random_model(num_classes=3), 2
    plain = generate(model, n, frames=12, y=torch.tensor([0, 0]))
    window, frames = start(5, SHAPES, 3, torch.arange(2), torch.tensor([0, 0]), dtype=torch.float64), []
    while len(frames) < 12:
        if window.first[0] == 4 and window.step[0] == 8:  # from frame 8 on: the last of the window
            y = window.y.clone()
            y[:, -1] = 2
            window = type(window)(**{**vars(window), "y": y})
        window, emitted = advance(window, model, n)
        if emitted:
            frames.append(emitted)
        if len(frames) > 4:
            assert torch.equal(window.y, torch.where(window.frames >= 8, 2, 0))
    v = torch.stack([f.v for f in frames], 1)
    change = (v - plain[0]).abs().flatten(2).amax(2)[0]
    assert change[:8].max() < 1e-12 and change[8:].min() > 1e-6


def test_known_frames_come_out_as_given_and_steer_the_rest():
    model = random_model()
    clean = torch.randn(2, 3, *SHAPES[0]).double(), torch.randn(2, 3, *SHAPES[1]).double()
    clips = [known_clip(x, m) for x, m in zip(clean, (VIDEO, AUDIO))]
    known = lambda window: (clips[0](window), clips[1](window))  # noqa: E731
    v, a = generate(model, known=known)
    torch.testing.assert_close(v[:, :3], clean[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(a[:, :3], clean[1], atol=1e-12, rtol=0)
    assert difference((v[:, 3:], a[:, 3:]), [x[:, 3:] for x in generate(model)]) > 1e-3
    assert difference((v, a), generate(model, known=known, skip=False)) < 1e-12


def test_a_known_frame_lies_on_its_line_at_every_step():
    clean = torch.randn(1, 9, *SHAPES[1]).double()
    eps = torch.stack([frame_noise(3, 0, k, AUDIO, SHAPES[1]) for k in range(9)]).double()
    clip = known_clip(clean, AUDIO)

    def watching(v, a, t, **_):
        first = int(window.first)
        line = t[0, :, None, None] * clean[0, first : first + 5] + (1 - t[0, :, None, None]) * eps[first : first + 5]
        torch.testing.assert_close(a[0], line, atol=1e-12, rtol=0)
        return torch.randn_like(v), torch.randn_like(a)

    window = start(5, SHAPES, 3, torch.tensor([0]), dtype=torch.float64)
    while window.first < 4:
        window, _ = advance(window, watching, 2, known=lambda w: (None, clip(w)), skip=False)


def test_sound_shown_clean_has_a_time_of_its_own():
    clean = torch.randn(1, 20, *SHAPES[1]).double()
    clip = known_clip(clean, AUDIO, t=1)
    seen = []

    def watching(v, a, t, t_a):
        seen.append((t, t_a))
        torch.testing.assert_close(a[0], clean[0, int(window.first) :][: a.shape[1]], atol=1e-12, rtol=0)
        return torch.zeros_like(v), torch.zeros_like(a)

    window = start(5, SHAPES, 3, torch.tensor([0]), dtype=torch.float64)
    while window.first < 2:
        window, _ = advance(window, watching, 2, known=lambda w: (None, clip(w)))
    assert all(t_a.eq(1).all() and t[0, -1] < 1 for t, t_a in seen)


def test_past_the_end_of_the_known_sound_both_are_generated():
    model = random_model()
    clip = known_clip(torch.randn(2, 4, *SHAPES[1]).double(), AUDIO)
    v, a = generate(model, known=lambda w: (None, clip(w)), guidance=Guidance(5.0), frames=9)
    assert v.isfinite().all() and a.isfinite().all()
    assert a[:, 4:].std() > 0.1


def test_guidance_does_not_depend_on_the_neighbours_and_batch_reduction_does():
    model = random_model()
    sound = torch.randn(2, 9, *SHAPES[1]).double()

    def run(rows, reduction):
        clip = known_clip(sound[rows], AUDIO)
        how = dict(known=lambda w: (None, clip(w)), guidance=Guidance(25.0, reduction))
        return generate(model, samples=rows, **how)[0]

    assert (run([0, 1], "sample")[:1] - run([0], "sample")).abs().max() < 1e-10
    assert (run([0, 1], "batch")[:1] - run([0], "batch")).abs().max() > 1e-5


@pytest.mark.parametrize("given, frames", [(7, 90), (3, 76)])
def test_what_guides_nothing_is_left_out_of_guidance_and_changes_nothing(given, frames):
    model = random_model(fusion="a")
    clip = known_clip(torch.randn(2, given, *SHAPES[1]).double(), AUDIO)
    how = dict(known=lambda w: (None, clip(w)), guidance=Guidance(5.0))
    fast, whole = counted(model), counted(model)
    assert difference(generate(fast, **how), generate(whole, skip=False, **how)) < 1e-12
    assert fast.calls == whole.calls == 2 * 11 and whole.frames == 5 * 22
    assert fast.frames == frames


def test_guidance_lowers_the_error_it_descends():
    """One step with guidance leaves a smaller error of the known modality than one without."""
    from diffusion.guidance import guided_velocity
    from diffusion.known import Known

    model = random_model()
    v, a, eps = torch.randn(2, 5, *SHAPES[0]).double(), *torch.randn(2, 2, 5, *SHAPES[1]).double()
    t = torch.full((2, 5), 0.5).double()
    known = Known(a, eps, torch.ones(2, 5, dtype=torch.bool))
    a_t, moves = (a + eps) / 2, torch.ones(2, 5, dtype=torch.bool)

    def error(x):
        return ((model(x, a_t, t)[1] - (a - eps)) ** 2).mean()

    plain, _ = model(v, a_t, t)
    dv, _ = guided_velocity(model, v, a_t, t, (None, known), moves, Guidance(1.0))
    assert error(v + 0.1 * (dv - plain)) < error(v)
    dv, _ = guided_velocity(model, v, a_t, t, (None, known), moves & False, Guidance(1.0))
    assert torch.equal(dv, plain)


def test_guidance_without_a_given_modality_is_refused():
    with pytest.raises(ValueError, match="one given and one generated"):
        generate(random_model(), guidance=Guidance())
    with pytest.raises(ValueError, match="'mean' is unknown"):
        Guidance(1.0, "mean")


def test_class_guidance_without_a_class_is_one_row_a_clip():
    model, rows = random_model(num_classes=3), []

    def watched(v, *conditions, **more):
        rows.append(len(v))
        return model(v, *conditions, **more)

    null = torch.tensor([3, 3])
    assert difference(generate(class_guided(watched, 2.0, 3), y=null), generate(model, y=null)) == 0
    assert set(rows) == {2}


def test_class_guidance_at_scale_one_is_one_call_of_the_model():
    model = random_model(num_classes=3)
    assert class_guided(model, 1, 3) is model
    y = torch.tensor([0, 1])
    guided = counted(class_guided(model, 1.0 + 1e-9, 3))
    assert difference(generate(guided, y=y), generate(model, y=y)) < 1e-6
