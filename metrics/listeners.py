"""Networks that listen: CLAP, which hears sounds and reads texts, and taggers, which tell what a sound is of.

Both through transformers, from a local directory of its layout or a hub id; `None` gives a small stand-in without
weights. A sound is heard alone, so what is heard of it depends on no other.
"""

import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from hashlib import sha256
from math import floor
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from metrics.weights import DAMAGED, SHOWN, fill

SECONDS = 10  # of a sound that taggers and stand-ins hear at most, as the clips of AudioSet last
BANDS = 64  # of the stand-in
FLOOR = 1e-10  # power in a band that is called silence


class Listener(nn.Module):
    """Hears sounds. Built in eval mode; the caller runs it under inference_mode.

    Attributes:
        called: its name, for figures. sample_rate: Hz of what it hears. seconds: of a sound that it hears at most.
        digest: hash of weights and configuration; equal for networks that hear the same.
    """

    def __init__(self, called: str, sample_rate: int, seconds: int, digest: str):
        super().__init__()
        self.called, self.sample_rate, self.seconds, self.digest = called, sample_rate, seconds, digest

    def hear(self, wave: Tensor) -> Tensor:
        """Input of the network, on the CPU, from a mono wave (N,) in [-1, 1] at `sample_rate`, N at most `seconds`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """What is heard in one sound: (1, ...) from `hear` -> (1, d), an embedding or the logits of classes."""
        raise NotImplementedError

    def read(self, text: str) -> Tensor:
        """Embedding (d,) of a text, in the space of those of sounds; only of networks that read."""
        raise NotImplementedError


class Clap(Listener):
    """CLAP (Wu et al. 2023, arXiv 2211.06687) as transformers has it: embeddings of length 1.

    Longer texts than it can read are cut. The library would mark one sound of a batch as longer than it is, at random,
    and cut long ones at random; here a sound is no longer than the network hears, and never marked.
    """

    def __init__(self, source: str):
        from transformers import ClapModel, ClapProcessor  # seconds, which other measures do not need

        net, processor = _loaded("CLAP", source, "--clap", ClapModel, ClapProcessor, "clap")
        extractor, texts = processor.feature_extractor, net.config.text_config
        digest = _digest(net, net.config.to_dict(), extractor.to_dict(), {"words": processor.tokenizer.get_vocab()})
        super().__init__(f"CLAP {source}", extractor.sampling_rate, floor(extractor.max_length_s), digest)
        self.net, self.extractor, self.tokenizer = net, extractor, processor.tokenizer
        positions = texts.max_position_embeddings - (texts.pad_token_id or 0) - 1
        self.most = min(positions, self.tokenizer.model_max_length)

    def hear(self, wave: Tensor) -> Tensor:
        heard = self.extractor(wave.numpy(), sampling_rate=self.sample_rate, return_tensors="pt")
        return heard["input_features"][0].float()

    def forward(self, x: Tensor) -> Tensor:
        longer = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        return self.net.get_audio_features(x, is_longer=longer).pooler_output

    def read(self, text: str) -> Tensor:
        tokens = self.tokenizer([text], truncation=True, max_length=self.most, return_tensors="pt").to(self.net.device)
        found = self.net.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return found.pooler_output[0]


class Tagger(Listener):
    """Any audio classifier of transformers, as AST (Gong et al. 2021, arXiv 2104.01778): logits of its classes."""

    def __init__(self, source: str):
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        net, extractor = _loaded("tagger", source, "--tagger", AutoModelForAudioClassification, AutoFeatureExtractor)
        digest = _digest(net, net.config.to_dict(), extractor.to_dict())
        super().__init__(f"tagger {source}", extractor.sampling_rate, SECONDS, digest)
        self.net, self.extractor = net, extractor
        self.input = extractor.model_input_names[0]

    def hear(self, wave: Tensor) -> Tensor:
        heard = self.extractor(wave.numpy(), sampling_rate=self.sample_rate, return_tensors="pt")
        return heard[self.input][0].float()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(**{self.input: x}).logits


class StandIn(Listener):
    """How bands differ in loudness, and a layer of random numbers, in place of a network: it tells nothing.

    Args:
        called: whom it stands in for. width: d of what it gives.
    """

    def __init__(self, called: str, width: int):
        super().__init__(f"random stand-in for {called}", 16000, SECONDS, "")
        self.fc = nn.Linear(BANDS, width)
        fill(self)

    def hear(self, wave: Tensor) -> Tensor:
        power = torch.fft.rfft(wave.double()).abs().square() / len(wave)
        bands = torch.stack([band.mean() for band in power.tensor_split(BANDS)])  # from 0 to 8000 Hz
        loudness = (bands + FLOOR).log10().float()
        return 5 * (loudness - loudness.mean())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)

    def read(self, text: str) -> Tensor:
        """The sum of a random vector for each word, never 0."""
        words = ["", *re.findall(r"\w+", text.casefold())]
        draws = [np.random.RandomState(crc32(word.encode(errors="surrogatepass"))) for word in words]
        return torch.from_numpy(np.sum([draw.randn(self.fc.out_features) for draw in draws], axis=0)).float()


def load_clap(source: str | None) -> Listener:
    """CLAP from a directory or hub id; None gives the stand-in.

    Raises:
        FileNotFoundError: it cannot be had. ValueError: it is another network, or lacks weights.
    """
    return (StandIn("CLAP", 32) if source is None else Clap(source)).eval().requires_grad_(False)


def load_tagger(source: str | None) -> Listener:
    """A tagger from a directory or hub id; None gives the stand-in of 16 classes.

    Raises:
        FileNotFoundError: it cannot be had. ValueError: it is no audio classifier, or lacks weights.
    """
    return (StandIn("tagger", 16) if source is None else Tagger(source)).eval().requires_grad_(False)


def _loaded(what: str, source: str, flag: str, model: type, prepare: type, kind: str | None = None) -> tuple:
    """(network, what makes its input) of transformers, with all of its weights.

    kind: `model_type` that its configuration must have: the library would fill another network with random numbers.
    """
    from transformers import AutoConfig

    local = {"local_files_only": Path(source).is_dir()}
    remedy = f"give {flag} the directory or hub id of a {what} of transformers"
    with _quiet():
        config = _had(what, source, remedy, lambda: AutoConfig.from_pretrained(source, **local))
        if kind and config.model_type != kind:
            raise ValueError(f"{source} is a model of {config.model_type!r}, no {what}; {remedy}")
        maker = _had(what, source, remedy, lambda: prepare.from_pretrained(source, **local))
        how = {"dtype": torch.float32, "output_loading_info": True, **local}
        net, info = _had(what, source, remedy, lambda: model.from_pretrained(source, **how))
    learned = {name for name, _ in net.named_parameters()}
    if missing := sorted(learned & set(info["missing_keys"])):
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(f"{source} lacks {', '.join(missing[:SHOWN])}{more}, so it is no {what}; {remedy}")
    return net.eval(), maker


def _had(what: str, source: str, remedy: str, load: Callable):
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ImportError, SafetensorError, *DAMAGED) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise FileNotFoundError(f"{what} {source} cannot be loaded ({reason}); {remedy}") from None


@contextmanager
def _quiet():
    """Without the library's bars and tables of weights: what they tell is one sentence here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _digest(net: nn.Module, *settings: dict) -> str:
    """Hash of weights, and of what was set when they were trained; not of where they lie."""
    found = sha256()
    for name, x in sorted(net.state_dict().items()):
        found.update(name.encode())
        found.update(x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for one in settings:
        own = {key: value for key, value in one.items() if not key.startswith("_")}  # others are the library's notes
        found.update(json.dumps(own, sort_keys=True, default=str).encode())
    return found.hexdigest()
