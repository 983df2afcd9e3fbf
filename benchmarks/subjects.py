"""What the benchmarks run: a preset with random weights on both sides, and pipelines around it that need no files."""

from copy import deepcopy

import torch
from torch import Tensor

from benchmarks.reference import Reference, sample, sample_a2v
from diffusion.flow import flow_loss
from diffusion.noise import Modality, frame_noise
from diffusion.times import draw_times
from models import FLAV, FLAV_presets
from models.codec import SDVAE, FrameCodec, PatchPCA
from pipeline import AVCodec, AVPipeline, AVSpec
from vocoder import GriffinLim, HiFiGAN, HiFiGANConfig

PATCH = 8  # pixels along the side of a latent cell, as of SD's autoencoder
UNKNOWN = (  # to the reference: always causal, without text and memory, and fused in all blocks
    "causal_attn", "class_dropout_prob", "text_width", "fusion_blocks", "conditioning_times",
    "memory_ages",
)  # fmt: skip
DEMO = dict(latent_size=8, in_channels=12, n_mels=64, predict_frames=8, num_classes=3)  # what demo.py trains
HIFIGAN = dict(  # HiFi-GAN V1 (Kong et al., 2020) for a hop of 160, 14 M weights: about what the paper's total leaves
    resblock="1",
    upsample_initial_channel=512,
    upsample_rates=(5, 4, 2, 2, 2),
    upsample_kernel_sizes=(11, 8, 4, 4, 4),
    resblock_kernel_sizes=(3, 7, 11),
    resblock_dilation_sizes=((1, 3, 5),) * 3,
)
SD_VAE = dict(  # config of stabilityai/sd-vae-ft-ema, 84 M weights
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
    norm_num_groups=32,
    sample_size=256,
    scaling_factor=0.18215,
)


class Undecoded(AVCodec):
    """Leaves latents as they are: where only the denoising is timed."""

    def decode(self, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return v, a


def config(args, **more) -> dict:
    """Arguments of FLAV for those of `timing.add_model_arguments`.

    Raises:
        ValueError: there is no such preset.
    """
    if args.model not in FLAV_presets:
        raise ValueError(f"--model {args.model} is no preset; choose one of {', '.join(FLAV_presets)}")
    shapes = DEMO if args.model == "FLAV-tiny" else dict(latent_size=32, in_channels=4, n_mels=256, predict_frames=10)
    asked = {"latent_size": args.latent_size, "predict_frames": args.predict_frames}
    asked = {name: value for name, value in asked.items() if value}
    return {**FLAV_presets[args.model], **shapes, **asked, "fusion": getattr(args, "fusion", "c"), **more}


def random(module: torch.nn.Module, seed: int = 0, std: float = 0.02) -> torch.nn.Module:
    """The module with random weights everywhere, since a fresh model multiplies by zeros."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(std * torch.randn(weight.shape, generator=rng))
    return module


def reference_of(model: FLAV, config: dict, share: bool = True) -> Reference:
    """The plain side of a model, with the same weights; share: in the same memory, for inference."""
    weight = next(model.parameters())
    if not model.causal_attn:
        raise ValueError("the reference is causal, this model was trained with --no-causal-attn; take another")
    if (blocks := config.get("fusion_blocks")) is not None:
        raise ValueError(f"the reference fuses in all blocks, this model in {blocks}; take another")
    if model.memory_ages:
        raise ValueError(f"the reference has no memory, this model one of ages {model.memory_ages}; take another")
    plain = Reference(**{name: x for name, x in config.items() if name not in UNKNOWN})
    if share:
        plain.load_state_dict(model.state_dict(), assign=True)
        return plain.to(weight.device).eval().requires_grad_(False)
    plain = plain.to(weight.device, weight.dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def compiled(model: FLAV) -> FLAV:
    """The model again, with weights of its own, its blocks compiled."""
    twin = deepcopy(model)
    twin.compile_blocks()
    return twin


def pipelines(pipe: AVPipeline, ways: list[str]) -> dict[str, AVPipeline]:
    """The pipeline as "ours", and by name some of `timing.WAYS` to do the same."""
    models = {False: pipe.model, True: compiled(pipe.model) if any("compiled" in way for way in ways) else None}
    more = {way: AVPipeline(models["compiled" in way], pipe.codec, pipe.device, pipe.dtype, graphs="graphs" in way)
            for way in ways}  # fmt: skip
    return {"ours": pipe, **more}


def codec(
    config: dict, vocoder: str = "griffin-lim", kind: type[AVCodec] = AVCodec, frames: FrameCodec | None = None
) -> AVCodec:
    """Patch-PCA with random components, or `frames`, and a vocoder: they need no files and cost what fitted ones do."""
    mels, frames = config["n_mels"], frames or patch_pca(config["in_channels"])
    voice = GriffinLim(mels) if vocoder == "griffin-lim" else hifigan(mels)
    names = tuple(str(i) for i in range(config.get("num_classes", 0)))
    size = config["latent_size"] * PATCH
    spec = AVSpec(n_mels=mels, image_size=size, codec=frames.name, vocoder=vocoder, class_names=names)
    return kind(spec, frames, voice)


def patch_pca(channels: int) -> PatchPCA:
    """Patch-PCA with random components."""
    values = 3 * PATCH**2
    basis = torch.linalg.qr(torch.randn(values, channels))[0].T.contiguous()
    return PatchPCA(torch.zeros(values), basis, torch.ones(channels))


def sd_vae() -> SDVAE:
    """Stable Diffusion's autoencoder in its real shape, with random weights."""
    from diffusers import AutoencoderKL

    return SDVAE(AutoencoderKL(**SD_VAE))


def hifigan(mels: int) -> HiFiGAN:
    """HiFi-GAN of the released size with random weights."""
    return HiFiGAN(HiFiGANConfig(num_mels=mels, **HIFIGAN)).eval().requires_grad_(False)


def inputs(model: FLAV, batch: int, device, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """v, a and times of a rolling window for `batch` clips."""
    T = model.predict_frames
    v, a = (torch.randn(batch, T, *shape, device=device, dtype=dtype) for shape in model.frame_shapes)
    t = 1 - (torch.arange(T, dtype=torch.float64, device=device) + 0.5) / T
    return v, a, t.expand(batch, T)


def fresh_noise(model: FLAV, samples: list[int], seed: int, device, dtype=torch.float32):
    """frame -> its noise v (B,C,H,W), a (B,S,M), the same as our sampler draws."""

    def noise(frame: int) -> tuple[Tensor, Tensor]:
        kinds = zip((Modality.VIDEO, Modality.AUDIO), model.frame_shapes)
        drawn = [[frame_noise(seed, sample, frame, kind, shape) for sample in samples] for kind, shape in kinds]
        return tuple(torch.stack(rows).to(device, dtype) for rows in drawn)

    return noise


def reference_frames(plain: Reference, model: FLAV, samples: list[int], n: int, seed: int, y: Tensor | None = None):
    """Clean frames of the plain sampler, from the noise that our sampler begins with; float32 at least.

    Args:
        model: ours, for its shapes.
    """
    weight = plain.audio_embed.weight
    noise = fresh_noise(model, samples, seed, weight.device, torch.promote_types(weight.dtype, torch.float32))
    v, a = (torch.stack(frames, 1) for frames in zip(*(noise(k) for k in range(model.predict_frames))))
    return sample(plain, v, a, n, noise, y)


def sound(model: FLAV, frames: int, seed: int = 0) -> Tensor:
    """A random sound that may be given to the model: (1,frames,S,M), where its weights are, in float32 at least."""
    weight, rng = next(model.parameters()), torch.Generator().manual_seed(seed)
    drawn = torch.randn(1, frames, *model.frame_shapes[1], generator=rng)
    return drawn.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


def reference_pictures(plain: Reference, model: FLAV, sound: Tensor, n: int, seed: int, scale: float):
    """Clean pictures of the plain sampler for a sound (1,L,S,M): as of `sample_a2v`."""
    noise = fresh_noise(model, [0], seed, sound.device, sound.dtype)
    v, a = (torch.stack(frames, 1) for frames in zip(*(noise(k) for k in range(model.predict_frames))))
    return sample_a2v(plain, v, a, n, noise, sound, scale)


def forward_pass(model: torch.nn.Module, inputs: tuple, autocast: bool = False):
    """A call of the model on v, a and times without gradients; autocast: in bfloat16."""

    @torch.no_grad()
    def forward() -> None:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=autocast):
            model(*inputs)

    return forward


def training_batch(model: FLAV, batch: int) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """v, a, times as Eq. 8 draws them, and noise, where the model's weights are."""
    weight = next(model.parameters())
    v, a, _ = inputs(model, batch, weight.device, weight.dtype)
    w = torch.rand(batch, dtype=torch.float64, device=weight.device)
    return v, a, draw_times(w, w < 0.2, model.predict_frames), (torch.randn_like(v), torch.randn_like(a))


def training_step(model: torch.nn.Module, batch: tuple, autocast: bool = False):
    """A call that makes one training step of the model on the batch; autocast: in bfloat16."""
    v, a, t, noise = batch
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=1e-4, weight_decay=0.02, fused=True)

    def step() -> None:
        with torch.autocast(v.device.type, torch.bfloat16, enabled=autocast):
            loss = flow_loss(model, v, a, None, t, noise).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step
