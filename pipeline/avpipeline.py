"""AVPipeline: a model with its codecs, which samples clips and streams without end."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from diffusion.guidance import Guidance, class_guided
from diffusion.memory import Memory, remembered
from diffusion.pace import check_pace, pace
from diffusion.rolling import Window, roll, start
from diffusion.solvers import solved_by
from models import FLAV, TabledFLAV, load_model
from models.checkpoint import Pretrained
from models.text import TextEncoder, load_text_encoder
from pipeline.adapter import load_adapter
from pipeline.avcodec import AVCodec
from pipeline.clips import ClipPipeline, Clips
from pipeline.dtypes import name_of, natural_dtype
from pipeline.graphed import CUDAGraphs, Graphed
from pipeline.linked import LinkedPipeline
from pipeline.overlap import steps_of
from pipeline.prompts import Prompts, is_texts
from pipeline.spec import AVSpec, fetch_checkpoint, released_spec
from pipeline.state import Past, StreamState
from pipeline.streams import Chunk, Streams
from pipeline.whole import replaced_folder

Label = Tensor | int | str | Sequence[str] | None  # a class, or a text; of all, or of each


class AVPipeline:
    """A model with its codecs: samples clips, streams without end.

    Args:
        skip: leave out frames that cannot matter; exact, and only for causal models.
        tables: compute what depends on time and label alone once; exact up to rounding.
        graphs: on CUDA, replay calls of the model as CUDA graphs; those without tables run as ever.
    """

    def __init__(
        self,
        model: FLAV,
        codec: AVCodec,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        skip: bool = True,
        tables: bool = True,
        graphs: bool = False,
    ):
        self.skip, self.tables, self._tabled, self._sent = skip and model.causal_attn, tables, {}, None
        self.model = model.to(device, dtype).eval().requires_grad_(False)
        self.codec = codec.to(device)
        self.spec, self.device, self.dtype = codec.spec, torch.device(device), dtype
        on_gpu = graphs and self.device.type == "cuda"
        self._forward = Graphed(self.model, CUDAGraphs(self.device)) if on_gpu else self.model
        self.prompts = Prompts(self._text_encoder, model.text_width)
        video, audio = model.frame_shapes
        factor = codec.frames.factor
        if video[0] != codec.frames.channels or video[1] * factor != self.spec.image_size:
            raise ValueError(
                f"the model makes latents {video}, codec {self.spec.codec} turns {self.spec.image_size} px into "
                f"{(codec.frames.channels, self.spec.image_size // factor, self.spec.image_size // factor)}; "
                "take the codec and the image size the model was trained with"
            )
        if audio != (self.spec.mel_per_frame, self.spec.n_mels):
            raise ValueError(
                f"the model makes mel frames {audio}, pipeline.json says "
                f"{(self.spec.mel_per_frame, self.spec.n_mels)}; one of the files belongs to another checkpoint"
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = torch.float32,
        audio_scale: float | None = None,
        codec_source: str | None = None,
        vocoder: str | None = None,
        text_source: str | None = None,
        adapter: str | Path | None = None,
        channels: str | None = None,
        sound_source: str | None = None,
        **speed,
    ) -> "AVPipeline | ClipPipeline":
        """A checkpoint that train.py exported, or a released one, from a folder or the hub.

        That of a model of whole clips becomes a ClipPipeline.

        Args:
            dtype: None for the `natural_dtype` of model and device.
            audio_scale: of a released checkpoint, which does not store it; known for the two of the paper.
            codec_source: where the frame codec's weights are, if not where the checkpoint says.
            vocoder: "griffin-lim" to do without the trained vocoder of a checkpoint.
            text_source: where the text encoder's weights are, if not where the checkpoint says.
            adapter: folder of a LoRA adapter that train.py --lora-rank left, trained on this checkpoint.
            channels: "mean" or "first", how sound that is given becomes mono, if not as in training.
            sound_source: where the weights of the codec of sound are, if not where the checkpoint says.
            speed: skip, tables, graphs, as of the class; whole clips have nothing to skip.
        Raises:
            FileNotFoundError, ValueError: something is missing or contradicts the checkpoint, in one sentence.
        """
        folder = fetch_checkpoint(str(source))
        model = load_model(folder)
        if adapter:
            load_adapter(model, Path(adapter))
        stored = (folder / "pipeline.json").is_file()
        spec = AVSpec.load(folder) if stored else released_spec(model, str(source), audio_scale)
        if audio_scale is not None and audio_scale != spec.audio_scale:
            raise ValueError(f"audio scale {audio_scale} contradicts the checkpoint's {spec.audio_scale}; leave it out")
        overrides = {"codec_source": codec_source, "vocoder": vocoder, "text_source": text_source, "channels": channels,
                     "sound_source": sound_source}  # fmt: skip
        spec = replace(spec, **{key: value for key, value in overrides.items() if value})
        return pipeline_of(model, AVCodec.load(folder, spec), device, dtype, **speed)

    def save(self, folder: Path) -> None:
        """Write a self-describing checkpoint folder, complete or not at all."""
        with replaced_folder(folder) as part:
            self.model.save_pretrained(part)
            self.codec.save(part)

    def _text_encoder(self) -> TextEncoder:
        if not self.spec.text_encoder:
            raise ValueError("this model was trained without text, so it takes no prompt; leave it out")
        return load_text_encoder(self.spec.text_encoder, self.spec.text_source).to(self.device)

    def label(self, y: Label) -> Tensor | None:
        """Labels as the sampler takes them: of classes, or of texts, which are encoded here.

        None becomes the null label of a model with classes or text, and so does a text without a word.
        """
        if is_texts(y) or self.model.text_width:
            return self.prompts.labels(y)
        if not self.model.num_classes:
            if y is not None:
                raise ValueError(f"y is {y}, but this model has no classes; leave it out")
            return None
        null = self.model.num_classes
        y = torch.as_tensor(null if y is None else y)
        if y.min() < 0 or y.max() > null - (not self.model.has_null_label):
            raise ValueError(f"class {y.tolist()} does not exist; this model has {null} classes, 0 to {null - 1}")
        return y

    @property
    def cfg_scale(self) -> float:
        """Guidance where none is given: 2 for a model that we trained with classes or text, which 1 often ignores.

        A released checkpoint, known by its missing step of training, keeps 1, by which its figures were made.
        """
        return 2.0 if self.model.has_null_label and self.spec.step else 1.0

    def velocity(
        self, cfg_scale: float | None = None, num_timesteps: float = 2, negative: str | Sequence[str] = ""
    ) -> Callable:
        """The model as the sampler calls it: its inputs in its dtype, guidance by class or text around it.

        cfg_scale: of guidance, 1 for none, None for the pipeline's own.
        num_timesteps: of the schedule, whose times have a table; other times are computed.
        negative: text that guidance leads away from, in place of the null text; of all rows, or of each.
        """
        check_pace(num_timesteps, self.model.predict_frames)
        steps = pace(num_timesteps)[0] * self.model.predict_frames if self.tables else None
        tabled = self._tabled.setdefault(steps, TabledFLAV(self.model, steps, self._prompt_vectors, self._forward))

        def model(v: Tensor, a: Tensor, t: Tensor, **conditions) -> tuple[Tensor, Tensor]:
            return tabled(v.to(self.dtype), a.to(self.dtype), t, **conditions)

        cfg_scale = self.cfg_scale if cfg_scale is None else cfg_scale
        if cfg_scale != 1 and not self.model.has_null_label:
            raise ValueError(f"cfg scale {cfg_scale} needs a model with classes or text and a null label; use 1")
        if not any([negative] if isinstance(negative, str) else negative):
            return class_guided(model, cfg_scale, self.model.null_label)
        if cfg_scale == 1:
            raise ValueError(
                f"negative prompt {negative!r} needs guidance to lead away from it; give a cfg scale above 1"
            )
        return class_guided(model, cfg_scale, self.label(negative))

    def _prompt_vectors(self) -> Tensor | None:
        """(P,D_t) of the prompts so far, on the device; what is there is not sent again."""
        if not self.model.text_width:
            return None
        if self._sent is None or len(self._sent) != len(self.prompts.said.texts):
            self._sent = self.prompts.said.vectors.to(self.device)
        return self._sent

    def windows(self, samples: list[int], y: Label = None, seed: int | Tensor = 0) -> Window:
        """Windows of pure noise, one for each stream of `samples`, before their first step.

        Args:
            y: one label or text for all, or one for each; or labels (samples, window). seed: of all, or (samples,).
        """
        y = self.label(y)
        y = y.expand(len(samples)) if y is not None and y.ndim == 0 else y
        if y is not None and y.shape not in ((len(samples),), (len(samples), self.model.predict_frames)):
            raise ValueError(
                f"labels {tuple(y.shape)} do not fit {len(samples)} samples and a window of "
                f"{self.model.predict_frames} frames; give one label, (samples,) or (samples, frames) of them"
            )
        T, shapes, past = self.model.predict_frames, self.model.frame_shapes, max(self.model.memory_ages, default=0)
        return self.placed(start(T, shapes, seed, torch.tensor(samples), y, past=past))

    def memory(self) -> Callable[[Window], Memory] | None:
        """What the model remembers beyond a window, as `advance` asks for it; None if it remembers nothing."""
        return remembered(self.model.memory_ages) if self.model.memory_ages else None

    def placed(self, window: Window) -> Window:
        """The window on this pipeline's device, its frames in float32 at least."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        media = {name: getattr(window, name) for name in ("v", "a", "past_v", "past_a", "dv", "da")}
        return replace(window, **{name: x if x is None else x.to(self.device, dtype) for name, x in media.items()})

    @torch.no_grad()
    def sample(
        self,
        samples: list[int],
        frames: int,
        y: Label = None,
        seed: int | Tensor = 0,
        num_timesteps: float = 2,
        cfg_scale: float | None = None,
        negative: str | Sequence[str] = "",
        known: Callable | None = None,
        guidance: Guidance | None = None,
        solver: str = "euler",
    ) -> Clips:
        """Whole clips of a batch of streams; a clip depends on (seed, its number) and not on its neighbours.

        Args:
            samples: number of each stream under the seed. frames: length of each. y, seed: as of `windows`.
            num_timesteps: steps n per frame, or 1/m. cfg_scale, negative: as of `velocity`. known, guidance: as in
                `advance`. solver: "euler", or "ab2", of second order.
        """
        how = dict(known=known, guidance=guidance, skip=self.skip, memory=self.memory())
        velocity = self.velocity(cfg_scale, num_timesteps, negative)
        window = solved_by(self.windows(samples, y, seed), solver, num_timesteps)
        emitted = list(roll(window, velocity, num_timesteps, frames, **how))
        v, a = torch.stack([e.v for e in emitted], 1), torch.stack([e.a for e in emitted], 1)
        return Clips(*self.codec.decode(v, a), v, a)

    def new_stream(self, sample: int = 0, y: Label = None, seed: int = 0) -> StreamState:
        """A stream before its first step."""
        return self._state(self.windows([sample], y, seed), num_timesteps=1)

    def extending(
        self,
        frames: Tensor,
        wave: Tensor,
        before: int = 0,
        sample: int = 0,
        y: Label = None,
        seed: int = 0,
    ) -> StreamState:
        """A stream whose past is the end of a real clip: it gives out that past again, then goes on.

        The last T frames become the window as it is while rolling at w = 1, frame k at t_k = 1 - (k + 1)/T; a shorter
        clip becomes the first frames of a window that pre-rolls. Each real frame stays on its line t x + (1 - t) eps
        until it leaves: exactly the points that training shows the model for such a window. A memory holds the frames
        before these.

        Args:
            frames: (F,3,H,W) in [-1,1], as `data.frames.fit` makes them; the last T of a clip are enough, and what the
                memory reaches.
            wave: (F * samples_per_frame + 2 * context,) with its context.
            before: frames of the clip before those given.
        """
        past = min(len(frames), self.model.predict_frames)
        mean, _, a = self.codec.encode(frames[None].to(self.device), wave[None].to(self.device))
        rolling = past == self.model.predict_frames
        window = self.windows([sample], y, seed)
        first = before + len(frames) - past
        window = replace(window, first=window.first + first, step=window.step + (past - 1) * rolling)
        window = _remembering(window, mean[0, :-past], a[0, :-past])
        return replace(self._state(window, 1), past=Past(mean[0, -past:], a[0, -past:], first, seed))

    def _state(self, window: Window, num_timesteps: int) -> StreamState:
        v, a = window.v[0, :0], window.a[0, :0]
        return StreamState(window, num_timesteps, v, a, torch.zeros(0, device=self.device), said=self.prompts.said)

    def stream(
        self,
        y: Label = None,
        sample: int = 0,
        seed: int = 0,
        frames: int | None = None,
        state: StreamState | None = None,
        overlap: bool | None = None,
        **how,
    ) -> Iterator[Chunk]:
        """Frames of one stream with their sound as they become ready, without end unless `frames` is given.

        Sound waits for the mel frames that follow it, so a chunk leaves some frames late; its picture and sound always
        belong together. For several streams in one batch see `pipeline.streams.Streams`.

        Args:
            state: a chunk's `state` to go on from, instead of a new stream.
            overlap: denoise and decode ahead in threads, with the same result, as of `pipeline.overlap.steps_of`.
            how: as in `Streams`.
        """
        streams = Streams(self, **how)
        streams.join("", state or self.new_stream(sample, y, seed), frames)
        with closing(steps_of(streams, overlap)) as steps:
            for chunks in steps:
                yield from (chunk for _, chunk in chunks)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all weights and facts, by which a saved stream knows its model."""
        facts = {**asdict(replace(self.spec, codec_source=None, text_source=None)), **self.model._hub_mixin_config}
        del facts["clip_frames"], facts["sound"], facts["sound_source"]  # which are those of any stream
        del facts["channels"]  # of sound that is given, which a film that goes on without it need not know
        if not self.model.text_width:  # films of before there was text go on
            del facts["text_encoder"], facts["text_source"], facts["text_width"]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for part in (self.model, *self.codec.networks):
            for name, weight in part.state_dict().items():
                digest.update(name.encode() + weight.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def of_states(self) -> dict[str, str]:
        """What is saved beside a state: by which model, in which type, it was made."""
        return {"checksum": self.checksum, "dtype": name_of(self.dtype)}


def _remembering(window: Window, v: Tensor, a: Tensor) -> Window:
    """A window of one row whose past ends with frames v (P,C,h,w), a (P,S,M), if it keeps one."""
    if window.past_v is None or not len(v):
        return window
    pasts = (torch.cat([past, x.to(past)[None]], 1)[:, -past.shape[1] :] for past, x in
             ((window.past_v, v), (window.past_a, a)))  # fmt: skip
    return replace(window, **dict(zip(("past_v", "past_a"), pasts)))


def pipeline_of(
    model: Pretrained,
    codec: AVCodec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    **speed,
) -> AVPipeline | ClipPipeline:
    """The pipeline for a model that rolls, or one that makes whole clips.

    Args:
        dtype: None for the `natural_dtype` of model and device. speed: as of AVPipeline.
    Raises:
        ValueError: the codecs are of the other kind.
    """
    if model.rolls == bool(codec.spec.clip_frames):
        raise ValueError(f"a model of {model.system} does not fit pipeline.json, which says clip_frames "
                         f"{codec.spec.clip_frames}; one of the files belongs to another checkpoint")  # fmt: skip
    dtype = dtype or natural_dtype(model, device)
    if model.rolls:
        return AVPipeline(model, codec, device, dtype, **speed)
    return (LinkedPipeline if model.links else ClipPipeline)(model, codec, device, dtype)
