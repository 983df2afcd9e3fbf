"""Figures of what is heard, on films whose answer is known: copies, other films' sounds, tones of few classes."""

import functools
import json
import math
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from data.av import read_audio, write_clip
from evaluation.features import RANDOM
from evaluation.listening import Clap, Tags
from evaluation.measures import measures
from evaluation.pairs import Sounding
from evaluation.setting import Setting
from evaluation.videos import find_videos
from tests.listeners import RATE, tiny_clap, tiny_tagger, tiny_wave_tagger

ALONE = SimpleNamespace(process_index=0, num_processes=1, wait_for_everyone=lambda: None)
FILMS, FRAMES = 6, 24
TEXTS = ["a red ball", "a blue ball"]


def film(path, i, frames=FRAMES, tone=None):
    """A still of its own with noise of its own, or a tone."""
    rng = torch.Generator().manual_seed(i)
    wave = 0.1 * torch.randn(frames * 1600, generator=rng) * torch.linspace(0.1, 1, frames * 1600)
    wave = wave if tone is None else 0.3 * torch.sin(torch.arange(frames * 1600) * tone * 2 * math.pi / 16000)
    write_clip(path, torch.full((frames, 16, 16, 3), 20 * i, dtype=torch.uint8), wave)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`real`; `same`: copies with prompts; `strange`: the same names, each with the sound of the next film."""
    root = tmp_path_factory.mktemp("films")
    for name in ("real", "strange"):
        (root / name).mkdir()
        for i in range(FILMS):
            film(root / name / f"{i}.mp4", (i + (name == "strange")) % FILMS)
    shutil.copytree(root / "real", root / "same")
    rows = ({"file": f"{i}.mp4", "prompt": TEXTS[i % 2]} for i in range(FILMS))
    (root / "same" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    root = tmp_path_factory.mktemp("listeners")
    return {Clap: str(tiny_clap(root / "clap")), Tags: str(tiny_tagger(root / "tagger"))}


def bar(**_):
    return nullcontext(SimpleNamespace(update=lambda: None))


looked = functools.cache(find_videos)  # a folder here is written once


def setting(fake, real, cache, networks=None, num=100):
    folders = [looked(path, "test", True) for path in (fake, real)]
    extractors = {kind: kind(networks and networks[kind]) for kind in (Clap, Tags)}
    return Setting(*folders, None, num, extractors, cache, ALONE, 4, 0, bar)


@pytest.fixture(scope="module")
def same(root, networks, tmp_path_factory):
    """Copies against the real films, by stand-ins and by networks of transformers."""
    cache = tmp_path_factory.mktemp("cache")
    return [setting(root / "same", root / "real", cache, which) for which in (None, networks)]


def measured(name, where):
    chosen = measures()[name]
    chosen.check(where)
    result = chosen.run(where)
    (figure,) = result.figures
    return figure, result.data.get(figure.name)


# -------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("trained", [False, True], ids=["stand-in", "transformers"])
def test_sounds_that_are_the_real_ones_are_told_from_those_of_other_films(root, networks, same, tmp_path, trained):
    same, strange = same[trained], setting(root / "strange", root / "real", tmp_path, networks if trained else None)
    for name, best, sign in (("clap-sound", 1, -1), ("kl", 0, 1)):
        equal, about = measured(name, same)
        other, _ = measured(name, strange)
        assert equal.value == pytest.approx(best, abs=1e-6) and equal.reference == best
        assert sign * (other.value - best) > 10 * abs(equal.value - best) + 1e-6, name
        assert other.low < other.value < other.high and (other.fake, other.real) == (FILMS, FILMS)
        assert sign * (about["chance"] - best) > 0 and len(about["pairs"]) == FILMS
        assert all(pair["video"][-5:] == pair["with"][-5:] for pair in about["pairs"])


def test_clap_score_is_the_mean_cosine_of_the_very_sounds_and_texts(root, same):
    where = same[True]
    figure, about = measured("clap", where)
    net = where.extractors[Clap].net
    sounds = [read_audio(root / "same" / f"{i}.mp4", 0, 2 * RATE, RATE) for i in range(FILMS)]  # it hears 2 of 2.4 s
    cosines = [(net(net.hear(wave)[None])[0] @ net.read(TEXTS[i % 2])).item() for i, wave in enumerate(sounds)]
    assert figure.value == pytest.approx(sum(cosines) / FILMS, abs=1e-6)
    assert figure.fake == FILMS and figure.reference is None and figure.low < figure.value < figure.high
    assert [pair["with"] for pair in about["pairs"]] == [TEXTS[i % 2] for i in range(FILMS)]


def test_clap_score_of_real_videos_with_captions_stands_beside_it(root, tmp_path):
    real = shutil.copytree(root / "real", tmp_path / "real")
    for i in range(FILMS):
        (real / f"{i}.txt").write_text(TEXTS[i % 2])
    figure, _ = measured("clap", setting(root / "same", real, tmp_path / "cache"))
    assert figure.reference == pytest.approx(figure.value, abs=1e-6) and figure.real == FILMS
    assert figure.reference_is == "real videos with their captions"
    (real / "metadata.jsonl").write_text("{")
    with pytest.raises(ValueError, match="line 1 is no JSON object"):
        measures()["clap"].check(setting(root / "same", real, tmp_path / "cache"))


def test_inception_score_is_higher_for_tones_than_for_one_noise_and_needs_4_sounds(root, tmp_path):
    for name, tones in (("tones", (300, 1000, 3000, 7000)), ("noise", (None,) * 4)):
        (tmp_path / name).mkdir()
        for i, tone in enumerate(tones):
            film(tmp_path / name / f"{i}.mp4", i, 16, tone)
    figure, _ = measured("inception", setting(tmp_path / "tones", tmp_path / "noise", tmp_path / "cache"))
    assert 1 <= figure.reference < figure.value and figure.low < figure.value < figure.high
    assert (figure.fake, figure.real, figure.reference_is) == (4, 4, "4 real sounds")
    with pytest.raises(ValueError, match="gives 3 videos, and an inception score needs 4; give more, or a --num of"):
        measured("inception", setting(tmp_path / "tones", root / "real", tmp_path / "cache", num=3))


def test_longer_real_sounds_are_heard_as_long_as_the_generated_ones(root, tmp_path):
    (tmp_path / "short").mkdir()
    for i in range(FILMS):
        film(tmp_path / "short" / f"{i}.mp4", i, 16)
    where = setting(tmp_path / "short", root / "real", tmp_path / "cache")
    figure, _ = measured("clap-sound", where)
    extractor, found = where.extractors[Clap], where.extracted["real in pairs clap"].features
    for video, row in zip(where.real.videos, found):
        assert (extractor.embed(extractor.read(Sounding(video, 16))[None])[0] - row).abs().max() < 1e-5
    assert "both as long as the shorter" in figure.protocol


# ------------------------------------------------------------------------------------------------------ names and cache


def test_every_figure_names_its_network_and_says_where_it_has_no_weights(networks, same):
    for name, kind in (("clap", Clap), ("clap-sound", Clap), ("kl", Tags), ("inception", Tags)):
        random, trained = (measured(name, where)[0] for where in same)
        assert "random stand-in for" in random.protocol and RANDOM in random.note and RANDOM not in trained.note
        assert networks[kind] in trained.protocol and networks[kind] in trained.note
        assert f"at {RATE} Hz" in trained.protocol and "at 16000 Hz" in random.protocol


def test_sounds_and_texts_are_computed_once_and_anew_for_another_network(root, networks, tmp_path):
    where = setting(root / "same", root / "real", tmp_path, networks)
    measured("clap", where)
    assert len(list(tmp_path.rglob("*.npz"))) == FILMS + len(TEXTS)
    again = setting(root / "same", root / "real", tmp_path, networks)
    again.extractors[Clap].net.read = again.extractors[Clap].net.hear = None
    measured("clap", again)
    assert again.extracted["fake with text clap"].cached == FILMS
    measured("clap", setting(root / "same", root / "real", tmp_path))
    assert len(list(tmp_path.rglob("*.npz"))) == 2 * (FILMS + len(TEXTS))


def test_tagger_that_takes_waves_hears_sounds_of_any_length_each_by_itself(root, tmp_path):
    """Inputs differ in size here, as they do not of networks that pad a spectrogram."""
    (tmp_path / "films").mkdir()
    for i in range(4):
        film(tmp_path / "films" / f"{i}.mp4", i, 16 + i)
    networks = {Clap: None, Tags: str(tiny_wave_tagger(tmp_path / "waves"))}
    where = setting(tmp_path / "films", root / "real", tmp_path / "cache", networks)
    figure, _ = measured("inception", where)
    extractor, video = where.extractors[Tags], where.fake.videos[3]
    alone = extractor.embed(extractor.read(Sounding(video, 19))[None])[0]
    assert figure.fake == 4 and (where.extracted["fake sounds tagger"].features[3] - alone).abs().max() < 1e-5


def test_sound_is_resampled_to_the_rate_of_the_network(same):
    where = same[True]
    extractor, video = where.extractors[Tags], where.fake.videos[0]
    assert video.path.name == "0.mp4" and RATE != 16000
    expected = extractor.net.hear(read_audio(video.path, 0, RATE * FRAMES // 10, RATE))
    assert extractor.read(Sounding(video, FRAMES)).equal(expected)
