"""CLAP and taggers as transformers runs them, what they must not depend on, and what is refused in a sentence."""

import json
import shutil
from logging import getLogger
from logging.handlers import MemoryHandler

import pytest
import torch

from metrics.listeners import load_clap, load_tagger
from tests.closeness import assert_close_by_size
from tests.listeners import POSITIONS, RATE, tiny_clap, tiny_tagger


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("listeners")
    tiny_clap(root / "clap")
    tiny_clap(root / "fused", fused=True)
    tiny_tagger(root / "tagger")
    tiny_tagger(root / "headless", head=False)
    (root / "empty").mkdir()
    return root


def noise(seconds, rate=RATE, seed=0):
    return 0.1 * torch.randn(int(seconds * rate), generator=torch.Generator().manual_seed(seed))


def heard(listener, wave):
    return listener(listener.hear(wave)[None])[0]


# ----------------------------------------------------------------------------------------------------------------- CLAP


def test_clap_gives_what_transformers_gives_for_a_sound_and_a_text(folders):
    from transformers import ClapModel, ClapProcessor

    ours = load_clap(str(folders / "clap"))
    theirs, processor = (of.from_pretrained(folders / "clap") for of in (ClapModel, ClapProcessor))
    wave, text = noise(1.5), "a red ball"
    inputs = processor(text=[text], audio=[wave.numpy()], sampling_rate=RATE, return_tensors="pt")
    found = theirs.eval()(**inputs)
    assert_close_by_size(heard(ours, wave), found.audio_embeds[0].detach())
    assert_close_by_size(ours.read(text), found.text_embeds[0].detach())
    assert (ours.sample_rate, ours.seconds, ours.called) == (RATE, 2, f"CLAP {folders / 'clap'}")


def test_fused_clap_hears_a_sound_as_no_longer_than_it_is(folders):
    """The library calls one sound of a batch longer, drawn at random; alone it would be each."""
    ours, wave = load_clap(str(folders / "fused")), noise(1.5)
    x = ours.hear(wave)
    longer = ours.net.get_audio_features(x[None], is_longer=torch.ones(1, 1, dtype=torch.bool)).pooler_output[0]
    assert x.shape[0] == 4 and (heard(ours, wave) - longer).abs().max() > 1e-3


def test_text_longer_than_clap_can_read_is_cut(folders):
    ours = load_clap(str(folders / "clap"))
    long = ours.read("red " * 500)
    assert long.isfinite().all() and ours.most == POSITIONS - 2 and long.equal(ours.read("red " * (ours.most - 2)))
    assert not long.equal(ours.read("red " * (ours.most - 3)))


# -------------------------------------------------------------------------------------------------------------- taggers


def test_tagger_gives_the_logits_of_transformers_at_its_own_rate(folders):
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

    ours, wave = load_tagger(str(folders / "tagger")), noise(1.0)
    theirs = ASTForAudioClassification.from_pretrained(folders / "tagger").eval()
    inputs = ASTFeatureExtractor.from_pretrained(folders / "tagger")(wave.numpy(), RATE, return_tensors="pt")
    assert_close_by_size(heard(ours, wave), theirs(**inputs).logits[0].detach())
    assert (ours.sample_rate, ours.called) == (RATE, f"tagger {folders / 'tagger'}") and len(heard(ours, wave)) == 5


def test_digest_is_of_weights_and_configuration_and_not_of_the_directory(folders, tmp_path):
    """Features are kept by it."""
    digest = load_tagger(str(folders / "tagger")).digest
    moved = shutil.copytree(folders / "tagger", tmp_path / "moved")
    assert load_tagger(str(moved)).digest == digest
    config = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps(config | {"mean": -4.0}))
    louder = load_tagger(str(moved)).digest
    net = load_tagger(str(folders / "tagger")).net
    with torch.no_grad():
        net.classifier.dense.bias[0] += 1e-3
    net.save_pretrained(tmp_path / "trained")
    shutil.copy(folders / "tagger" / "preprocessor_config.json", tmp_path / "trained")
    assert len({digest, louder, load_tagger(str(tmp_path / "trained")).digest}) == 3


def test_digest_of_clap_is_of_its_words_too(folders, tmp_path):
    """Which number a word has decides what is read."""
    words = shutil.copytree(folders / "clap", tmp_path / "words") / "tokenizer.json"
    before = load_clap(str(words.parent)).digest
    text = words.read_text().replace('"red"', '"?"').replace('"blue"', '"red"').replace('"?"', '"blue"')
    words.write_text(text)
    assert before == load_clap(str(folders / "clap")).digest != load_clap(str(words.parent)).digest


# ------------------------------------------------------------------------------------------------------------ stand-ins


def test_stand_in_is_the_same_everywhere_and_tells_sounds_and_texts_apart():
    one, two, tagger = load_clap(None), load_clap(None), load_tagger(None)
    rate, tone = one.sample_rate, torch.sin(torch.arange(16000) / 5)
    for listener in (one, tagger):
        assert listener.called.startswith("random stand-in for") and rate == 16000
        assert (heard(listener, tone) - heard(listener, noise(1, rate))).abs().max() > 0.1
        assert heard(listener, torch.zeros(rate)).isfinite().all()
    assert heard(one, tone).equal(heard(two, tone)) and one.read("a red ball").equal(two.read("Red ball, a"))
    assert not one.read("red").equal(one.read("blue")) and one.read("").norm() > 0
    assert len(heard(one, tone)) == len(one.read("red"))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("load", "source", "said"),
    [
        (
            load_clap,
            "nowhere",
            r"CLAP \S*nowhere cannot be loaded \(.*\); give --clap the directory or hub id of a CLAP",
        ),
        (load_clap, "empty", r"CLAP \S*empty cannot be loaded \(.*\); give --clap"),
        (load_tagger, "empty", r"tagger \S*empty cannot be loaded \(.*\); give --tagger the directory or hub id of a"),
        (load_clap, "tagger", "tagger is a model of 'audio-spectrogram-transformer', no CLAP; give --clap"),
        (load_tagger, "clap", r"tagger \S*clap cannot be loaded \(Unrecognized configuration .*\); give --tagger"),
        (load_tagger, "headless", "headless lacks classifier.dense.bias, .* and 1 more, so it is no tagger; give"),
    ],
)
def test_what_is_no_such_network_is_refused_with_the_remedy(folders, capfd, monkeypatch, load, source, said):
    """The library would give a network without weights random numbers, and a table of them."""
    log = MemoryHandler(99)
    monkeypatch.setattr(getLogger("transformers"), "handlers", [log])
    capfd.readouterr()
    with pytest.raises((FileNotFoundError, ValueError), match=said) as refused:
        load(str(folders / source))
    assert "\n" not in str(refused.value) and capfd.readouterr().err == "" and not log.buffer


def test_hub_id_that_cannot_be_had_and_damaged_weights_are_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CLAP nobody/nothing cannot be loaded \(.*\); give --clap"):
        load_clap("nobody/nothing")
    damaged = shutil.copytree(folders / "tagger", tmp_path / "damaged")
    weights = (damaged / "model.safetensors").read_bytes()
    for spoilt in (weights[:100], weights[: len(weights) // 2], b"", b"\xff" * 200):
        (damaged / "model.safetensors").write_bytes(spoilt)
        with pytest.raises(FileNotFoundError, match=r"tagger \S*damaged cannot be loaded \(.*\); give --tagger"):
            load_tagger(str(damaged))
