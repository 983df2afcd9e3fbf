"""Texts: encoders that need no weights and a real T5 of tiny size, and what a model with text makes of them."""

import numpy as np
import pytest
import torch

from models import FLAV, TabledFLAV
from models.text import T5, TEXT_ENCODERS, Text, Words, load_text_encoder, padded
from tests.closeness import assert_close_by_size
from tests.randomised import randomised

CONFIG = dict(latent_size=4, patch_size=2, hidden_size=16, depth=2, num_heads=2, mlp_ratio=2.0, predict_frames=4)
CONFIG |= dict(n_mels=6, audio_fr=2, in_channels=3, text_width=5)


def flav(**more) -> FLAV:
    """A tiny model with random weights everywhere."""
    return randomised(FLAV(**CONFIG | more), 0.3).double()


def inputs(B=2, T=3):
    rng = torch.Generator().manual_seed(1)
    v, a = (torch.randn(B, T, *shape, generator=rng, dtype=torch.float64) for shape in ((3, 4, 4), (2, 6)))
    return v, a, torch.rand(B, T, generator=rng, dtype=torch.float64)


def assert_same(one, two):
    for x, y in zip(one, two):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------- words


def test_word_is_a_vector_keyed_by_its_letters_whatever_its_case_and_its_neighbours():
    a, b = Words().encode(["A red ball", "big RED"])
    assert torch.equal(a[1], b[1]) and not torch.equal(a[0], a[2])
    assert torch.equal(*Words().encode(["cafe\u0301", "CAFÉ"]))  # composed or not
    assert a[1][:3].tolist() == pytest.approx([2.29201, -1.60587, 0.00920], abs=1e-4)  # on any machine, for ever


def test_words_are_unit_gaussian_and_as_good_as_orthogonal():
    x = torch.cat(Words().encode([f"word{i}" for i in range(400)]))
    assert x.mean().abs() < 0.02 and abs(x.std() - 1) < 0.02
    cosines = np.corrcoef(x.numpy())[np.triu_indices(400, 1)]
    assert np.abs(cosines).mean() < 1.5 / 64**0.5


def test_text_without_a_word_has_no_tokens_and_a_long_one_is_cut():
    empty, marks, long = Words().encode(["", " ... !", "word " * 10_000])
    assert len(empty) == len(marks) == 0 and empty.shape == (0, 64) and long.shape == (300, 64)
    assert Words().lengths(["", "a b", "word " * 10_000]) == [0, 2, 10_000]


def test_unknown_encoder_and_source_of_one_without_weights_are_refused():
    with pytest.raises(ValueError, match="text encoder 'clip' is unknown; choose one of words, t5"):
        load_text_encoder("clip")
    with pytest.raises(ValueError, match=r"has no weights, so none can come from x; leave it out"):
        load_text_encoder("words", "x")
    assert set(TEXT_ENCODERS) == {"words", "t5"}


def test_padding_masks_what_is_not_there_and_the_mean_is_over_what_is():
    one, two = torch.arange(6.0).view(3, 2), torch.zeros(0, 2)
    text = padded([one, two], 2)
    assert text.mask.tolist() == [[True] * 3, [False] * 3] and text.there.tolist() == [True, False]
    assert text.pooled().tolist() == [[2, 3], [0, 0]]
    assert text[1:].there.tolist() == [False] and text.to(torch.float64).tokens.dtype == torch.float64


# ------------------------------------------------------------------------------------------------------------------- T5


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    """A T5 of transformers' own layout, with random weights and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "blue", "ball"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(vocab_size=7, d_model=16, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    return folder


def test_t5_gives_what_transformers_gives_for_a_text_alone(t5_folder):
    from transformers import T5EncoderModel

    ours = load_text_encoder("t5", str(t5_folder))
    found = ours.encode(["a red ball", "", "blue"])
    assert [x.shape for x in found] == [(4, 16), (0, 16), (2, 16)] and ours.width == 16
    theirs = T5EncoderModel.from_pretrained(t5_folder).eval()
    for x, ids in ((found[0], [3, 4, 6, 1]), (found[2], [5, 1])):
        assert_close_by_size(x, theirs(input_ids=torch.tensor([ids])).last_hidden_state[0].detach())


def test_t5_cuts_at_its_limit_and_counts_before(t5_folder, monkeypatch):
    monkeypatch.setattr(T5, "most", 5)
    encoder = load_text_encoder("t5", str(t5_folder))
    assert encoder.lengths(["ball " * 9, ""]) == [10, 0] and len(encoder.encode(["ball " * 9])[0]) == 5


def test_t5_that_is_not_there_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot be loaded \(.*\); give --text-source the folder or hub id"):
        load_text_encoder("t5", str(tmp_path))


# ---------------------------------------------------------------------------------------------------------------- model


def test_fresh_model_hears_no_text_yet_and_a_trained_one_does():
    text = padded([torch.randn(3, 5), torch.randn(2, 5)], 5).to(torch.float64)
    v, a, t = inputs()
    fresh = FLAV(**CONFIG).double()
    assert fresh.video_text.weight.abs().max() == 0
    model = flav()
    assert (model(v, a, t, text=text)[0] - model(v, a, t)[0]).abs().max() > 0.01


def test_prompt_by_label_is_the_text_itself_and_label_none_the_learned_null_text():
    model, (v, a, t) = flav(), inputs()
    tokens = [torch.randn(3, 5, dtype=torch.float64), torch.zeros(0, 5)]
    text = padded(tokens, 5)
    text = Text(text.tokens.double(), text.mask)
    prompts = torch.stack([torch.zeros(5, dtype=torch.float64), text.pooled()[0]])
    assert_same(model(v, a, t, torch.tensor([1, -1]), prompts=prompts), model(v, a, t, text=text))
    assert_same(model(v, a, t, torch.tensor([-1, -1]), prompts=prompts), model(v, a, t))
    before = model(v, a, t)
    with torch.no_grad():
        model.null_text += 1
    assert (model(v, a, t)[0] - before[0]).abs().max() > 0.01


def test_each_frame_follows_its_own_prompt_and_the_sound_may_follow_another():
    model, (v, a, t) = flav(), inputs(1, 3)
    prompts = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mixed = model(v, a, t, torch.tensor([[0, 1, 1]]), prompts=prompts)
    first = model(v, a, t, torch.tensor([0]), prompts=prompts)
    torch.testing.assert_close(mixed[0][:, 0], first[0][:, 0], rtol=0, atol=1e-12)  # causal: frame 0 sees no other
    assert (mixed[0][:, 1] - first[0][:, 1]).abs().max() > 1e-3
    other = model(v, a, t, torch.tensor([0]), y_a=torch.tensor([1]), prompts=prompts)
    assert (other[1] - first[1]).abs().max() > 1e-3


def test_looked_up_prompts_are_the_computed_ones_also_of_prompts_that_come_later():
    model, (v, a, _) = flav(), inputs(2, 3)
    prompts = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    known = [prompts[:1]]
    tabled, t = TabledFLAV(model, 8, lambda: known[0]), torch.tensor([[6, 4, 2]] * 2).double() / 8
    for labels in ([0, -1], [2, 1]):
        known[0] = prompts[: max(labels) + 1]
        y = torch.tensor(labels).unsqueeze(1).expand(-1, 3)
        assert tabled.conditions(t, y, t) is not None
        assert_same(tabled(v, a, t, y), model(v, a, t, y, prompts=prompts))


def test_text_that_does_not_fit_the_model_is_refused():
    (v, a, t), text = inputs(), padded([torch.randn(2, 7)] * 2, 7)
    with pytest.raises(ValueError, match="text of width 7 does not fit this model, which takes width 5; use the enc"):
        flav()(v, a, t, text=text)
    with pytest.raises(ValueError, match="text of width 7 does not fit this model, which takes no text"):
        flav(text_width=0)(v, a, t, text=text)
    with pytest.raises(ValueError, match="3 classes beside text of width 5 are not built; choose one of them"):
        FLAV(**CONFIG, num_classes=3)


def test_model_with_text_is_saved_and_loaded(tmp_path):
    model = flav().float()
    model.save_pretrained(tmp_path)
    again = FLAV.from_pretrained(tmp_path)
    assert again.text_width == 5 and all(torch.equal(x, again.state_dict()[k]) for k, x in model.state_dict().items())
