"""Looked-up conditions: the velocity of the model itself, computed once per label, and never at other times."""

import pytest
import torch

from diffusion.times import sampling_times
from models import FLAV, TabledFLAV
from models.flav import _numbers
from models.fusion import FUSIONS
from models.layers import after, frequencies

T, N = 4, 3
STEPS = T * N


def random_model(**changes) -> FLAV:
    """A small model whose weights are all random, in float64."""
    torch.manual_seed(0)
    shape = dict(latent_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=2, num_heads=2, n_mels=5, audio_fr=3)
    model = FLAV(**shape, predict_frames=T, **{"num_classes": 4, **changes}).double()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.eval().requires_grad_(False)


def window(model: FLAV, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(rows, T, *shape, dtype=torch.float64) for shape in model.frame_shapes)


def worst(one, two) -> float:
    return max((x - y).abs().max().item() for x, y in zip(one, two))


@pytest.fixture
def computed(monkeypatch):
    """How many rows of conditions were computed, call by call."""
    rows, compute = [], FLAV._embedded
    monkeypatch.setattr(FLAV, "_embedded", lambda self, t, *more: rows.append(t.numel()) or compute(self, t, *more))
    return rows


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_every_step_of_a_schedule_has_the_velocity_of_the_model(fusion, prediction):
    model = random_model(fusion=fusion, prediction=prediction)
    tabled, (v, a) = TabledFLAV(model, STEPS), window(model)
    y = torch.tensor([[0, 0, 2, 2], [4, 4, 4, 1]])
    for step in range(STEPS):
        t = sampling_times(T, N)[[step, (step + 5) % STEPS]]
        assert worst(tabled(v, a, t, y), model(v, a, t, y)) < 1e-12


def test_sound_may_have_times_of_its_own():
    model = random_model()
    tabled, (v, a), y = TabledFLAV(model, STEPS), window(model), torch.tensor([1, 3])
    t, clean = sampling_times(T, N)[[7, 8]], torch.ones(2, T, dtype=torch.float64)
    assert worst(tabled(v, a, t, y, t_a=clean), model(v, a, t, y, t_a=clean)) < 1e-12
    assert worst(tabled(v, a, t, y, t_a=clean), model(v, a, t, y)) > 1e-3


def test_conditioning_times_have_rows_too_and_others_have_none(computed):
    model = random_model(fusion="link", conditioning_times=[0.96, 0.8])
    tabled, (v, a), y = TabledFLAV(model, STEPS), window(model), torch.tensor([1, 3])
    t, held = sampling_times(T, N)[[7, 8]], torch.full((2, T), 0.96, dtype=torch.float64)
    for times in ((held, t), (t, torch.full_like(held, 0.8))):
        found, rows = tabled(v, a, times[0], y, t_a=times[1]), list(computed)
        assert rows == [STEPS + 3] * 2 and worst(found, model(v, a, times[0], y, times[1])) < 1e-12
        del computed[2:]
    tabled(v, a, t, y, t_a=held - 0.16)
    assert computed[2:] == [2 * T]


def test_model_without_classes_has_one_table():
    model = random_model(num_classes=0)
    tabled, (v, a) = TabledFLAV(model, STEPS), window(model)
    t = sampling_times(T, N)[[3, 11]]
    assert worst(tabled(v, a, t), model(v, a, t)) < 1e-12 and len(tabled.video) == STEPS + 1


def test_conditions_of_a_label_are_computed_once_whatever_is_called(computed):
    model = random_model()
    tabled, (v, a) = TabledFLAV(model, STEPS), window(model)
    for step in range(STEPS):
        tabled(v, a, sampling_times(T, N)[[step, step]], torch.tensor([2, step % 2]))
    assert computed == [STEPS + 1] * 3  # labels 2 and 0, then 1


@pytest.mark.parametrize(("steps", "shift"), [(STEPS, 1e-9), (None, 0)])
def test_times_off_the_schedule_and_no_schedule_are_computed(computed, steps, shift):
    model = random_model()
    tabled, (v, a) = TabledFLAV(model, steps), window(model)
    t, y = sampling_times(T, N)[[7, 8]] + shift, torch.tensor([1, 3])
    found = tabled(v, a, t, y)
    assert computed == [2 * T] and worst(found, model(v, a, t, y)) == 0


def test_more_labels_than_a_table_holds_are_computed(monkeypatch, computed):
    monkeypatch.setattr("models.tabled.ROWS", 2 * (STEPS + 1))
    model = random_model()
    tabled, (v, a), t = TabledFLAV(model, STEPS), window(model), sampling_times(T, N)[[7, 8]]
    tabled(v, a, t, torch.tensor([0, 1]))
    tabled(v, a, t, torch.tensor([2, 3]))
    assert computed == [STEPS + 1] * 2 + [2 * T] and len(tabled.video) == 2 * (STEPS + 1)


def test_velocities_are_tensors_like_others_also_without_gradients():
    model = random_model()
    tabled, (v, a), y = TabledFLAV(model, STEPS), window(model), torch.tensor([1, 3])
    t = sampling_times(T, N)[[7, 8]]
    with torch.no_grad():
        alone = tabled(v, a, t, y)
    assert not any(x.is_inference() for x in alone)
    assert all(torch.equal(one, two) for one, two in zip(alone, tabled(v, a, t, y)))


@pytest.mark.parametrize(
    "kept, arguments", [(after, (2, 3)), (frequencies, (8,)), (_numbers, ((1, 8), 3))], ids=["mask", "angles", "frames"]
)
def test_what_is_kept_while_sampling_may_serve_training(kept, arguments):
    kept.cache_clear()
    with torch.inference_mode():
        assert not kept(*arguments, torch.device("cpu")).is_inference()
