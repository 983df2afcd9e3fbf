"""Fine-tuning: what is taken from a checkpoint that fits in part, what is frozen, and LoRA adapters."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.flow import WEIGHTS, flow_loss
from models import FLAV, FLAV_presets
from pipeline import AVSpec
from pipeline.adapter import FILES, load_adapter
from tests.randomised import randomised
from training.ema import EMA
from training.finetune import freeze, initialise, trainable
from training.lora import add_lora, merged, save_adapter

CONFIG = dict(latent_size=4, hidden_size=16, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=3, predict_frames=4)
CONFIG |= dict(n_mels=6, audio_fr=2, in_channels=3)


def flav(seed=0, **more) -> FLAV:
    """A tiny model with random weights everywhere: fresh ones give zeros."""
    return randomised(FLAV(**CONFIG | more), 0.2, seed)


def saved(folder, class_names=None, **more):
    """A checkpoint folder and its weights; class names make a pipeline.json."""
    model = flav(seed=1, **more)
    model.save_pretrained(folder)
    if class_names:
        replace(AVSpec(n_mels=6), class_names=class_names).save(folder)
    return model.state_dict()


def inputs(model, B=2, dtype=torch.float32):
    """v, a, t, y of B clips as long as the window."""
    rng, T = torch.Generator().manual_seed(2), model.predict_frames
    v, a, t = (torch.rand(B, T, *shape, generator=rng, dtype=dtype) for shape in (*model.frame_shapes, ()))
    return v, a, t, torch.arange(B) % 3


def snapshot(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def changed(model, before):
    return {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}


# ----------------------------------------------------------------------------------------------------------- initialise


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_of_the_same_sizes_becomes_the_source(tmp_path, released, dtype):
    source = flav(seed=1)
    source.export_official(tmp_path) if released else source.save_pretrained(tmp_path)
    model = flav().to(dtype)
    report = initialise(model, tmp_path)
    assert all(torch.equal(x, source.state_dict()[name].to(dtype)) for name, x in model.state_dict().items())
    assert len(report.copied) == len(model.state_dict())
    assert not report.resized and not report.left and not report.unused and not report.differs


@pytest.mark.parametrize("classes", [2, 5])
def test_null_label_stays_the_null_label_when_the_number_of_classes_changes(tmp_path, classes):
    given, model = saved(tmp_path), flav(num_classes=classes)
    before, common = snapshot(model), min(classes, 3)
    report = initialise(model, tmp_path)
    for name in ("video_class.weight", "audio_class.weight"):
        table = model.state_dict()[name]
        assert torch.equal(table[-1], given[name][-1])
        assert torch.equal(table[:common], given[name][:common])
        assert torch.equal(table[common:-1], before[name][common:-1])
        assert report.resized[name].startswith(f"{common} of {classes} classes by number and the null label")
    assert f"num_classes 3 there, {classes} here" in str(report)


def test_class_rows_follow_their_names_even_where_the_tables_are_equally_large(tmp_path):
    given, model = saved(tmp_path, class_names=("bird", "cat", "dog")), flav()
    before = snapshot(model)
    report = initialise(model, tmp_path, class_names=("ant", "bird", "dog"))
    table, source = model.state_dict()["video_class.weight"], given["video_class.weight"]
    assert torch.equal(table[[1, 2, 3]], source[[0, 2, 3]])
    assert torch.equal(table[0], before["video_class.weight"][0])
    assert report.resized["audio_class.weight"].startswith("2 of 3 classes by name and the null label")


def test_without_names_on_both_sides_class_rows_go_by_number(tmp_path):
    given, model = saved(tmp_path, class_names=("bird", "cat", "dog")), flav()
    assert "video_class.weight" in initialise(model, tmp_path).copied
    assert torch.equal(model.state_dict()["video_class.weight"], given["video_class.weight"])


def test_null_row_is_no_class_of_a_model_that_has_as_many_rows_without_one(tmp_path):
    given, model = saved(tmp_path), flav(num_classes=4, class_dropout_prob=0.0)
    before = snapshot(model)
    initialise(model, tmp_path)
    table = model.state_dict()["video_class.weight"]
    assert torch.equal(table[:3], given["video_class.weight"][:3])
    assert torch.equal(table[3], before["video_class.weight"][3])


@pytest.mark.parametrize("T", [2, 7])
def test_frame_positions_are_copied_as_far_as_both_windows_reach_and_fresh_beyond(tmp_path, T):
    given, model = saved(tmp_path), flav(predict_frames=T)
    before, common = snapshot(model), min(T, 4)
    report = initialise(model, tmp_path)
    for name in ("video_frame_pos", "audio_frame_pos"):
        table = model.state_dict()[name]
        assert torch.equal(table[:4], given[name][:T])
        assert torch.equal(table[4:], before[name][4:])
        assert report.resized[name] == f"the first {common} of 4 frames fill {common} of {T}"


def test_every_tensor_of_both_sides_is_in_the_report_once(tmp_path):
    saved(tmp_path, depth=3, num_classes=0, audio_fr=5)
    model = flav(fusion="a", predict_frames=7)
    before = snapshot(model)
    report = initialise(model, tmp_path)
    mine = [*report.copied, *report.resized, *report.left]
    assert sorted(mine) == sorted(model.state_dict())
    assert changed(model, before) == {*report.copied, *report.resized}
    assert {name for name in FLAV(**CONFIG | dict(depth=3, num_classes=0)).state_dict() if name not in mine} == set(
        report.unused
    )
    assert report.left["audio_mel_pos"] == "(5, 16) there, (2, 16) here"
    assert report.left["video_class.weight"] == report.left["blocks.0.fusion.attn.qkv.weight"] == "the source has none"
    assert "blocks.2.video_adaln.weight" in report.unused and "blocks.0.fusion.from_audio.weight" in report.unused


def test_report_names_facts_that_give_the_same_tensors_another_meaning_in_a_few_lines(tmp_path):
    saved(tmp_path, prediction="data", depth=8)
    report = str(initialise(flav(causal_attn=False, grad_ckpt=True), tmp_path))
    assert "prediction data there, velocity here" in report and "causal_attn True there, False here" in report
    assert "grad_ckpt" not in report
    assert len(report.splitlines()) < 6 and max(map(len, report.splitlines())) < 300


def test_source_without_any_fitting_tensor_is_refused_with_the_sizes_that_differ(tmp_path):
    saved(tmp_path, hidden_size=8, in_channels=4, n_mels=7)
    with pytest.raises(ValueError, match=r"no tensor that fits this model .*hidden_size 8 there, 16 here"):
        initialise(flav(), tmp_path)


def test_source_that_does_not_exist_is_refused_with_the_remedy(tmp_path):
    tmp_path.joinpath("config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors; give"):
        initialise(flav(), tmp_path)


def test_class_names_must_be_as_many_as_the_classes(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="2 class names do not fit 3 classes"):
        initialise(flav(), tmp_path, class_names=("x", "y"))


# --------------------------------------------------------------------------------------------------------------- freeze


def test_frozen_parameters_and_no_others_are_excluded_from_training():
    model = flav()
    left = freeze(model, ["blocks.0.*", "video_embed.*"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(("blocks.0.", "video_embed."))}
    assert left == sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in (*model.blocks[0].parameters(), *model.video_embed.parameters())
    )


def test_pattern_that_matches_nothing_is_refused_before_anything_is_frozen():
    model = flav()
    with pytest.raises(ValueError, match=r"'block\.0\.\*' matches no parameter; there are .*blocks\."):
        freeze(model, ["video_*", "block.0.*"])
    assert all(p.requires_grad for p in model.parameters())


def test_freezing_everything_is_refused():
    with pytest.raises(ValueError, match="nothing is left to train"):
        freeze(flav(), ["*"])


# ----------------------------------------------------------------------------------------------------------------- LoRA


def with_lora(seed=0, rank=2, alpha=3.0, **more) -> FLAV:
    """A model whose adapter is not zero."""
    model, rng = flav(**more), torch.Generator().manual_seed(seed)
    add_lora(model, rank, alpha)
    with torch.no_grad():
        for p in trainable(model):
            p.copy_(0.3 * torch.randn(p.shape, generator=rng))
    return model.eval()


def train(model, parameters, steps=2):
    """Steps of AdamW, whose weight decay would move what it should not."""
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, fused=True)
    v, a, t, y = inputs(model, dtype=next(model.parameters()).dtype)
    for _ in range(steps):
        noise = torch.ones_like(v), torch.ones_like(a)
        flow_loss(model, v, a, y, (t, t), noise, weight=WEIGHTS["logit"]).total.backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("fusion", ["a", "c"])
@torch.no_grad()
def test_fresh_adapter_changes_no_bit_of_the_output(fusion):
    model = flav(fusion=fusion).eval()
    before = model(*inputs(model))
    add_lora(model, rank=4)
    assert all(torch.equal(x, y) for x, y in zip(model(*inputs(model)), before))
    assert all(x.abs().max() > 0.01 for x in before)


def test_adapter_is_on_attention_and_feed_forward_of_both_branches_and_nothing_else():
    model = flav()
    size, D, H, r = add_lora(model, rank=4), 16, 32, 4
    attention, feed_forward = r * (D + 3 * D) + r * (D + D), r * (D + H) + r * (H + D)
    assert size == 2 * (3 * attention + 2 * feed_forward)  # blocks x (spatial, temporal, audio; video, audio)
    parts = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert parts == {"spatial_attn", "temporal_attn", "audio_attn", "video_mlp", "audio_mlp"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad_ckpt", [False, True])
def test_training_with_lora_changes_every_adapter_tensor_and_no_other(dtype, grad_ckpt):
    model = flav(grad_ckpt=grad_ckpt).to(dtype)
    add_lora(model, rank=2)
    before = snapshot(model)
    train(model, model.parameters())
    assert changed(model, before) == {name for name in before if ".lora_" in name}
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_training_after_freeze_changes_no_frozen_tensor():
    model = flav()
    freeze(model, ["*adaln*"])
    before = snapshot(model)
    train(model, model.parameters())
    assert changed(model, before) == {name for name in before if "adaln" not in name}


def test_average_of_the_trainable_parameters_is_all_that_an_average_needs():
    models, emas = [], []
    for parameters in (trainable, lambda model: list(model.parameters())):
        model = with_lora()
        ema = EMA(parameters(model), decay=0.5)
        train(model, trainable(model))
        ema.step(parameters(model))
        ema.copy_to(parameters(model))
        models.append(model.state_dict())
        emas.append(len(ema.shadow_params))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert emas[0] == 2 * 20 and emas[1] > 100  # A and B of ten linears in each of two blocks


@torch.no_grad()
def test_merged_model_is_plain_and_gives_the_output_of_model_and_adapter():
    model = with_lora()
    plain, before = merged(model), snapshot(model)
    assert plain.state_dict().keys() == flav().state_dict().keys() and not hasattr(plain, "peft_config")
    for x, y, base in zip(plain(*inputs(model)), model(*inputs(model)), flav()(*inputs(model))):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
        assert (x - base).abs().max() > 0.1
    assert not changed(model, before)


def test_loaded_adapter_is_merged_bit_for_bit_as_it_was_when_saved(tmp_path):
    model = with_lora()
    save_adapter(model, tmp_path / "adapter", {"step": 7, "base": "runs/a"})
    loaded = flav()
    assert load_adapter(loaded, tmp_path / "adapter") == {"step": 7, "base": "runs/a"}
    assert not changed(loaded, merged(model).state_dict())
    loaded.save_pretrained(tmp_path / "plain")
    assert not changed(FLAV.from_pretrained(tmp_path / "plain"), loaded.state_dict())


@torch.no_grad()
def test_peft_itself_reads_the_adapter_and_agrees(tmp_path):
    from peft import PeftModel

    save_adapter(with_lora(), tmp_path / "adapter", {})
    ours = flav().eval()
    load_adapter(ours, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(flav(), tmp_path / "adapter").eval()
    for x, y in zip(ours(*inputs(ours)), theirs(*inputs(ours))):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_adapter_trained_in_float64_fits_its_float32_base(tmp_path):
    model = flav().double()
    add_lora(model, rank=2)
    save_adapter(model, tmp_path / "adapter", {})
    load_adapter(flav(), tmp_path / "adapter")


@pytest.mark.parametrize(
    "base, complaint",
    [
        (dict(seed=3), r"was trained on other weights \(facts {'step': 7}\)"),
        (dict(hidden_size=32), "belongs to another model .*hidden_size 16 there, 32 here"),
        (dict(num_heads=4), "belongs to another model .*num_heads 2 there, 4 here"),
    ],
)
def test_adapter_of_another_base_is_refused_and_changes_nothing(tmp_path, base, complaint):
    save_adapter(with_lora(), tmp_path / "adapter", {"step": 7})
    model = flav(**base)
    before = snapshot(model)
    with pytest.raises(ValueError, match=complaint):
        load_adapter(model, tmp_path / "adapter")
    assert not changed(model, before)


@pytest.mark.parametrize("change", ["missing", "shape", "extra"])
def test_adapter_with_other_tensors_than_the_model_needs_is_refused(tmp_path, change):
    save_adapter(with_lora(), tmp_path, {})
    path, name = tmp_path / "adapter_model.safetensors", "base_model.model.blocks.1.audio_mlp.fc2.lora_B.weight"
    tensors = load_file(path)
    tensors |= {"extra": {"odd": torch.zeros(1)}, "shape": {name: torch.zeros(3, 2)}}.get(change, {})
    if change == "missing":
        del tensors[name]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"at rank 2: (odd|base_model\.\S+lora_B\.weight) differ"):
        load_adapter(flav(), tmp_path)


def test_adapter_that_peft_would_scale_otherwise_is_refused(tmp_path):
    save_adapter(with_lora(), tmp_path, {})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    with pytest.raises(ValueError, match="LoRA with use_rslora"):
        load_adapter(flav(), tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_missing_or_damaged_adapter_file_is_named(tmp_path, name):
    save_adapter(with_lora(), tmp_path, {})
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(ValueError, match="has a damaged file"):
        load_adapter(flav(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        load_adapter(flav(), tmp_path)


def test_failed_save_leaves_the_adapter_that_was_there(tmp_path, monkeypatch):
    save_adapter(with_lora(), tmp_path / "adapter", {"step": 1})
    with pytest.raises(TypeError):
        save_adapter(with_lora(seed=1), tmp_path / "adapter", {"step": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert load_adapter(flav(), tmp_path / "adapter") == {"step": 1}


def test_saving_twice_writes_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        save_adapter(with_lora(), tmp_path / folder, {})
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in FILES)


def test_adapter_goes_on_a_plain_model_only(tmp_path):
    model = with_lora()
    save_adapter(model, tmp_path / "adapter", {})
    saved(tmp_path / "base")
    for door in (
        lambda: add_lora(model, 2),
        lambda: load_adapter(model, tmp_path / "adapter"),
        lambda: initialise(model, tmp_path / "base"),
    ):
        with pytest.raises(ValueError, match="has a LoRA adapter already"):
            door()
    with pytest.raises(ValueError, match="has no adapter; call add_lora first"):
        save_adapter(flav(), tmp_path / "other", {})


def test_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="LoRA rank 0 is below 1"):
        add_lora(flav(), rank=0)


def test_adapter_of_the_tiny_preset_is_below_two_per_cent_of_the_model(tmp_path):
    model = FLAV(latent_size=8, in_channels=192, n_mels=64, num_classes=3, **FLAV_presets["FLAV-tiny"])
    whole = sum(p.numel() for p in model.parameters())
    assert add_lora(model, rank=8) < 0.02 * whole
    save_adapter(model, tmp_path / "adapter", {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 400_000
