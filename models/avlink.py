"""AV-Link (arXiv 2412.15191): a generator of pictures and one of sound, both frozen, and a link between their layers.

dv, da = model(v, a, t, t_a=t_a)                        # both, linked
_, da = model(v, a, t, t_a=t_a, given="picture")        # V2A: the given side is shown at a fixed time
_, da = model(None, a, t, alone="sound")                # the frozen tower, for half the cost
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.checkpoint import Pretrained, fingerprint
from models.fusion import CONDITIONING_TIMES, check_conditioning_times
from models.layers import begin_linears, compile_each, displacement, run
from models.link import LINKS, SIDES, TimesEmbed
from models.picture_source import SOURCES
from models.text import NULL_TEXT, Text
from models.towers import AXES, Passage, PictureTower, SoundTower, Tower

TOWERS = {"video": "picture", "audio": "sound"}  # stage of training -> the side whose tower learns in it, alone
TOLD = {"v2a": ("sound",), "a2v": ("picture",), "link": SIDES}  # -> the sides that the link learns to make
STAGES = (*TOWERS, *TOLD)
TRAINING = {"lr": 3e-4, "warmup_steps": 10_000, "beta2": 0.99, "weight_decay": 0.01, "pairing": 0}


class AVLink(
    nn.Module,
    Pretrained,
    paper_url="https://arxiv.org/abs/2412.15191",
    tags=["video-to-audio", "audio-to-video", "flow-matching"],
):
    """Velocities of a clip's picture and sound, each at a flow time of its own, from optional texts.

    Two towers that know nothing of each other, and a link after some of their layers, which changes nothing
    while it is fresh. The same weights run at any size of picture and any length.

    Args:
        in_channels, patch_size: of pictures. audio_channels: M of sound tokens, of which `audio_patch` that follow each
            other are one inside. text_width: of text tokens; 0 or None for towers without text.
        hidden_size, depth, num_heads: of both towers.
        video_rate, audio_rate: frames and sound tokens per second, by which their times agree.
        link: kind of its blocks, a key of `models.link.LINKS`. link_size, link_heads: of them.
        placement: layers after which there is a block, from 1 on; every third from the first if None, and none at all,
            so that nothing passes, if empty.
        link_rate: positions of a second on the link's time axis, the paper's being frames. offset: where in its time a
            token stands, 0 at its beginning, 0.5 in its middle.
        reinject: whether a given side hears the one that is made, too.
        conditioning_times: flow times of a given picture and of a given sound, at which the link was trained; the
            paper's if None.
        source: where what a picture shows to the link comes from, a key of `models.picture_source.SOURCES`: its tower,
            or a network, which makes the sound for given pictures alone, without reinjection.
        grad_ckpt: recompute each layer and block in the backward pass.
        prediction: "velocity", or "data" for networks that predict clean clips (better at tiny widths).
    """

    _no_split_modules = ("Layer", "FusionBlock")  # of which FSDP makes units
    system, rolls, frames, sampling = "av-link", False, 31, "logit"
    num_timesteps, cfg_scale, takes, methods, needs_text = 64, 5.0, SIDES, ("held",), False
    stages, towers, links, training = STAGES, TOWERS, TOLD, TRAINING
    stages_from_weights = stages_holding = tuple(TOLD)
    of_towers = ("hidden_size", "depth", "num_heads", "patch_size", "audio_patch", "prediction")
    of_data = ("in_channels", "audio_channels", "text_width", "video_rate", "audio_rate")
    of_linked = tuple(f"{side}_sha256" for side in SIDES)
    num_classes, conditional, has_null_label, null_label = 0, True, True, NULL_TEXT

    def __init__(
        self,
        in_channels: int = 3,
        patch_size: int = 2,
        audio_channels: int = 128,
        audio_patch: int = 1,
        text_width: int | None = 4096,
        hidden_size: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        video_rate: float = 6.0,
        audio_rate: float = 25.0,
        link: str = "fusion",
        link_size: int = 1024,
        link_heads: int = 16,
        placement: list | None = None,
        link_rate: float = 6.0,
        offset: float = 0.0,
        reinject: bool = True,
        conditioning_times: list[float] | None = None,
        source: str = "tower",
        grad_ckpt: bool = False,
        prediction: str = "velocity",
    ):
        super().__init__()
        self.placement = placed(placement, depth)
        known = {"link": (link, LINKS), "prediction": (prediction, ("velocity", "data")), "source": (source, SOURCES)}
        for name, (value, choices) in known.items():
            if value not in choices:
                raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")
        if SOURCES[source] and reinject:
            raise ValueError(f"a picture shown by a {source} hears nothing of the sound; give reinject=False")
        if hidden_size // num_heads // 2 < AXES:
            raise ValueError(f"{num_heads} heads of hidden size {hidden_size} are too narrow for positions along "
                             f"{AXES} axes; choose heads of at least {2 * AXES}")  # fmt: skip
        self.conditioning_times = list(conditioning_times or CONDITIONING_TIMES)
        check_conditioning_times(self.conditioning_times)
        sizes = (hidden_size, depth, num_heads, text_width or 0)
        self.in_channels, self.patch_size = in_channels, patch_size
        self.audio_channels, self.audio_patch, self.text_width = audio_channels, audio_patch, text_width or 0
        self.video_rate, self.audio_rate, self.link_rate, self.offset = video_rate, audio_rate, link_rate, offset
        self.reinject, self.grad_ckpt, self.prediction = reinject, grad_ckpt, prediction
        self.picture = PictureTower(in_channels, patch_size, *sizes)
        self.sound = SoundTower(audio_channels, audio_patch, *sizes)
        self.source = SOURCES[source](in_channels, patch_size, hidden_size) if SOURCES[source] else None
        self.takes = ("picture",) if self.source else SIDES
        blocks = {str(i): LINKS[link]((hidden_size, hidden_size), link_size, link_heads) for i in self.placement}
        self.link = nn.ModuleDict({"times": TimesEmbed(link_size), "blocks": nn.ModuleDict(blocks)})
        self._no_split_modules = ("Layer", *{LINKS[link].__name__ for _ in blocks})  # each must be there
        self.initialise()

    @classmethod
    def least_weights(cls, config: Mapping) -> tuple[int, int]:
        D, depth = config["hidden_size"], config["depth"]
        rows = (config["patch_size"] ** 2 * config["in_channels"], config["audio_channels"], config["text_width"] or 0)
        return D * max(*rows, D * depth), depth

    def initialise(self) -> None:
        """DiT's start: Xavier linears; zero are modulations, the text's way in, the outputs, and what a block gives."""
        begin_linears(self, zero=(".adaln", "text_attn.proj", "head.linear"))
        for gate in self._gates():
            nn.init.zeros_(gate.weight)
        if self.source:
            self.source.draw()

    def forward(
        self,
        v: Tensor | None,
        a: Tensor | None,
        t: Tensor,
        y: Tensor | None = None,
        t_a: Tensor | None = None,
        y_a: Tensor | None = None,
        text: Text | None = None,
        text_a: Text | None = None,
        given: str | None = None,
        alone: str | None = None,
        bypass: Tensor | None = None,
        features: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocities dv, da (data minus noise) of the noised clip v, a; None of a side that is not made.

        Args:
            v: (B,T,C,H,W), H and W any multiples of the patch. a: (B,N,M), N any multiple of theirs; T of any length.
                A side that is not looked at may be None. t: (B,) flow time, 0 noise, 1 data; t_a: of the sound where it
                differs. y, y_a: None, it has no classes. text: of each clip; None, or a row without tokens, is the null
                text; text_a: of the sound where it differs.
            given: "picture" or "sound", the side that the other is made for; None to make both.
            alone: the side that its tower makes by itself. The other tower does not run.
            bypass: (B,2) bool, clips whose picture, and whose sound, hears nothing of the other.
            features: of the given side, as `given_features` made them of the same v and t, or a and t_a.
        Raises:
            ValueError: a shape that does not fit this model, or sides that contradict each other.
        """
        t_a, text_a = t if t_a is None else t_a, text if text_a is None else text_a
        inputs = {"picture": (v, t, text), "sound": (a, t_a, text_a)}
        made = self._made(given, alone, features)
        looked_at = made if alone or features is not None else SIDES
        self._check({side: inputs[side] for side in looked_at})
        if self.source and not alone and features is None:
            features, looked_at = self._shown_by_source(v), made
        on = {side: self._tower(side).begin(*inputs[side]) for side in looked_at}
        shown = None if features is None else (given or "picture", features)
        on = self._run_alone(alone, on) if alone else self._run_linked(on, t, t_a, made, bypass, shown)
        velocities = {side: self._tower(side).end(on[side], inputs[side][0]) for side in made}
        if self.prediction == "data":
            velocities = {side: displacement(clean, *inputs[side][:2]) for side, clean in velocities.items()}
        return tuple(velocities.get(side) for side in SIDES)

    def given_features(self, given: str, x: Tensor, t: Tensor, text: Text | None = None) -> list[Tensor]:
        """What a given side shows to each block, (B,T,L,D) each: the same at all steps, for `forward`'s `features`.

        Of a picture that a network shows, that of the network; its tower does not run.

        Args:
            given: "picture" or "sound". x: of it, at time t (B,). text: of it.
        Raises:
            ValueError: the model reinjects, so what it shows depends on what is made for it, or takes no such side.
        """
        self._made(given, None, None)
        if self.reinject:
            raise ValueError("this model tells the given side of the one that is made, so its features change at every "
                             "step; train one with --variant no-reinject")  # fmt: skip
        self._check({given: (x, t, text)})
        if self.source:
            return self._shown_by_source(x)
        on, shown = self._tower(given).begin(x, t, text), []
        for i in range(1, max(self.placement, default=0) + 1):
            on = self._layer(given, i, on)
            shown += [on.x] if i in self.placement else []
        return shown

    def _shown_by_source(self, v: Tensor) -> list[Tensor]:
        """What the network shows of a picture to each block: the same."""
        return [self.source(v)] * len(self.placement)

    def _run_alone(self, side: str, on: dict[str, Passage]) -> dict[str, Passage]:
        passage = on[side]
        for i in range(1, len(self._tower(side).layers) + 1):
            passage = self._layer(side, i, passage)
        return {side: passage}

    def _run_linked(
        self,
        on: dict[str, Passage],
        t: Tensor,
        t_a: Tensor,
        made: Sequence[str],
        bypass: Tensor | None,
        shown: tuple[str, Sequence[Tensor]] | None,
    ) -> dict[str, Passage]:
        """Both towers, of which the given one ends after the last block, or does not run if its features are there.

        shown: a side, and what it shows to each block in the place of its tower's tokens.
        """
        c, last = self.link["times"](t, t_a), max(self.placement, default=0)
        made_told = tuple(side for side in made if not (self.source and side == "picture"))
        told, (side_shown, features) = SIDES if self.reinject else made_told, shown or (None, ())
        features = iter(features)
        for i in range(1, len(self.picture.layers) + 1):
            on |= {side: self._layer(side, i, on[side]) for side in on if side in made or i <= last}
            if i in self.placement:
                instead = {side_shown: next(features)} if side_shown else {}
                on |= self._link(i, on, c, made_told if i == last else told, bypass, instead)
        return on

    def _link(
        self,
        i: int,
        on: dict[str, Passage],
        c: Tensor,
        told: Sequence[str],
        bypass: Tensor | None,
        instead: Mapping[str, Tensor],
    ) -> dict[str, Passage]:
        """The sides that are told by the block after layer i, where nothing is bypassed.

        instead: what a side shows in the place of its tower's tokens.
        """
        frames = [instead[side] if side in instead else on[side].x for side in SIDES]
        rates = self.video_rate, self.audio_rate / self.audio_patch
        at = [self.link_positions(x.shape[1], rate, x.device) for x, rate in zip(frames, rates)]
        updates = run(self.grad_ckpt, self.link["blocks"][str(i)], *frames, c, *at, told)
        heard = {side: on[side].x + update for side, update in zip(SIDES, updates) if update is not None}
        if bypass is not None:
            deaf = dict(zip(SIDES, bypass.unbind(1)))
            heard = {side: torch.where(deaf[side][:, None, None, None], on[side].x, x) for side, x in heard.items()}
        return {side: replace(on[side], x=x) for side, x in heard.items()}

    def link_positions(self, frames: int, rate: float, device: torch.device | None = None) -> Tensor:
        """Where frames stand on the link's time axis, (frames,): `link_rate` times their second (Eq. 4).

        rate: of them per second.
        """
        return (torch.arange(frames, device=device) + self.offset) / rate * self.link_rate

    def _tower(self, side: str) -> Tower:
        return getattr(self, side)

    def _layer(self, side: str, i: int, on: Passage) -> Passage:
        """A side after layer i of its tower, from 1 on."""
        return replace(on, x=run(self.grad_ckpt, self._tower(side).layers[i - 1], on.x, on.c, on.text, on.at))

    def _made(self, given: str | None, alone: str | None, features: Sequence[Tensor] | None) -> tuple[str, ...]:
        """The sides that are made."""
        wrong = [x for x in (given, alone) if x not in (None, *SIDES)]
        if wrong or (given and alone) or (features is not None and (not given or self.reinject)):
            told = f"given {given!r}, alone {alone!r}" + " with features" * (features is not None)
            raise ValueError(f"{told} cannot be; name one side, {' or '.join(SIDES)}, and give features of a "
                             "given one where nothing is reinjected")  # fmt: skip
        if given and given not in self.takes:
            raise ValueError(f"given {given!r} is not for this model, which hears of pictures by a network, and makes "
                             "the sound for them alone; give a picture, or leave --variant network out")  # fmt: skip
        return (alone,) if alone else tuple(side for side in SIDES if side != given)

    def _check(self, inputs: Mapping[str, tuple[Tensor, Tensor, Text | None]]) -> None:
        """Raise a ValueError if sides do not fit the model, or each other."""
        for side, (x, t, _) in inputs.items():
            if x is None:
                raise ValueError(f"there is no {side}, which this call looks at; give it")
            self._tower(side).check(x)
            clips = {len(other) for other, *_ in inputs.values()}
            if t.shape != (len(x),) or len(clips) > 1:
                raise ValueError(f"{side} {tuple(x.shape)} with t {tuple(t.shape)} does not fit; this model takes "
                                 "t (B,), a time for each clip, and as many clips of either side")  # fmt: skip

    def compile_blocks(self) -> None:
        """Compile the layers, one after the other from the same code: slow first calls, then faster ones."""
        compile_each((*self.picture.layers, *self.sound.layers, *self.link["blocks"].values()))

    @property
    def untrained(self) -> list[str]:
        """Sides whose tower has learnt nothing: its output is zero, as at the start."""
        return [side for side in SIDES if not self._tower(side).head.linear.weight.any()]

    @classmethod
    def trained_in(cls, folder: Path) -> list[str]:
        """Sides whose tower in a checkpoint is not `untrained`, without reading the rest of it."""
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            heads = {side: f"{side}.head.linear.weight" for side in SIDES}
            return [side for side in SIDES if heads[side] in file.keys() and file.get_tensor(heads[side]).any()]  # noqa: SIM118

    @classmethod
    def check_stage(cls, stage: str, source: str = "tower", **_) -> None:
        super().check_stage(stage)
        if SOURCES.get(source) and "picture" in TOLD.get(stage, ()):
            raise ValueError(f"stage {stage} tells the picture of the sound, and one that is shown by a {source} hears "
                             "nothing; take stage v2a, or leave --variant network out")  # fmt: skip

    def _gates(self) -> list[nn.Linear]:
        return [gate for block in self.link["blocks"].values() for gate in block.gates]

    def tower_hashes(self) -> dict[str, str]:
        """SHA-256 of both towers' weights, by the names of `of_linked`."""
        return {name: fingerprint(self._tower(side)) for name, side in zip(self.of_linked, SIDES)}

    def recorded(self) -> dict[str, str]:
        """Of a link that has learnt something, the towers it belongs to."""
        return self.tower_hashes() if any(gate.weight.any() for gate in self._gates()) else {}

    def check_recorded(self, config: Mapping, folder: Path) -> None:
        here = self.recorded()
        for name, there in ((name, config.get(name, here[name])) for name in here):
            if there != here[name]:
                raise ValueError(f"the link in {folder} was trained between other towers ({name} {there!s:.12}) than "
                                 f"lie beside it ({here[name]:.12}); take config.json and model.safetensors from the "
                                 "same checkpoint")  # fmt: skip

    def set_stage(self, stage: str) -> int:
        """Let a tower learn, or what of the link serves to make the sides of a stage; how many numbers learn.

        Raises:
            ValueError: there is no such stage, or nothing learns in it.
        """
        self.check_stage(stage, **self._hub_mixin_config)
        self.requires_grad_(False)
        if stage in TOWERS:
            self._tower(TOWERS[stage]).requires_grad_(True)
        else:
            self._let_link_learn(TOLD[stage])
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def _let_link_learn(self, made: Sequence[str]) -> None:
        if not self.placement:
            raise ValueError("this model has no link to train; give it a placement")
        told = SIDES if self.reinject else made
        for i in self.placement:
            block = self.link["blocks"][str(i)]
            for part in block.parts(made if i == max(self.placement) else told):
                part.requires_grad_(True)
        self.link["times"].requires_grad_(block.timed)


def placed(placement: Sequence[int] | None, depth: int) -> list[int]:
    """Layers after which there is a block, in order: every third from the first if None (1, 4, ..., 22 of 24).

    Raises:
        ValueError: there is no such layer.
    """
    layers = range(1, depth + 1)
    placement = list(layers[::3]) if placement is None else placement
    if strange := [i for i in placement if i not in layers]:
        raise ValueError(f"placement {strange} is after no layer of {depth}; choose 1 to {depth}")
    return sorted({int(i) for i in placement})


AVLink_presets = {
    "AVLink-L": dict(hidden_size=1024, depth=24, num_heads=16, patch_size=2),
    "AVLink-tiny": dict(
        hidden_size=128, depth=4, num_heads=4, patch_size=8, audio_patch=5, link_size=128, link_heads=4,
        placement=[1, 2, 3], link_rate=50.0, prediction="data",
    ),
}  # fmt: skip
AVLink.presets = AVLink_presets
AVLink.variants = {
    "no-reinject": dict(reinject=False),
    "symcross": dict(link="symcross"),
    "direct": dict(link="direct"),
    "network": dict(source="network", reinject=False),
    **{f"after-{i}": dict(placement=[i]) for i in (1, 2, 3, 11, 22)},
}
