"""AV-Link: towers that know nothing of each other, and what the link between them tells which side, when."""

import hashlib
from collections import Counter
from functools import partial

import pytest
import torch
from einops import rearrange

from diffusion.clip import Given, sample_clip
from diffusion.guidance import link_guided
from models.avlink import AVLink, AVLink_presets, placed
from models.fusion import CONDITIONING_TIMES
from models.layers import rotated
from models.link import LINKS, SIDES, FusionBlock, SymmetricCross, TimesEmbed
from models.text import padded
from tests.closeness import assert_close_by_size
from tests.randomised import randomised

CONFIG = dict(in_channels=3, patch_size=2, audio_channels=4, audio_patch=2, text_width=5, hidden_size=16, depth=4,
              num_heads=2, link_size=24, link_heads=2, placement=[1, 3])  # fmt: skip
LINKED = ("v2a", "a2v", "link")
GENERATED = {"picture": "sound", "sound": "picture"}


def avlink(**more) -> AVLink:
    """A tiny model with random weights everywhere, in float64."""
    return randomised(AVLink(**CONFIG | more), 0.3).double()


def fresh_link(**more) -> AVLink:
    """Towers with random weights, and a link as it is at the start."""
    model = AVLink(**CONFIG | more).double()
    for tower in (model.picture, model.sound):
        randomised(tower, 0.3)
    return model


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clip(B=2, T=3, H=4, W=6, N=10):
    t = torch.linspace(0.2, 0.7, B, dtype=torch.float64)
    return gaussian(B, T, 3, H, W), gaussian(B, N, 4, seed=1), t


def words(*lengths, seed=2):
    return padded([gaussian(n, 5, seed=seed + i).float() for i, n in enumerate(lengths)], 5).to(torch.float64)


def apart(one, two) -> float:
    return (one - two).abs().max().item()


@pytest.fixture(scope="module")
def model():
    return avlink()


# -------------------------------------------------------------------------------------------------------------- towers


def test_velocities_have_the_shapes_of_their_inputs_and_each_clip_is_alone(model):
    (v, a, t), text = clip(), words(3, 2)
    dv, da = model(v, a, t, t_a=t + 0.1, text=text)
    assert dv.shape == v.shape and da.shape == a.shape
    alone = model(v[1:], a[1:], t[1:], t_a=t[1:] + 0.1, text=text[1:])
    assert_close_by_size(alone[0], dv[1:])
    assert_close_by_size(alone[1], da[1:])


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_model_with_a_fresh_link_is_its_towers_to_the_bit(link, prediction):
    model, (v, a, t), text = fresh_link(link=link, prediction=prediction), clip(), words(3, 0)
    bare = fresh_link(placement=[], prediction=prediction)
    dv, da = model(v, a, t, t_a=t / 2, text=text)
    assert torch.equal(dv, model(v, None, t, text=text, alone="picture")[0]) and dv.std() > 0.1
    assert torch.equal(da, model(None, a, t, t_a=t / 2, text=text, alone="sound")[1]) and da.std() > 0.1
    assert all(torch.equal(one, two) for one, two in zip(bare(v, a, t, t_a=t / 2, text=text), (dv, da)))
    linked = randomised(model.link, 0.3).double() and model(v, a, t, t_a=t / 2, text=text)
    assert apart(linked[0], dv) > 1e-3 < apart(linked[1], da)


@pytest.mark.parametrize("side", SIDES)
def test_tower_alone_runs_nothing_of_the_other_and_nothing_of_the_link(model, side):
    (v, a, t), ran = clip(), Counter()
    hooks = [module.register_forward_hook(lambda *_, name=name: ran.update([name.partition(".")[0]]))
             for name, module in model.named_modules() if name]  # fmt: skip
    made = model(v if side == "picture" else None, a if side == "sound" else None, t, alone=side)
    for hook in hooks:
        hook.remove()
    assert ran.keys() == {side} and [x is not None for x in made] == [side == "picture", side == "sound"]


def test_every_patch_reaches_every_other_and_its_place_matters(model):
    v, _, t = clip(B=1)
    dv = model(v, None, t, alone="picture")[0]
    for frame, row, column in ((0, 0, 0), (2, 2, 4)):
        other = v.clone()
        other[:, frame, :, row : row + 2, column : column + 2] += 1
        moved = (model(other, None, t, alone="picture")[0] - dv).abs()
        assert moved.unfold(3, 2, 2).unfold(4, 2, 2).amax((0, 2, 5, 6)).min() > 1e-6
    for axis in (1, 3, 4):
        turned = model(v.flip(axis).contiguous(), None, t, alone="picture")[0].flip(axis)
        assert apart(turned, dv) > 1e-3


def test_tower_of_sound_hears_all_of_it_and_when(model):
    _, a, t = clip(B=1)
    da = model(None, a, t, alone="sound")[1]
    other = a.clone()
    other[:, 8:] += 1
    assert (model(None, other, t, alone="sound")[1] - da).abs().amax((0, 2)).min() > 1e-6
    turned = model(None, a.unflatten(1, (-1, 2)).flip(1).flatten(1, 2), t, alone="sound")[1]
    assert apart(turned.unflatten(1, (-1, 2)).flip(1).flatten(1, 2), da) > 1e-3


def test_patches_come_out_where_they_went_in_and_tokens_of_a_patch_in_their_order(model):
    """Of what is embedded by an orthogonal map, and led back by its inverse."""
    v, a, _ = clip()
    for tower, x in ((model.picture, v), (model.sound, a)):
        plain = type(tower)(tower.channels, tower.patch, 12 if x is v else 8, 0, 1, 0).double()
        weight = plain.embed.weight.flatten(1)
        torch.nn.init.orthogonal_(weight)
        tokens = torch.nn.functional.linear(
            plain.begin(x, torch.zeros(2).double(), None).x - plain.embed.bias, weight.T
        )
        tokens = rearrange(tokens, "b t n (c p q) -> b t n (p q c)", p=2, q=2) if x is v else tokens
        assert_close_by_size(plain._values(tokens, x), x)


def test_positions_turn_each_axis_by_itself_and_differences_alone_are_seen():
    q, k = gaussian(1, 2, 5, 16), gaussian(1, 2, 5, 16, seed=1)
    at = torch.stack([torch.arange(5.0), torch.tensor([0.0, 3, 1, 4, 2]), torch.tensor([2.0, 0, 0, 1, 5])], -1)
    logits = rotated(q, at) @ rotated(k, at).mT
    shift = torch.tensor([7.0, 30.0, 2.0])
    assert_close_by_size(rotated(q, at + shift) @ rotated(k, at + shift).mT, logits, share=1e-5)
    for axis in range(3):
        other = at.clone()
        other[:, axis] *= 2
        assert apart(rotated(q, other) @ rotated(k, other).mT, logits) > 0.1


@pytest.mark.parametrize("side", SIDES)
def test_text_is_each_sides_own_or_of_both_and_optional(model, side):
    (v, a, t), text = clip(), words(3, 2)
    nothing, both = model(v, a, t), model(v, a, t, text=text)
    assert all(apart(one, two) > 1e-3 for one, two in zip(nothing, both))
    assert all(torch.equal(one, two) for one, two in zip(both, model(v, a, t, text=text, text_a=text)))
    own = {"picture": dict(text=text, text_a=words(0, 0)), "sound": dict(text_a=text)}[side]
    bare = avlink(placement=[])
    told, untold = bare(v, a, t, **own), bare(v, a, t)
    for name, one, two in zip(SIDES, told, untold):
        assert (apart(one, two) > 1e-3) is (name == side)


def test_row_without_tokens_is_the_learned_null_text_and_towers_without_text_have_only_that(model):
    (v, a, t), text = clip(), words(3, 0)
    made, null = model(v, a, t, text=text), model(v, a, t)
    assert all(apart(one[0], two[0]) > 1e-3 for one, two in zip(made, null))
    for one, two in zip(made, null):
        assert_close_by_size(one[1], two[1])
    silent = avlink(text_width=None)
    assert not hasattr(silent.picture, "text") and silent(v, a, t)[1].isfinite().all()
    with pytest.raises(ValueError, match="text of width 5 does not fit this model, which takes none; use the encoder"):
        silent(v, a, t, text=text)


@pytest.mark.parametrize("T, H, W, N", [(1, 2, 2, 2), (5, 8, 4, 30), (3, 4, 10, 6)])
def test_one_set_of_weights_runs_at_any_size_and_length(model, T, H, W, N):
    v, a, t = clip(1, T, H, W, N)
    dv, da = model(v, a, t)
    assert dv.shape == v.shape and da.shape == a.shape and dv.isfinite().all() and da.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ the link


def frames(T=3, L=4, N=5, widths=(16, 12), B=2):
    return gaussian(B, T, L, widths[0]), gaussian(B, N, 1, widths[1], seed=1), gaussian(B, 24, seed=2)


def block(kind=FusionBlock, widths=(16, 12)):
    return randomised(kind(widths, 24, 2), 0.3).double()


@pytest.mark.parametrize("kind", LINKS.values())
def test_block_gives_what_is_added_to_towers_of_any_widths_and_zeros_at_the_start(kind):
    x, y, c = frames()
    at = torch.arange(3.0), torch.arange(5.0)
    told = block(kind)(x, y, c, *at)
    for update, side in zip(told, (x, y)):
        assert update.broadcast_to(side.shape).std() > 1e-2 and update.shape[-1] == side.shape[-1]
    new = kind((16, 12), 24, 2).double()
    for gate in new.gates:
        gate.weight.data.zero_()
    for linear in new.modules():
        if isinstance(linear, torch.nn.Linear):
            linear.bias.data.zero_()
    assert not any(update.any() for update in new(x, y, c, *at))
    only = block(kind)(x, y, c, *at, told=("sound",))
    assert only[0] is None
    assert_close_by_size(only[1], told[1])


@pytest.mark.parametrize("kind", LINKS.values())
def test_swapping_the_sides_with_their_weights_swaps_what_they_are_told(kind):
    (x, y, c), one = frames(L=1), block(kind)
    at = torch.tensor([0.0, 2.0, 4.5]), torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    swap = {"picture": "sound", "sound": "picture"}
    renamed = {".".join(swap.get(part, part) for part in name.split(".")): p for name, p in one.state_dict().items()}
    two = kind((12, 16), 24, 2).double()
    two.load_state_dict(renamed)
    for own, other in zip(one(x, y, c, *at), reversed(two(y, x, c, *reversed(at)))):
        assert_close_by_size(own, other)


@pytest.mark.parametrize("kind", [FusionBlock, SymmetricCross])
def test_shifting_both_sides_by_a_second_changes_no_logit_and_shifting_one_does(kind):
    (x, y, c), link, logits = frames(), block(kind), []
    at = torch.arange(3.0), torch.arange(5.0) * 0.6

    def told(v, a):
        logits.clear()
        return link(x, y, c, v, a)

    plain = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.functional.scaled_dot_product_attention",
                      lambda q, k, *more, **how: (logits.append(q @ k.mT), plain(q, k, *more, **how))[1])  # fmt: skip
        told(*at)
        first = list(logits)
        told(*(place + 6 for place in at))
        for one, two in zip(first, logits, strict=True):
            assert_close_by_size(one, two, share=1e-5)
        told(at[0] + 6, at[1])
        assert all(apart(one, two) > 0.1 for one, two in zip(first, logits, strict=True))


@pytest.mark.parametrize("rate", [25.0, 62.5, 7.0])
def test_sound_and_frame_of_the_same_second_stand_at_the_same_place_at_any_rates(rate):
    model = avlink(video_rate=6.0, audio_rate=2 * rate)  # two tokens are one inside
    seen = []
    model.link["blocks"]["1"].register_forward_pre_hook(lambda _, args: seen.extend(args[3:5]))
    v, a, t = clip(1, 13, 2, 2, 2 * int(2 * rate) + 2)
    model(v, a, t)
    picture, sound = seen
    assert picture.tolist() == list(range(13))  # tau(n) = n
    seconds = torch.arange(len(sound)) / rate
    assert sound.tolist() == pytest.approx((6 * seconds).tolist())
    assert sound[int(2 * rate)] == pytest.approx(picture[12] * int(2 * rate) / (2 * rate))


def test_tokens_may_stand_in_the_middle_of_their_time():
    early, centred = (avlink(offset=x, link_rate=10.0) for x in (0.0, 0.5))
    assert (early.link_positions(3, 5.0) * 0.1).tolist() == pytest.approx([0, 0.2, 0.4])
    assert (centred.link_positions(3, 5.0) * 0.1).tolist() == pytest.approx([0.1, 0.3, 0.5])


def test_nearest_frame_is_told_of_where_nothing_attends():
    """Five frames of sound at 0, 0.6, ..., 2.4 beside frames of picture at 0, 1, 2."""
    link, (x, y, c) = block(LINKS["direct"]), frames()
    at = torch.arange(3.0), torch.arange(5.0) * 0.6
    told = link(x, y, c, *at)
    for frame, hears in enumerate(([0], [1, 2], [3, 4])):
        other = x.clone()
        other[:, frame] *= -1
        moved = (link(other, y, c, *at)[1] - told[1]).abs().amax((0, 2, 3)) > 1e-6
        assert moved.nonzero().flatten().tolist() == hears


def test_each_side_hears_the_other_and_in_symmetric_cross_attention_not_itself():
    x, y, c = frames()
    at = torch.arange(3.0), torch.arange(5.0)
    for kind, hears_itself in ((FusionBlock, True), (SymmetricCross, False)):
        link = block(kind)
        told, other = link(x, y, c, *at), x.clone()
        other[:, 0] += gaussian(16, seed=9)
        moved = link(other, y, c, *at)
        assert apart(moved[1], told[1]) > 1e-3
        assert torch.equal(moved[0][:, 1:], told[0][:, 1:]) is not hears_itself


@pytest.mark.parametrize("changed", SIDES)
def test_both_sides_are_told_of_both_times(changed):
    """In the towers each knows its own alone; the embedding tells (t, t_a) from (t_a, t)."""
    times = randomised(TimesEmbed(24), 0.3).double()
    t, t_a = torch.tensor([0.3]).double(), torch.tensor([0.8]).double()
    c = times(t, t_a)
    assert apart(c, times(t_a, t)) > 1e-3
    other = times(t + 0.1, t_a) if changed == "picture" else times(t, t_a + 0.1)
    (x, y, _), link = frames(B=1), block()
    at = torch.arange(3.0), torch.arange(5.0)
    assert all(apart(one, two) > 1e-4 for one, two in zip(link(x, y, c, *at), link(x, y, other, *at)))


def test_times_of_one_side_move_the_other_through_the_link_alone(model):
    (v, a, t), bare = clip(), avlink(placement=[])
    for one, linked in ((model, True), (bare, False)):
        dv, da = one(v, a, t, t_a=t + 0.1)
        assert (apart(one(v, a, t, t_a=t + 0.2)[0], dv) > 1e-4) is linked
        assert (apart(one(v, a, t + 0.1, t_a=t + 0.1)[1], da) > 1e-4) is linked


@pytest.mark.parametrize("placement, expected", [(None, [1, 4]), ([2], [2]), ([4, 1], [1, 4]), ([], [])])
def test_link_is_after_the_layers_that_are_listed(placement, expected):
    model, ran = avlink(placement=placement), []
    for i, layer in enumerate(model.sound.layers, 1):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    for kind in model.link["blocks"].values():
        kind.register_forward_hook(lambda *_: ran.append("link"))
    model(*clip())
    assert ran == [x for i in (1, 2, 3, 4) for x in (i, "link")[: 1 + (i in expected)]]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("placement", [[1], []])
def test_units_of_shards_are_all_there(link, placement):
    model = avlink(link=link, placement=placement)
    assert {type(module).__name__ for module in model.modules()} >= {*model._no_split_modules}
    assert (LINKS[link].__name__ in model._no_split_modules) is bool(placement)


def test_papers_link_is_eight_blocks_from_the_first_layer_to_the_22nd():
    assert placed(None, 24) == [1, 4, 7, 10, 13, 16, 19, 22]
    with pytest.raises(ValueError, match=r"placement \[0, 'x', 9\] is after no layer of 4; choose 1 to 4"):
        placed([0, 1, "x", 9], 4)


# ------------------------------------------------------------------------------------------------------- given, bypass


@pytest.mark.parametrize("given", SIDES)
def test_other_side_of_a_given_one_is_made_as_together_for_less(model, given):
    (v, a, t), ran = clip(), []
    together = dict(zip(SIDES, model(v, a, t, t_a=t / 2)))
    hooks = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in getattr(model, given).layers]
    asked = []
    hooks += [block.register_forward_pre_hook(lambda _, args: asked.append(args[-1]))
              for block in model.link["blocks"].values()]  # fmt: skip
    made = dict(zip(SIDES, model(v, a, t, t_a=t / 2, given=given)))
    assert asked == [SIDES, (GENERATED[given],)]  # the last one tells nothing that is not looked at
    for hook in hooks:
        hook.remove()
    assert made[given] is None and len(ran) == 3  # it ends after the last block
    assert_close_by_size(made[GENERATED[given]], together[GENERATED[given]])
    assert apart(model(v * 2, a * 2, t, t_a=t / 2, given=given)[given == "picture"], made[GENERATED[given]]) > 1e-3


@pytest.mark.parametrize("given", SIDES)
@pytest.mark.parametrize("reinject", [True, False])
def test_given_side_hears_the_other_unless_that_is_off(given, reinject):
    model, (v, a, t), seen = avlink(reinject=reinject), clip(), []
    getattr(model, given).layers[2].register_forward_hook(lambda *args: seen.append(args[-1]))
    model(v, a, t, given=given)
    other = {"picture": (v, a + 1), "sound": (v + 1, a)}[given]
    model(*other, t, given=given)
    assert torch.equal(*seen) is not reinject


@pytest.mark.parametrize("given", SIDES)
@pytest.mark.parametrize("link", LINKS)
def test_features_of_the_given_side_are_computed_once_and_give_the_same(given, link):
    model, (v, a, t), text, ran = avlink(reinject=False, link=link), clip(), words(3, 2), []
    x, i = (v, 0) if given == "picture" else (a, 1)
    held = torch.full_like(t, 0.9)
    getattr(model, given).layers[0].register_forward_hook(lambda *_: ran.append(1))
    features = model.given_features(given, x, held, text)
    for step in (0.1, 0.5):
        times = [torch.full_like(t, step)] * 2
        times[i] = held
        sides = [v * step, a * step]
        sides[i] = x
        whole = model(*sides, times[0], t_a=times[1], text=text, given=given)
        sides[i] = None
        cached = model(*sides, times[0], t_a=times[1], text=text, given=given, features=features)
        assert torch.equal(whole[1 - i], cached[1 - i]) and cached[i] is None
    assert len(ran) == 1 + 2  # once for both steps, and once in each step that computes anew


def test_features_of_a_model_that_reinjects_are_refused(model):
    v, _, t = clip()
    with pytest.raises(ValueError, match="its features change at every step; train one with --variant no-reinject"):
        model.given_features("picture", v, t)


# --------------------------------------------------------------------------------------- a network shows the picture


@pytest.fixture(scope="module")
def looked():
    return avlink(source="network", reinject=False)


def test_network_shows_a_picture_once_and_its_tower_does_not_run(looked):
    """Row A30: what is shown is the same at all steps, whatever is made."""
    (v, a, t), ran = clip(), Counter()
    hooks = [module.register_forward_hook(lambda *_, name=name: ran.update([name.partition(".")[0]]))
             for name, module in looked.named_modules() if name]  # fmt: skip
    whole = looked(v, a, t / 2, t_a=t, given="picture")
    assert ran.keys() == {"source", "sound", "link"} and whole[0] is None
    ran.clear()
    shown = looked.given_features("picture", v, t)
    assert ran.keys() == {"source"} and [x.shape for x in shown] == [(2, 3, 6, 16)] * 2
    ran.clear()
    assert torch.equal(looked(None, a, t / 2, t_a=t, given="picture", features=shown)[1], whole[1])
    assert "source" not in ran
    for hook in hooks:
        hook.remove()
    other = v.clone()
    other[:, 2, :, 2:] += 1
    assert apart(looked(other, a, t / 2, t_a=t, given="picture")[1], whole[1]) > 1e-3


def test_network_sees_patches_of_each_frame_by_itself_at_any_size(looked):
    v = gaussian(1, 3, 3, 20, 4)
    other = v.clone()
    other[:, 1, :, 6:8] += 1  # row 3 of 10
    seen = (looked.source(other) - looked.source(v)).abs().amax((0, 3)).unflatten(1, (10, 2)).amax(2) > 0
    assert seen.tolist() == [[False] * 10, [False] + [True] * 5 + [False] * 4, [False] * 10]


def test_weights_of_the_network_are_of_its_seed_and_of_the_size_that_keeps_what_passes():
    sources = []
    for _ in range(2):
        torch.rand(1)
        sources.append(AVLink(**CONFIG | dict(source="network", reinject=False, hidden_size=256)).source)
    assert digest(sources[0]) == digest(sources[1]) and not any(p.requires_grad for p in sources[0].parameters())
    assert 1 < sources[0](gaussian(2, 3, 3, 16, 16).float()).std().item() < 2


def test_picture_that_a_network_shows_is_told_nothing_and_made_by_its_tower(looked):
    (v, a, t), text = clip(), words(3, 2)
    dv, da = looked(v, a, t, text=text)
    alone = [looked(v, a, t, text=text, alone=side)[i] for i, side in enumerate(SIDES)]
    assert torch.equal(dv, alone[0]) and apart(da, alone[1]) > 1e-3
    assert torch.equal(da, looked(v, a, t, text=text, given="picture")[1])
    deaf = looked(v, a, t, text=text, given="picture", bypass=torch.ones(2, 2).bool())[1]
    assert torch.equal(deaf, alone[1])


def test_network_keeps_its_weights_in_training_and_in_a_checkpoint(looked, tmp_path):
    model, (v, a, t) = avlink(source="network", reinject=False).float(), clip()
    before = {name: digest(part) for name, part in model.named_children()}
    model.set_stage("v2a")
    v, a, t = v.float(), a.float(), t.float()
    model(v, a, t, given="picture")[1].square().mean().backward()
    assert all((p.grad is not None) is p.requires_grad for p in model.parameters())
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    assert {name for name, part in model.named_children() if digest(part) != before[name]} == {"link"}
    model.save_pretrained(tmp_path)
    again = AVLink.from_pretrained(tmp_path)
    assert again.takes == ("picture",) and not any(p.requires_grad for p in again.source.parameters())
    assert digest(again) == digest(model)
    assert_close_by_size(again(v, a, t, given="picture")[1], model(v, a, t, given="picture")[1], share=1e-4)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model(*clip(), given="sound"), "given 'sound' is not for this model, which hears of pictures"),
        (lambda model: model.given_features("sound", *clip()[1:]), "given 'sound' is not for this model"),
        (lambda model: model.set_stage("a2v"), "stage a2v tells the picture of the sound, and one that is shown by a"),
        (lambda model: model.set_stage("link"), "take stage v2a, or leave --variant network out"),
        (lambda _: AVLink(**CONFIG, source="network"), "shown by a network hears nothing of the sound; give reinject"),
        (lambda _: AVLink(**CONFIG, source="clip"), "source 'clip' is unknown; choose one of tower, network"),
    ],
)
def test_what_a_picture_of_a_network_cannot_do_is_refused(looked, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(looked)


# ------------------------------------------------------------------------------------------------------------- bypass


def test_nothing_passes_through_clips_that_bypass_the_link(model):
    v, a, t = clip()
    both, towers = model(v, a, t), (model(v, a, t, alone="picture")[0], model(v, a, t, alone="sound")[1])
    part = model(v, a, t, bypass=torch.tensor([[True, True], [False, False]]))
    for one, linked, tower in zip(part, both, towers):
        assert torch.equal(one[0], tower[0]) and torch.equal(one[1], linked[1]) and not torch.equal(one[1], tower[1])
    deaf = model(v, a, t, bypass=torch.tensor([[True, False]] * 2))  # the picture hears nothing, the sound does
    assert torch.equal(deaf[0], towers[0]) and apart(deaf[1], towers[1]) > 1e-3


@pytest.mark.parametrize("given", SIDES)
def test_guidance_leads_away_from_the_made_sides_tower_which_knows_neither_given_side_nor_text(model, given):
    """Row A18, through the sampler: the given side is held at its time, with noise that is drawn once."""
    (v, a, _), text, made, seen = clip(), words(3, 2), GENERATED[given], []
    linked, alone = partial(model, text=text, given=given), partial(model, alone=made)
    place = SIDES.index(made)
    t, t_a = torch.tensor([0.3, 0.6]).double(), torch.tensor([0.9, 0.8]).double()
    there, base = (f(v, a, t, t_a=t_a)[place] for f in (linked, alone))
    assert_close_by_size(link_guided(linked, alone, 5.0)(v, a, t, t_a=t_a)[place], base + 5 * (there - base))
    assert link_guided(linked, alone, 1) is linked and apart(there, base) > 1e-3
    other = {"picture": (v + 1, a), "sound": (v, a + 1)}[given]
    assert torch.equal(link_guided(linked, alone, 0)(*other, t, t_a=t_a)[place], base)

    def watched(v, a, t, t_a):
        seen.append(((v, a)[1 - place], (t, t_a)[1 - place]))
        return linked(v, a, t, t_a=t_a)

    shown = Given((v, a)[1 - place], gaussian(*(v, a)[1 - place].shape, seed=7), CONDITIONING_TIMES[1 - place])
    sample_clip(link_guided(watched, alone, 5.0), v, a, 3, **{"given_v" if given == "picture" else "given_a": shown})
    expected = CONDITIONING_TIMES[1 - place] * shown.clean + (1 - CONDITIONING_TIMES[1 - place]) * shown.eps
    assert len(seen) == 3
    for x, time in seen:
        assert torch.equal(x, seen[0][0]) and time.eq(CONDITIONING_TIMES[1 - place]).all()
        assert_close_by_size(x, expected)


# --------------------------------------------------------------------------------------------------------------- stages


def digest(part) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in part.parameters())).hexdigest()


def made_in(stage: str) -> dict:
    return {"video": dict(alone="picture"), "audio": dict(alone="sound"), "v2a": dict(given="picture"),
            "a2v": dict(given="sound"), "link": {}}[stage]  # fmt: skip


@pytest.mark.parametrize("stage", AVLink.stages)
@pytest.mark.parametrize("more", [{}, {"reinject": False}, {"link": "symcross"}, {"link": "direct"}], ids=str)
def test_stage_teaches_its_part_alone_and_all_of_that(stage, more):
    """By the gradient alone; towers and what of the link makes the given side stay to the bit."""
    model, (v, a, t) = avlink(**more), clip()
    count = model.set_stage(stage)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    before, old = {name: digest(part) for name, part in model.named_children()}, model.state_dict()
    old = {name: x.clone() for name, x in old.items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    made = model(v, a, t, t_a=t / 2, text=words(3, 0), **made_in(stage))
    sum(x.square().mean() for x in made if x is not None).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == learning
    optimiser.step()
    changed = {name for name, part in model.named_children() if digest(part) != before[name]}
    assert changed == {{"video": "picture", "audio": "sound"}.get(stage, "link")}
    still = {name for name in learning if torch.equal(model.state_dict()[name], old[name])}
    assert not {name for name in still if "key_value.bias" not in name}


@pytest.mark.parametrize("stage", LINKED)
def test_towers_are_as_they_were_after_steps_of_the_optimiser(stage):
    model, (v, a, t) = avlink(), clip()
    model.set_stage(stage)
    towers = digest(model.picture), digest(model.sound)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        sum(x.square().mean() for x in model(v, a, t, **made_in(stage)) if x is not None).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert (digest(model.picture), digest(model.sound)) == towers


@pytest.mark.parametrize("grad_ckpt", [False, True])
def test_no_graph_is_kept_before_the_link_and_of_a_given_side_that_hears_nothing(grad_ckpt):
    for reinject in (True, False):
        model, graphs = avlink(reinject=reinject, grad_ckpt=grad_ckpt), []
        model.set_stage("v2a")
        for layer in model.picture.layers:
            layer.register_forward_hook(lambda *args, graphs=graphs: graphs.append(args[-1].requires_grad))
        model(*clip(), given="picture")
        assert graphs == [False, reinject, reinject]


def test_checkpointed_layers_give_the_same_gradients_to_the_bit():
    grads = []
    for grad_ckpt in (False, True):
        model, (v, a, t), ran = avlink(grad_ckpt=grad_ckpt), clip(), []
        model.set_stage("link")
        model.picture.layers[2].register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        sum(x.square().mean() for x in model(v, a, t)).backward()
        assert len(ran) == 1 + grad_ckpt
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))


def test_fresh_link_learns_from_the_first_step():
    model = fresh_link()
    model.set_stage("v2a")
    model(*clip(), given="picture")[1].square().mean().backward()
    assert all(p.grad.any() for name, p in model.link.named_parameters() if name.endswith("modulation.sound.weight"))


def test_queries_and_keys_of_any_size_give_the_same_logits(model):
    """Row A6: QK normalisation, in towers and link."""
    v, a, t = clip()
    out = model(v, a, t)
    large = avlink()
    with torch.no_grad():
        for name, p in large.named_parameters():
            if ".query." in name:
                p *= 100
    for one, two in zip(out, large(v, a, t)):
        assert_close_by_size(one, two, share=1e-3)  # but for eps


# ------------------------------------------------------------------------------------------------------- as a whole


def test_papers_towers_have_576_million_numbers_and_17856_tokens():
    with torch.device("meta"):
        model = AVLink(**AVLink_presets["AVLink-L"])
        tokens = model.picture.begin(torch.zeros(1, 31, 3, 36, 64), torch.zeros(1), None).x
    assert tokens.shape == (1, 31, 576, 1024) and tokens.shape[1] * tokens.shape[2] == 17_856
    for tower in (model.picture, model.sound):
        assert len(tower.layers) == 24
        assert sum(p.numel() for p in tower.parameters()) == pytest.approx(576e6, rel=0.05)
        layers = sum(p.numel() for p in tower.layers.parameters())
        assert layers == pytest.approx(24 * 22 * 1024**2, rel=0.002)
    blocks = model.link["blocks"]
    assert [*blocks] == ["1", "4", "7", "10", "13", "16", "19", "22"]
    assert sum(p.numel() for p in blocks["1"].parameters()) == pytest.approx(40 * 1024**2, rel=0.002)


@pytest.mark.parametrize("stage", ["v2a"])
def test_two_layers_of_the_papers_model_take_a_step_on_a_cpu(stage):
    model = AVLink(**AVLink_presets["AVLink-L"] | {"depth": 2, "grad_ckpt": True, "text_width": 64})
    for name, p in model.named_parameters():
        if not p.any() and name.endswith("weight"):  # at the start it gives zeros, and nothing else would learn
            torch.nn.init.normal_(p, std=0.02)
    model.set_stage(stage)
    v, a, t = torch.randn(1, 2, 3, 4, 8), torch.randn(1, 5, 128), torch.tensor([0.4])
    made = model(v, a, t, t_a=t + 0.4, text=padded([torch.randn(3, 64)], 64), **made_in(stage))
    made = next(x for x in made if x is not None)
    made.square().mean().backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    before = [p.sum().item() for p in learning]
    torch.optim.SGD(learning, lr=1).step()
    assert made.isfinite().all() and all(p.isfinite().all() for p in learning)
    assert sum(p.sum().item() != old for p, old in zip(learning, before)) > 0.8 * len(before)


def test_model_is_saved_and_loaded_with_its_placement(tmp_path):
    model, (v, a, t) = avlink(placement=[2]).float(), (x.float() for x in clip())
    model.save_pretrained(tmp_path)
    again = AVLink.from_pretrained(tmp_path)
    assert again.placement == [2] and all(torch.equal(one, two) for one, two in zip(model(v, a, t), again(v, a, t)))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(v=(2, 3, 4, 4, 6)), r"v \(2, 3, 4, 4, 6\) does not fit this model; it takes v \(B, T, 3, H, W\)"),
        (dict(v=(2, 3, 3, 5, 6)), "of sides that 2 divides"),
        (dict(a=(2, 10, 5)), r"a \(2, 10, 5\) does not fit this model; it takes a \(B, N, 4\) of N that 2 divides"),
        (dict(a=(2, 9, 4)), "of N that 2 divides"),
        (dict(a=(3, 10, 4), t_a=(3,)), "as many clips of either side"),
        (dict(t=(2, 3)), r"takes t \(B,\), a time for each clip"),
    ],
)
def test_inputs_of_other_shapes_are_refused(model, wrong, message):
    shapes = dict(v=(2, 3, 3, 4, 6), a=(2, 10, 4), t=(2,), t_a=(2,)) | wrong
    with pytest.raises(ValueError, match=message):
        model(**{name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()})


def test_what_is_unknown_or_contradicts_itself_is_refused(model):
    v, a, t = clip()
    for how in (dict(given="video"), dict(given="picture", alone="sound"), dict(features=[]),
                dict(given="picture", features=[])):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"cannot be; name one side, picture or sound, and give features of a given"
        ):
            model(v, a, t, **how)
    with pytest.raises(ValueError, match="there is no picture, which this call looks at; give it"):
        model(None, a, t)
    with pytest.raises(ValueError, match="stage 'joint' is unknown; choose one of video, audio, v2a, a2v, link"):
        model.set_stage("joint")
    with pytest.raises(ValueError, match="this model has no link to train; give it a placement"):
        avlink(placement=[]).set_stage("v2a")
    with pytest.raises(ValueError, match="link 'clip' is unknown; choose one of fusion, symcross, direct"):
        avlink(link="clip")
    with pytest.raises(ValueError, match="4 heads of hidden size 16 are too narrow for positions along 3 axes"):
        avlink(num_heads=4)
