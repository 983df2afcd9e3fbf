"""The parts of a training step around the model."""

import copy
import math
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

import train
from diffusion.flow import FlowLoss
from diffusion.noise import Purpose, generator
from diffusion.times import draw_times
from models.syncflow import SyncFlow_presets
from models.syncflow_costs import SyncFlowCosts
from training.draws import ClipDraws, Draws
from training.ema import EMA
from training.learner import Learner, learning_rate, skip_if_not_finite
from training.meter import BINS, Meter
from training.report import planned_memory
from training.sharding import State
from training.texts import Texts

T, SHAPES = 4, ((4, 3, 2, 2), (4, 5, 6))


def clips(B, seed=0):
    """mean, std, a, y of B clips."""
    rng = torch.Generator().manual_seed(seed)
    mean, std = (torch.rand(B, *SHAPES[0], generator=rng) for _ in range(2))
    return mean, std, torch.rand(B, *SHAPES[1], generator=rng), torch.arange(B) % 3


def draws(rows, seed=0, theta=0.2, drop=0.1, null_label=3, independent=0.0, texts=None, cuts=0.0):
    return Draws(seed, rows, SHAPES, theta, drop, null_label, independent, texts, cuts)


def cut(inputs, rows):
    """Rows of the arguments of flow_loss."""
    return [x[rows] for x in (inputs["v"], inputs["a"], inputs["y"], *inputs["times"], *inputs["noise"])]


@pytest.mark.parametrize(("independent", "cuts"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.8)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_draws_of_a_clip_do_not_depend_on_rank_or_batch(ranks, independent, cuts):
    batch = clips(8)
    whole = draws(range(8), independent=independent, cuts=cuts)(7, *batch)
    for rank in range(ranks):
        rows = range(rank * 8 // ranks, (rank + 1) * 8 // ranks)
        part = draws(rows, independent=independent, cuts=cuts)(7, *(x[rows.start : rows.stop] for x in batch))
        mine, theirs = cut(part, slice(None)), cut(whole, slice(rows.start, rows.stop))
        assert all(a.equal(b) for a, b in zip(mine, theirs))


def test_draws_are_repeated_when_a_run_is_resumed():
    batch = clips(4)
    run = draws(range(4))
    for step in range(5):
        run(step, *batch)
    assert all(
        a.equal(b) for a, b in zip(cut(run(5, *batch), slice(None)), cut(draws(range(4))(5, *batch), slice(None)))
    )


@pytest.mark.parametrize("other", [dict(seed=1), dict(step=6), dict(rows=range(4, 8))])
def test_seed_step_and_place_each_change_every_draw(other):
    batch = clips(4)
    one = draws(range(4), theta=0.0)(5, *batch)
    step = other.pop("step", 5)
    two = draws(**{"rows": range(4), "theta": 0.0} | other)(step, *batch)
    assert not (one["times"][0][:, 0] == two["times"][0][:, 0]).any()
    for a, b in zip((one["v"], *one["noise"]), (two["v"], *two["noise"])):
        assert not (a == b).flatten(1).all(1).any()


def test_clips_of_a_batch_have_times_and_noise_of_their_own():
    inputs = draws(range(64), theta=0.0)(0, *clips(64))
    assert len(inputs["times"][0][:, 0].unique()) == 64
    assert len({tuple(x.flatten().tolist()) for x in inputs["noise"][1]}) == 64


def test_clip_has_one_uniform_time_for_both_sides_and_a_tenth_of_the_texts_is_dropped_for_both():
    """Rows S2 and S7: t ~ U(0,1), and one text for picture and sound, the null text in a tenth of 20,000 draws."""
    B = 20_000
    texts = Texts(torch.ones(1, 2).half(), torch.tensor([1]))
    drawn = ClipDraws(0, range(B), ((1, 1, 1, 1), (1, 1)), -1, texts, 0.1)
    mean = torch.zeros(B, 1, 1, 1, 1)
    inputs = drawn(3, mean, mean, torch.zeros(B, 1, 1), torch.zeros(B, 1, dtype=torch.long))
    t, t_a = inputs["times"]
    assert t.shape == (B,) and torch.equal(t, t_a) and inputs["y"] is None
    assert (t.double().sort().values - (torch.arange(B) + 0.5) / B).abs().max() < 0.0136  # Kolmogorov, 0.1 %
    assert (~inputs["text"].there).double().mean().item() == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ValueError, match="--sampling logit-noise draws no times of whole clips; choose uniform or lo"):
        ClipDraws(0, range(B), ((1, 1, 1, 1), (1, 1)), -1, texts, 0.1, "logit-noise")


def test_logits_of_drawn_times_have_the_mean_and_deviation_asked_for():
    B = 20_000
    texts = Texts(torch.ones(1, 2).half(), torch.tensor([1]))
    spread = {"mean": -0.8, "std": 0.5}
    drawn = ClipDraws(0, range(B), ((1, 1, 1, 1), (1, 1)), -1, texts, 0.1, "logit", spread)
    mean = torch.zeros(B, 1, 1, 1, 1)
    logits = drawn(3, mean, mean, torch.zeros(B, 1, 1), torch.zeros(B, 1, dtype=torch.long))["times"][0].logit()
    assert (logits.mean().item(), logits.std().item()) == pytest.approx((-0.8, 0.5), abs=0.02)


def test_cut_clip_is_from_a_frame_on_the_one_beside_it_with_its_label():
    B = 2000
    mean, std, a, _ = clips(B)
    y = torch.randint(3, (B,), generator=torch.Generator().manual_seed(0))
    plain = draws(range(B), drop=0.3)(5, mean, std, a, y)
    inputs = draws(range(B), drop=0.3, cuts=0.5)(5, mean, std, a, y)
    beside, own = torch.arange(B) ^ 1, inputs["y"] == plain["y"].unsqueeze(1)
    may = (plain["y"] != plain["y"][beside]) & (plain["y"] < 3) & (plain["y"][beside] < 3)
    is_cut = ~own.all(1)
    assert not is_cut[~may].any() and is_cut[may].double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert own[:, 0].all() and (own.int().diff(dim=1) <= 0).all()  # once, and never back
    assert {*own[is_cut].sum(1).tolist()} == {1, 2, 3}
    for name in ("v", "a"):
        there = own.reshape(B, T, *[1] * (plain[name].ndim - 2))
        assert torch.equal(inputs[name], torch.where(there, plain[name], plain[name][beside]))
    assert torch.equal(inputs["y"], torch.where(own, plain["y"].unsqueeze(1), plain["y"][beside].unsqueeze(1)))
    assert all(torch.equal(*both) for both in zip(inputs["noise"] + inputs["times"], plain["noise"] + plain["times"]))


def test_frames_of_a_cut_clip_have_the_texts_of_their_own_clips():
    texts = Texts(torch.tensor([[1.0], [3.0], [8.0]]).half(), torch.tensor([2, 3]))  # means 2 and 8
    mean, std, a, _ = clips(8)
    inputs = draws(range(8), drop=0.0, null_label=-1, texts=texts, cuts=1.0)(
        0, mean, std, a, torch.arange(8).unsqueeze(1) % 2
    )
    said = inputs["text"].pooled()
    assert said.shape == (8, T, 1) and inputs["text"].there.all() and inputs["y"] is None
    assert said[::2, 0].unique().tolist() == [2] and said[::2, -1].unique().tolist() == [8]
    assert said[1::2, 0].unique().tolist() == [8] and said[1::2, -1].unique().tolist() == [2]


def test_share_of_labels_is_dropped():
    y = torch.arange(4000) % 3
    mean = torch.zeros(4000, 1, 1, 1, 1)
    small = Draws(0, range(4000), ((1, 1, 1, 1), (1, 1, 1)), 0.2, 0.1, 3)
    dropped = small(0, mean, mean, torch.zeros(4000, 1, 1, 1), y)["y"]
    share = (dropped == 3).double().mean().item()
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 4000)
    assert dropped[dropped != 3].equal(y[dropped != 3])


@pytest.mark.parametrize(("drop", "expected"), [(0.0, [0, 1, 2, 0]), (1.0, [3, 3, 3, 3])])
def test_no_or_every_label_is_dropped_at_the_ends(drop, expected):
    assert draws(range(4), drop=drop)(0, *clips(4))["y"].tolist() == expected


def test_model_without_classes_gets_no_labels():
    assert draws(range(4), null_label=None)(0, *clips(4))["y"] is None


def test_share_of_clips_is_in_pre_rolling():
    """Only rolling frames are all less noisy than pure noise: the last is at (1 - w) / T there."""
    mean = torch.zeros(4000, T, 1, 1, 1)
    small = Draws(0, range(4000), ((T, 1, 1, 1), (T, 1, 1)), 0.2, 0.1, None)
    times = small(0, mean, mean, torch.zeros(4000, T, 1, 1), torch.zeros(4000))["times"][0]
    gaps = times[:, :-1] - times[:, 1:]
    rolling = (gaps - 1 / T).abs().max(1).values < 1e-6
    first = rolling & (times[:, 0] > 1 - 1 / T)  # 1 - w / T: the rolling window is always there
    share = 1 - first.double().mean().item()
    # a pre-rolling clip looks like rolling where w falls in [0, 1/T): first frame at 1 - w
    expected = 0.2 * (1 - 1 / T)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_without_independent_times_all_is_drawn_as_before_there_were_any():
    """Seeds of published runs keep their meaning: w, pre-rolling, label drop, posterior, noise, and nothing before."""
    mean, std, a, y = clips(3)
    inputs = draws(range(3))(7, mean, std, a, y)
    for row in range(3):
        draw = generator(0, Purpose.TRAINING, row, 7)
        w, early, drop = torch.from_numpy(draw.random(3))
        posterior, *noise = (torch.from_numpy(draw.standard_normal(s, dtype="float32")) for s in (SHAPES[0], *SHAPES))
        times = draw_times(w[None], early[None] < 0.2, T)[0]
        assert all(t[row].equal(times) for t in inputs["times"])
        assert inputs["v"][row].equal(mean[row] + std[row] * posterior) and (inputs["y"][row] == 3) == (drop < 0.1)
        assert all(eps[row].equal(one) for eps, one in zip(inputs["noise"], noise))


def independent_times(share, B=4000):
    """Times (B,T) of video and audio, and those that both would have without a share."""
    mean = torch.zeros(B, T, 1, 1, 1)
    small = [Draws(0, range(B), ((T, 1, 1, 1), (T, 1, 1)), 0.2, 0.1, None, p) for p in (share, 0.0)]
    (t_v, t_a), (common, _) = (d(0, mean, mean, torch.zeros(B, T, 1, 1), torch.zeros(B))["times"] for d in small)
    return t_v, t_a, common


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_clips_has_independent_times_a_quarter_of_them_each_side_clean(share):
    t_v, t_a, common = independent_times(share)
    kinds = {
        "picture clean": (t_v == 1).all(1) & (t_a == common).all(1),
        "sound clean": (t_a == 1).all(1) & (t_v == common).all(1),
        "two phases": (t_v == common).all(1) & (t_a[:, 0] != common[:, 0]) & (t_a[:, 0] < 1),
        "one time": (t_v == t_a).all(1),
    }
    expected = {"picture clean": share / 4, "sound clean": share / 4, "two phases": share / 2, "one time": 1 - share}
    for kind, p in expected.items():
        assert abs(kinds[kind].double().mean() - p) <= 4 * math.sqrt(p * (1 - p) / 4000), kind
    assert sum(kinds.values()).eq(1).all()


def test_second_phase_is_another_schedule_and_tells_nothing_of_the_first():
    t_v, t_a, _ = independent_times(1.0)
    two = (t_v[:, 0] < 1) & (t_a[:, 0] < 1)
    rolling = two & (t_v[:, -1] > 0) & (t_a[:, -1] > 0)
    gaps = t_a[rolling][:, :-1] - t_a[rolling][:, 1:]
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / T))
    first = torch.stack([t_v[rolling, 0], t_a[rolling, 0]])
    assert abs(torch.corrcoef(first)[0, 1]) < 4 / math.sqrt(rolling.sum())


def test_latent_is_mean_plus_spread_times_noise_and_the_spread_matters():
    mean, std, a, y = clips(4)
    spread = draws(range(4))(0, mean, std, a, y)["v"]
    sharp = draws(range(4))(0, mean, torch.zeros_like(std), a, y)["v"]
    assert sharp.equal(mean)
    z = ((spread - mean) / std).flatten()
    assert abs(z.mean()) < 0.3 and 0.8 < z.std() < 1.2


def test_learning_rate_warms_up_linearly_then_stays():
    rates = [learning_rate(s, 2.0, 4, "constant", 10) for s in range(10)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert learning_rate(0, 2.0, 0, "constant", 10) == 2.0


def test_cosine_starts_at_the_rate_halves_in_the_middle_and_ends_at_5_percent():
    assert learning_rate(100, 1.0, 100, "cosine", 1100) == pytest.approx(1.0)
    assert learning_rate(600, 1.0, 100, "cosine", 1100) == pytest.approx(0.05 + 0.95 / 2)
    assert learning_rate(1100, 1.0, 100, "cosine", 1100) == pytest.approx(0.05)
    assert learning_rate(1099, 1.0, 100, "cosine", 1100) == pytest.approx(0.05, abs=1e-4)
    assert learning_rate(49, 1.0, 100, "cosine", 1100) == pytest.approx(0.5)
    falling = [learning_rate(s, 1.0, 100, "cosine", 1100) for s in range(100, 1101)]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) == 1001


def steps(count, B=3, seed=0):
    """(loss, times, norm) of some steps."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(count):
        error_v, error_a, times = (torch.rand(B, T, generator=rng) for _ in range(3))
        video, audio = error_v.mean(), error_a.mean()
        loss = FlowLoss(video + audio, video, audio, error_v, error_a)
        yield loss, (times.double(), times.double()), torch.rand((), generator=rng)


def test_meter_gives_plain_means_of_all_steps_and_shares_of_the_peaks():
    meter, rows = Meter(torch.device("cpu"), images=12, flops=8e9, peaks={"matmul": 5e10}), list(steps(5))
    for row in rows:
        meter.add(*row)
    record = meter.read(Accelerator(cpu=True), seconds=2.0)
    for name, values in {
        "loss": [loss.total for loss, _, _ in rows],
        "loss_video": [loss.video for loss, _, _ in rows],
        "loss_audio": [loss.audio for loss, _, _ in rows],
        "grad_norm": [norm for _, _, norm in rows],
    }.items():
        assert record[name] == pytest.approx(torch.stack(values).double().mean().item(), rel=1e-6)
    assert record["images_per_s"] == 5 * 12 / 2 and record["skipped_steps"] == 0
    assert record["mfu_of_matmul"] == pytest.approx(5 * 8 / 2 / 50) and "batch_loss" not in record


def test_plan_of_a_stage_says_what_a_gpu_holds_of_the_batch_that_it_sees_at_once():
    accelerator = SimpleNamespace(distributed_type=DistributedType.NO, mixed_precision="bf16", num_processes=1)
    costs = SyncFlowCosts({**SyncFlow_presets["SyncFlow-XL/2"], "grad_ckpt": True}, stage="audio")
    args = Namespace(batch_size=32, micro_batches=2, stage="audio")
    said = planned_memory(args, accelerator, costs)
    plan = costs.memory_plan(16, 1, "ddp", "bf16")
    assert said.startswith(f"planned for a GPU in bf16, stage audio: {plan.total / 2**30:.2f} GiB (weights 7.41, ")
    assert (
        f"gradients 2.92, optimiser 5.83, ema 2.92, working 0.05, activations {plan.activations / 2**30:.2f})" in said
    )
    args.stage = None
    assert planned_memory(args, accelerator, costs).startswith("planned for a GPU in bf16: ")


def test_meter_sorts_frames_into_bins_of_their_flow_time():
    meter, rows = Meter(torch.device("cpu")), list(steps(5))
    for row in rows:
        meter.add(*row)
    record = meter.read(Accelerator(cpu=True), 1.0)
    times = torch.cat([t.flatten() for _, (t, _), _ in rows])
    for key, errors in (("video_at", [x.error_v for x, _, _ in rows]), ("audio_at", [x.error_a for x, _, _ in rows])):
        errors = torch.cat([e.flatten() for e in errors]).double()
        for k in range(BINS):
            inside = (times >= k / BINS) & (times < (k + 1) / BINS)
            expected = pytest.approx(errors[inside].mean().item()) if inside.any() else None
            assert record[key][k] == expected


def test_meter_takes_each_modality_at_its_own_time():
    meter = Meter(torch.device("cpu"))
    error_v, error_a = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    times = torch.tensor([[0.05]]), torch.tensor([[0.55]])
    meter.add(FlowLoss(torch.tensor(5.0), error_v[0, 0], error_a[0, 0], error_v, error_a), times, torch.tensor(1.0))
    record = meter.read(Accelerator(cpu=True), 1.0)
    assert record["video_at"] == [2.0] + [None] * 9 and record["audio_at"] == [None] * 5 + [3.0] + [None] * 4


def test_frame_that_is_clean_counts_in_the_last_bin_and_empty_bins_are_none():
    meter = Meter(torch.device("cpu"))
    error = torch.full((1, 2), 3.0)
    loss = FlowLoss(error.mean(), error.mean(), error.mean(), error, error)
    times = torch.tensor([[1.0, 0.0]])
    meter.add(loss, (times, times), torch.tensor(1.0))
    assert meter.read(Accelerator(cpu=True), 1.0)["video_at"] == [3.0] + [None] * (BINS - 2) + [3.0]


def test_step_that_is_not_finite_is_counted_and_leaves_the_means_alone():
    meter, rows = Meter(torch.device("cpu")), list(steps(3))
    bad = FlowLoss(*(x * math.nan for x in rows[0][0]))
    for row in (rows[0], (bad, rows[0][1], torch.tensor(math.inf)), rows[1]):
        meter.add(*row)
    record = meter.read(Accelerator(cpu=True), 1.0)
    assert record["loss"] == pytest.approx((rows[0][0].total + rows[1][0].total).item() / 2, rel=1e-6)
    assert (record["skipped_steps"], record["skipped_in_a_row"]) == (1, 0)
    for _ in range(4):
        meter.add(bad, rows[0][1], torch.tensor(math.nan))
    record = meter.read(Accelerator(cpu=True), 1.0)
    assert record["loss"] is None and (record["skipped_steps"], record["skipped_in_a_row"]) == (5, 4)


def test_reading_starts_the_sums_again():
    meter, (one, two) = Meter(torch.device("cpu")), list(steps(2))
    meter.waited = 0.5
    meter.add(*one)
    assert meter.read(Accelerator(cpu=True), 1.0)["data_wait"] == 0.5
    meter.add(*two)
    record = meter.read(Accelerator(cpu=True), 1.0)
    assert record["loss"] == pytest.approx(two[0].total.item(), rel=1e-6) and record["data_wait"] == 0


@pytest.mark.parametrize("norm", [1.0, math.inf, math.nan])
def test_step_changes_nothing_if_the_norm_is_not_finite(norm):
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    model, optimiser = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True))
    before = model.weight.detach().clone()
    model(torch.ones(2)).sum().backward()
    skip_if_not_finite(accelerator, optimiser, torch.tensor(norm))
    optimiser.step()
    assert model.weight.equal(before) != math.isfinite(norm)


@pytest.mark.parametrize("clip", [0.1, 1e9])
def test_gradients_are_clipped_as_torch_does_it(monkeypatch, clip):
    plain = torch.nn.Linear(3, 3).double()
    learner = Learner(Accelerator(cpu=True), copy.deepcopy(plain), None, clip=clip)
    optimiser = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.02)
    for size in (1.0, 30.0, 0.01, 0.02):
        gradients = [size * torch.randn_like(p) for p in plain.parameters()]

        def backward(*_, gradients=gradients):
            for p, x in zip(learner.params, gradients):
                p.grad = x.clone()

        monkeypatch.setattr("training.learner.backward", backward)
        _, norm = learner.step({}, 0.01)
        for p, x in zip(plain.parameters(), gradients):
            p.grad = x.clone()
        expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimiser.step()
        torch.testing.assert_close(norm, expected)
    for p, mine in zip(plain.parameters(), learner.params):
        torch.testing.assert_close(mine, p, rtol=0, atol=1e-6)


def test_averaged_model_is_a_plain_copy_with_averages_where_weights_are_trained():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    plain, trained = copy.deepcopy(model).to("meta"), [*model[1].parameters()]
    state = State(model, torch.optim.AdamW(trained), EMA(trained))
    before = model[1].weight.detach().clone()
    with torch.no_grad():
        for layer in model:
            layer.weight += 1
    averaged = state.averaged(plain)
    assert averaged[0].weight.equal(model[0].weight) and averaged[1].weight.equal(before)
    with torch.no_grad():
        averaged[1].weight.zero_()
    assert state.averaged(plain)[1].weight.equal(before) and model[1].weight.equal(before + 1)


def test_average_takes_the_first_weights_and_then_slows_down():
    """Decay min(0.9999, s / (9 + s)) at call s, 0 on the first."""
    model = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(model.parameters(), decay=0.9999)
    expected = 0.0
    for s in range(1, 7):
        with torch.no_grad():
            model.weight.fill_(float(s**2))
        decay = s / (9 + s) if s > 1 else 0
        expected = decay * expected + (1 - decay) * s**2
        ema.step(model.parameters())
        assert ema.shadow_params[0].item() == pytest.approx(expected)


def test_average_goes_on_from_the_state_that_diffusers_would_have_saved():
    """Checkpoints of runs that were begun with its EMAModel hold such a state."""
    more = {"min_decay": 0.0, "update_after_step": 0, "use_ema_warmup": False, "inv_gamma": 1.0, "power": 2 / 3}
    state = {"decay": 0.3, "optimization_step": 4, "shadow_params": [torch.tensor([[2.0]])], **more}
    model = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(model.parameters())
    ema.load_state_dict(state)
    with torch.no_grad():
        model.weight.fill_(7.0)
    ema.step(model.parameters())
    assert ema.optimization_step == 5 and ema.shadow_params[0].item() == pytest.approx(0.3 * 2 + 0.7 * 7)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--independent-times", "1.5"], "--independent-times 1.5 is no share of the clips; choose 0 to 1"),
        (["--independent-times", "0.1", "--sampling", "uniform"], "leave out --sampling uniform"),
        (["--cuts", "-0.1"], "--cuts -0.1 is no share of the clips; choose 0 to 1"),
        (["--cuts", "0.1", "--batch-size", "3"], "--batch-size 3 leaves one alone; choose an even one"),
    ],
)
def test_impossible_shares_of_clips_are_refused(capsys, more, said):
    with pytest.raises(SystemExit) as end:
        train.parse(["--data-path", "D", "--experiment-dir", "E", *more])
    assert end.value.code == 2 and said in capsys.readouterr().err
