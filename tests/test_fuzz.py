"""Foreign bytes: whatever a file holds, a loader reads it or refuses it in a sentence, soon and in bounded memory.

A worker, in a process of its own and under limits, loads what the tests name to it.
"""

import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sample
import sample_long
from data.av import MediaError, iter_frames, mux, probe, probe_audio, read_audio, write_clip
from data.clips import ClipDataset, examine
from data.index import INDEX, VERSION
from data.prepared import LatentWriter, PreparedDataset
from evaluation.study import tally, write_study
from metrics import weights
from models import FLAV
from models.codec import PatchPCA
from pipeline import AVCodec, AVPipeline, AVSpec, StreamState
from tests.processes import context
from vocoder import GriffinLim, HiFiGAN, HiFiGANConfig

FOREIGN = Path(__file__).parent / "fixtures" / "parity" / "data" / "item_30fps_stereo.mp4"
SECONDS, MEMORY = 5, 2**30  # that one file may take, beyond what the worker had
SENTENCE = 600  # letters of a refusal, long paths included
FAST = 3  # mutations of each kind without -m slow
HUGE = (0, 1, 7, 2**15, 2**31 - 1, 2**31, 2**32 - 1)
VIDEO, CODEC, CHECKPOINT = "data/train/ball/clip.mp4", "codec/codec.safetensors", "checkpoint"
CONFIG = dict(latent_size=4, patch_size=2, in_channels=4, n_mels=20, num_classes=2, hidden_size=16, depth=1,
              num_heads=2, predict_frames=4)  # fmt: skip
VOICE = dict(resblock="2", num_mels=20, upsample_initial_channel=16, upsample_rates=(8, 5, 4),
             upsample_kernel_sizes=(16, 10, 8), resblock_kernel_sizes=(3,),
             resblock_dilation_sizes=((1, 2),))  # fmt: skip


# ---------------------------------------------------------------------------------------------------- loaders (worker)


def media(path: Path) -> None:
    """Every way into a media file; what one of them refuses, the others may read."""
    doors = (
        lambda: probe(path),
        lambda: probe_audio(path),
        lambda: list(islice(iter_frames(path), 16)),
        lambda: read_audio(path, 0, 32000),
    )
    examine(path.parent, Path(path.name), 10, 16000, "mean")  # never refuses: what is wrong goes on record
    refusals = [error for error in map(refusal, doors) if error]
    if len(refusals) == len(doors):
        raise refusals[0]


def refusal(door: Callable) -> Exception | None:
    """What a door raises if it is ours; anything else goes through."""
    try:
        door()
    except (ValueError, OSError) as error:
        if not is_ours(error):
            raise
        return error
    return None


def index(path: Path) -> None:
    """The data set whose index is damaged: every clip that it offers can be read."""
    dataset = ClipDataset(path.parent, "train", clip_frames=4, image_size=16)
    item = dataset[len(dataset) - 1]
    assert Path(item["path"]).resolve().is_relative_to(path.parent.resolve())
    assert item["wave"].isfinite().all() and item["frames"].shape == (4, 3, 16, 16)


def study(path: Path) -> None:
    tally(path.parent / "handout.key.json", [path.parent / "votes.json"])


def checkpoint(path: Path) -> None:
    AVPipeline.from_pretrained(next(folder for folder in path.parents if folder.name == CHECKPOINT))


def patch_pca(path: Path) -> None:
    codec = PatchPCA.load(path.parent)
    assert codec.decode(codec.encode(torch.zeros(1, 1, 3, 4 * codec.factor, 4 * codec.factor))[0]).shape[2] == 3


def griffin_lim(path: Path) -> None:
    GriffinLim.from_pretrained(path.parent)


def prepared(path: Path) -> None:
    """Latents or their index damaged: every clip that the data set offers is inside the folder and can be read."""
    root = next(folder for folder in path.parents if folder.name == "prepared")
    dataset = PreparedDataset(root, "train", clip_frames=4)
    items = [dataset[i] for i in range(len(dataset))]
    assert all(Path(item["path"]).resolve().is_relative_to(root.resolve()) for item in items)
    assert all(item[name].isfinite().all() for item in items for name in ("mean", "std", "a"))


def feature_weights(path: Path) -> None:
    weights.load(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), path, "its authors")


OWN = (media, index, study, checkpoint, feature_weights, patch_pca, griffin_lim, prepared)
DOORS = {f.__name__: f for f in OWN} | {"state": StreamState.load}


def is_ours(error: Exception) -> bool:
    """Whether a refusal is one of ours: one sentence with the remedy after a semicolon."""
    text = str(error)
    whose = isinstance(error, OSError) or type(error) in (ValueError, MediaError)
    return whose and "\n" not in text and "; " in text and len(text) <= SENTENCE


def verdict(door: str, path: Path, deeds: list[str]) -> tuple[str, str]:
    """("read" or "refused" or "fault", what happened)."""
    deeds.clear()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    try:
        DOORS[door](path)
        found = "read", ""
    except Exception as error:
        at = error.__traceback__
        while at.tb_next:
            at = at.tb_next
        told = f"{type(error).__name__}: {str(error)[:300]} ({at.tb_frame.f_code.co_filename}:{at.tb_lineno})"
        found = ("refused" if isinstance(error, (ValueError, OSError)) and is_ours(error) else "fault"), told
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return ("fault", f"it did {deeds[:3]}") if deeds else found


def watch(root: Path, deeds: list[str]) -> None:
    """Note what no loader may do: unpickle, start a program, use the network, write outside `root`."""
    forbidden = {"pickle.find_class", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen"}
    changing = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}

    def hook(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], (str, bytes)):
            changes = (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changes = event in changing
        if event in forbidden or event == "socket.connect":
            deeds.append(f"{event} {args[:2]}"[:200])
        elif changes and not Path(os.fsdecode(args[0])).resolve().is_relative_to(root):
            deeds.append(f"{event} {args[0]}"[:200])

    sys.addaudithook(hook)


def work(root: Path, wishes: Connection) -> None:
    """Load what is wished for, one after the other, until the test hangs up."""
    tempfile.tempdir, sys.dont_write_bytecode = str(root), True
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    deeds = []
    watch(root.resolve(), deeds)
    with suppress(EOFError):
        while True:
            door, path = wishes.recv()
            wishes.send(verdict(door, path, deeds))


# ------------------------------------------------------------------------------------------------------------ mutations


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 8, 64))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def noise_in_header(data: bytes, rng: random.Random) -> bytes:
    at, n = rng.randrange(min(len(data), 2048)), rng.randrange(1, 64)
    return data[:at] + rng.randbytes(n) + data[at + n :]


def swap(data: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def drop(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randrange(1, 400) :]


def empty(data: bytes, rng: random.Random) -> bytes:
    return b""


def other_type(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"\x89PNG\r\n\x1a\n" + data, b"\xff\xd8\xff\xe0" + data, b"a text\n" * 99, rng.randbytes(3000),
                       b"PK\x03\x04" + data, b"{}", b"\0" * 5000, FOREIGN.read_bytes(), b"\x80\x04N."))  # fmt: skip


def box_sizes(data: bytes, rng: random.Random) -> bytes:
    """A false size of an mp4 box, or a false number in its beginning."""
    names = rb"ftyp|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|stbl|mdat|"
    names += rb"stsd|avc1|avcC|mp4a|esds|stts|ctts|stsc|stsz|stco"
    at = rng.choice([found.start() for found in re.finditer(names, data)]) + rng.choice((-4, 4, 8, 12, 16, 20, 24))
    return data[:at] + rng.choice(HUGE).to_bytes(4) + data[at + 4 :]


def element_sizes(data: bytes, rng: random.Random) -> bytes:
    """A false size or value of a Matroska element."""
    ids = b"\x1a\x45\xdf\xa3 \x18\x53\x80\x67 \x15\x49\xa9\x66 \x16\x54\xae\x6b \x1f\x43\xb6\x75 \x2a\xd7\xb1 \x44\x89"
    ids += b" \xae \xb0 \xba \xe7 \xa3 \x9f \xb5 \x63\xa2 \x23\xe3\x83"
    places = [found.end() for name in ids.split() for found in islice(re.finditer(re.escape(name), data), 4)]
    at, value = (
        rng.choice(places),
        rng.choice((b"\x01" + b"\xff" * 7, b"\x01" + b"\0" * 7, b"\x81\0", b"\xff", b"\x88" + b"\x7f" * 8)),
    )
    return data[:at] + value + data[at + len(value) :]


def riff_fields(data: bytes, rng: random.Random) -> bytes:
    """A false number in the header of a wav file."""
    at = rng.choice((4, 16, 20, 22, 24, 28, 32, 34, 40))
    return data[:at] + rng.choice(HUGE).to_bytes(4, "little") + data[at + 4 :]


def header_length(data: bytes, rng: random.Random) -> bytes:
    """A false length of a safetensors header."""
    return rng.choice((*HUGE, 99_999_999, 2**63, 2**64 - 1, len(data))).to_bytes(8, "little") + data[8:]


def header_json(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a false table of tensors, or false facts."""
    end = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:end])
    if "facts" in (notes := table.get("__metadata__", {})) and rng.random() < 0.5:
        notes["facts"] = reshape_json(notes["facts"].encode(), rng).decode()
        header = json.dumps(table).encode()
    else:
        header = reshape_json(data[8:end], rng)
    return len(header).to_bytes(8, "little") + header + data[end:]


def zip_members(data: bytes, rng: random.Random) -> bytes:
    """A torch file with one member damaged, missing or under another name."""
    members = {
        info.filename: zipfile.ZipFile(BytesIO(data)).read(info) for info in zipfile.ZipFile(BytesIO(data)).infolist()
    }
    name = next(n for n in members if n.endswith("data.pkl")) if rng.random() < 0.7 else rng.choice(list(members))
    content = members.pop(name)
    how = rng.choice((flip, cut, noise_in_header, swap, drop, empty, None))
    target = name if rng.random() < 0.9 else "../../../escaped"
    members |= {target: how(content, rng) if content else b"x"} if how else {}
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


ODD = (None, True, -1, 0, 1, 3, 10**6, 10**9, 10**18, 2**63, 10**40, 0.5, -0.5, 1e308, math.nan, math.inf,
       "", "x", "10", "../../../../tmp/escaped", "/tmp/escaped", "../escaped", "x" * 100_000, "two\nlines", "\0",
       "\ud800", [], {}, [[]], [1, 2, 3], [-1], [10**9], ["../escaped"], {"a": 1}, [[0]], [1e9],
       [None] * 3)  # fmt: skip


def reshape_json(data: bytes, rng: random.Random) -> bytes:
    """One place of a JSON text: another value or type, gone, or under another name."""
    root = {"": json.loads(data)}
    places = [(root, "")]
    for holder, key in places:  # grows while it is walked
        value = holder[key]
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        places += [(value, k) for k, _ in inner]
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.15 and isinstance(holder, dict) and holder is not root:
        del holder[key]
    elif what < 0.25 and isinstance(holder, dict) and holder is not root:
        holder[rng.choice(("../escaped", "", "x", "__class__"))] = holder.pop(key)
    else:
        holder[key] = rng.choice(ODD)
    return json.dumps(root[""]).encode()


def false_json(data: bytes, rng: random.Random) -> bytes:
    """Texts that are hard to parse, or not what was expected."""
    return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900, b"null", b"[]", b"3", b'"x"', b"{}",
                       b"9" * 6000, b"\xff\xfe", data[:-1] + b', "more": ' + b"9" * 6000 + b"}", b"\xef\xbb\xbf" + data,
                       data + data, data.replace(b"1", b"1e999"), b"NaN", data.replace(b'"', b"'")))  # fmt: skip


BYTES = (cut, flip, noise_in_header, swap, flip, drop, other_type)
SAFETENSORS = (header_length, header_json, flip, header_json, cut, noise_in_header, header_json, swap, other_type)
JSON = (reshape_json, false_json, reshape_json, reshape_json, reshape_json, cut, flip, reshape_json, other_type)
TORCH = (zip_members, flip, zip_members, cut, noise_in_header, zip_members, swap, other_type)


@dataclass(frozen=True)
class Kind:
    """A file to damage: below the folder of all subjects, where it goes, how it is damaged, and how often."""

    door: str
    file: str
    mutators: tuple[Callable, ...]
    count: int
    slow: bool = False


KINDS = (
    Kind("media", "media/clip.mp4", (box_sizes, *BYTES, box_sizes), 90),
    Kind("media", "media/foreign.mp4", (box_sizes, *BYTES, box_sizes), 60),
    Kind("media", "media/clip.mkv", (element_sizes, *BYTES, element_sizes), 90),
    Kind("media", "media/clip.wav", (riff_fields, riff_fields, *BYTES), 60),
    Kind("checkpoint", "checkpoint/config.json", JSON, 80),
    Kind("checkpoint", "checkpoint/model.safetensors", SAFETENSORS, 60),
    Kind("checkpoint", "released/checkpoint/model.safetensors", SAFETENSORS, 60),
    Kind("checkpoint", "checkpoint/pipeline.json", JSON, 100),
    Kind("checkpoint", "checkpoint/vocoder/config.json", JSON, 80),
    Kind("checkpoint", "checkpoint/vocoder/model.safetensors", SAFETENSORS, 40),
    Kind("checkpoint", "released/checkpoint/vocoder/vocoder.pt", TORCH, 60),
    Kind("checkpoint", "checkpoint/codec/codec.safetensors", SAFETENSORS, 50),
    Kind("checkpoint", "vae/checkpoint/codec/config.json", JSON, 60, slow=True),
    Kind("checkpoint", "vae/checkpoint/codec/diffusion_pytorch_model.safetensors", SAFETENSORS, 30, slow=True),
    Kind("state", "state.safetensors", SAFETENSORS, 80),
    Kind("feature_weights", "weights.pt", TORCH, 60),
    Kind("index", "data/.index-train-10fps-16000hz-mean.json", JSON, 80),
    Kind("prepared", "prepared/prepared.json", JSON, 80),
    Kind("prepared", "prepared/train/ball/clip.mp4.safetensors", SAFETENSORS, 60),
    Kind("patch_pca", "pca/codec.safetensors", SAFETENSORS, 60),
    Kind("griffin_lim", "griffin_lim/config.json", JSON, 60),
    Kind("study", "study/handout.key.json", JSON, 80),
    Kind("study", "study/votes.json", JSON, 80),
)


# ------------------------------------------------------------------------------------------------------------- subjects


def scrambled(module: nn.Module) -> nn.Module:
    weights.fill(module)
    return module.eval()


@pytest.fixture(scope="module")
def subjects(tmp_path_factory) -> Path:
    """A folder with a whole file of every kind."""
    root, rng = tmp_path_factory.mktemp("fuzz"), torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (24, 32, 48, 3), generator=rng, dtype=torch.uint8)
    wave = 0.5 * torch.randn(24 * 1600, generator=rng).clamp(-1, 1)
    for folder in ("media", "data/train/ball"):
        (root / folder).mkdir(parents=True)
        write_clip(root / folder / "clip.mp4", frames, wave)
    mux(root / "media" / "clip.mp4", root / "media" / "clip.mp4", root / "media" / "clip.mkv")
    shutil.copy(FOREIGN, root / "media" / "foreign.mp4")
    ClipDataset(root / "data", "train", 4, 16)
    make_checkpoints(root, frames)
    make_prepared(root / "prepared")
    PatchPCA.fit(frames[:, :, :32], 8, 4).save(root / "pca")
    GriffinLim(20).save(root / "griffin_lim")
    make_study(root / "study")
    torch.save(scrambled(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))).state_dict(), root / "weights.pt")
    return root


def make_checkpoints(root: Path, frames: torch.Tensor) -> None:
    """A checkpoint of ours, one with a released vocoder, and a state of a stream that extends a clip."""
    spec = AVSpec(
        n_mels=20, audio_scale=2.0, image_size=32, codec="patch-pca", vocoder="hifigan", class_names=("x", "y")
    )
    codec = AVCodec(spec, PatchPCA.fit(frames[:, :, :32], 8, 4), scrambled(HiFiGAN(HiFiGANConfig(**VOICE))))
    pipe = AVPipeline(scrambled(FLAV(**CONFIG)), codec)
    pipe.save(root / CHECKPOINT)
    shutil.copytree(root / CHECKPOINT, root / "released" / CHECKPOINT)
    vocoder = root / "released" / CHECKPOINT / "vocoder"
    torch.save({"generator": with_weight_norm(load_file(vocoder / "model.safetensors"))}, vocoder / "vocoder.pt")
    (vocoder / "model.safetensors").unlink()
    pipe.model.export_official(root / "released" / CHECKPOINT)
    real = torch.rand(4, 3, 32, 32), torch.rand(4 * 1600 + 2 * codec.context)
    chunks = list(pipe.stream(state=pipe.extending(*real, y=1), frames=5))
    chunks[0].state.save(root / "state.safetensors", base="long_00000", checksum=pipe.checksum)


def make_prepared(root: Path) -> None:
    """A folder as prepare.py leaves it, with one file of 6 frames."""
    (root / "train" / "ball").mkdir(parents=True)
    rng, path = torch.Generator().manual_seed(0), root / "train" / "ball" / "clip.mp4.safetensors"
    with LatentWriter(path, 6, (2, 3, 3), (10, 4), {"sha256": "x"}) as writer:
        writer.write(**{name: torch.randn(6, *shape, generator=rng) for name, shape in writer.shapes.items()})
    record = {"path": "ball/clip.mp4", "frames": 6, "class": "ball", "sha256": "x", "bytes": path.stat().st_size}
    skipped = [{"path": "ball/mute.mp4", "reason": "silent", "sha256": ""}]
    index = {"version": VERSION, "facts": {"image_size": 24}, "class_names": ["ball"], "audio_scale": 2.0,
             "splits": {"train": {"files": [record], "skipped": skipped}}}  # fmt: skip
    (root / INDEX).write_text(json.dumps(index))


def with_weight_norm(table: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each weight as its norm g and any multiple v of it, as released vocoders have it."""
    split = {key: w for key, w in table.items() if not key.endswith(".weight")}
    for key in table.keys() - split.keys():
        w = table[key]
        split |= {f"{key}_g": w.norm(dim=tuple(range(1, w.ndim)), keepdim=True), f"{key}_v": 3 * w}
    return split


def make_study(root: Path) -> None:
    """A study of two methods and the form of one voter."""
    for method in ("ours", "theirs"):
        (root / method).mkdir(parents=True)
        for i in range(3):
            (root / method / f"{i}.mp4").write_text(f"{method} {i}")
    write_study(root / "ours", root / "theirs", root / "handout", 3)
    key = json.loads((root / "handout.key.json").read_text())
    votes = [{"pair": pair["pair"], "question": q, "choice": "left"} for pair in key["pairs"] for q in key["questions"]]
    (root / "votes.json").write_text(json.dumps({"study": key["study"], "voter": "Ada", "votes": votes}))


@pytest.fixture(scope="module")
def with_vae(subjects) -> Path:
    """The subjects with a checkpoint whose codec is of the diffusers library."""
    import diffusers  # takes seconds

    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    vae = diffusers.AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4)
    folder = subjects / "vae" / CHECKPOINT
    shutil.copytree(subjects / CHECKPOINT, folder)
    shutil.rmtree(folder / "codec")
    vae.save_pretrained(folder / "codec")
    spec = json.loads((folder / "pipeline.json").read_text())
    (folder / "pipeline.json").write_text(json.dumps(spec | {"codec": "sd-vae"}))
    return subjects


# ----------------------------------------------------------------------------------------------------------------- runs


class Worker:
    """The process that loads; a new one takes its place when it dies or takes too long."""

    def __init__(self, root: Path):
        self.root, self.process = root, None

    def __enter__(self) -> "Worker":
        return self

    def start(self) -> None:
        self.wishes, theirs = Pipe()
        self.process = context().Process(target=work, args=(self.root, theirs))
        self.process.start()
        theirs.close()

    def load(self, door: str, path: Path, seconds: float = SECONDS) -> tuple[str, str]:
        if not self.process:
            self.start()
        self.wishes.send((door, path))
        if not self.wishes.poll(seconds):
            self.__exit__()
            return "fault", f"took over {seconds} s"
        try:
            return self.wishes.recv()
        except EOFError:
            self.process.join()
            found = "fault", f"crashed with {self.process.exitcode}"
            self.__exit__()
            return found

    def __exit__(self, *error) -> None:
        if self.process:
            self.process.kill()
            self.process.join()
            self.wishes.close()
            self.process = None


def fuzz(root: Path, counts: dict[Kind, list[int]]) -> dict[Kind, list[tuple[int, str, str, str]]]:
    """(number, mutator, verdict, what happened) of the mutations with these numbers; each file is restored after."""
    found = {kind: [] for kind in counts}
    with Worker(root) as worker:
        for kind, numbers in counts.items():
            path, whole = root / kind.file, (root / kind.file).read_bytes()
            first = worker.load(kind.door, path, seconds=60)  # and modules load that it needs
            assert first[0] == "read", (kind.file, first)
            for i in numbers:
                mutate = kind.mutators[i % len(kind.mutators)]
                path.write_bytes(mutate(whole, random.Random(f"{kind.file} {i}")))
                found[kind].append((i, mutate.__name__, *worker.load(kind.door, path)))
            path.write_bytes(whole)
    return found


def report(found: dict[Kind, list]) -> list[tuple]:
    """Print the table; returns the faults."""
    print(f"\n{'kind':64} mutations   read refused crashed")
    for kind, results in found.items():
        n = Counter(verdict for *_, verdict, _ in results)
        print(f"{kind.file:64} {len(results):9} {n['read']:6} {n['refused']:7} {n['fault']:7}")
    print(f"{'all':64} {sum(map(len, found.values())):9}")
    return [(kind.file, *result) for kind, results in found.items() for result in results if result[2] == "fault"]


def test_damaged_files_are_read_or_refused_in_a_sentence(subjects):
    numbers = {kind: list(range(0, kind.count, kind.count // FAST + 1)) for kind in KINDS if not kind.slow}
    assert not report(fuzz(subjects, numbers))


MISDEEDS = {
    "hang": lambda path: time.sleep(60),
    "crash": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
    "hoard": lambda path: bytearray(MEMORY + 2**20),
    "write": lambda path: path.write_text(""),
    "unpickle": lambda path: pickle.loads(pickle.dumps(os.getpid)),
    "curse": lambda path: json.loads("{"),
}
DOORS |= MISDEEDS


@pytest.mark.slow
def test_worker_notices_every_misdeed_and_goes_on(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with Worker(root) as worker:
        found = {door: worker.load(door, tmp_path / "outside", seconds=2) for door in MISDEEDS}
    assert {verdict for verdict, _ in found.values()} == {"fault"}, found
    told = dict(hang="took over", crash="crashed with -11", hoard="MemoryError", write="open", curse="JSONDecodeError")
    assert all(text in found[door][1] for door, text in told.items()), found


def test_sound_in_an_unknown_codec_is_no_sound(tmp_path):
    (tmp_path / "x.mp4").write_bytes(FOREIGN.read_bytes().replace(b"mp4a", b"zzzz").replace(b"esds", b"zzzz"))
    assert probe(FOREIGN).has_audio and not probe(tmp_path / "x.mp4").has_audio


@pytest.mark.slow
def test_hundreds_of_damaged_files_are_read_or_refused_in_a_sentence(with_vae):
    faults = report(fuzz(with_vae, {kind: list(range(kind.count)) for kind in KINDS}))
    print(*faults, sep="\n")
    assert not faults


# ------------------------------------------------------------------------------------------------- pickles and names


class Trap:
    """Runs a command where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def sprung(path: Path, marker: Path, load: Callable, wrapped: Callable = lambda trap: trap) -> bool:
    """Whether loading a trap ran its command; it must be refused in a sentence of ours."""
    for legacy in (False, True):
        torch.save(wrapped(Trap(marker)), path, _use_new_zipfile_serialization=not legacy)
        assert refusal(load)
    return marker.exists()


def test_trap_springs_where_pickles_are_trusted(tmp_path):
    torch.save(Trap(tmp_path / "marker"), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


def test_weights_that_would_run_a_command_are_refused(tmp_path):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    assert not sprung(path, marker, lambda: feature_weights(path))
    assert not sprung(path, marker, lambda: feature_weights(path), lambda trap: {"0.weight": trap})


def test_vocoder_that_would_run_a_command_is_refused(subjects, tmp_path):
    folder, marker = shutil.copytree(subjects / "released" / CHECKPOINT, tmp_path / CHECKPOINT), tmp_path / "marker"
    path = folder / "vocoder" / "vocoder.pt"
    whole = torch.load(path, weights_only=True)["generator"]
    wraps = (lambda trap: trap, lambda trap: {"generator": trap}, lambda trap: {"generator": {**whole, "x": trap}})
    assert not any(sprung(path, marker, lambda: AVPipeline.from_pretrained(folder), wrap) for wrap in wraps)


@pytest.mark.parametrize("name", ["model.safetensors", "codec/codec.safetensors", "vocoder/model.safetensors"])
def test_pickle_under_the_name_of_safetensors_is_refused(subjects, tmp_path, name):
    folder, marker = shutil.copytree(subjects / CHECKPOINT, tmp_path / CHECKPOINT), tmp_path / "marker"
    assert not sprung(folder / name, marker, lambda: AVPipeline.from_pretrained(folder))


@pytest.mark.slow
def test_pickle_of_a_library_codec_is_refused(with_vae, tmp_path):
    folder, marker = shutil.copytree(with_vae / "vae" / CHECKPOINT, tmp_path / CHECKPOINT), tmp_path / "marker"
    (folder / "codec" / "diffusion_pytorch_model.safetensors").unlink()
    path = folder / "codec" / "diffusion_pytorch_model.bin"
    assert not sprung(path, marker, lambda: AVPipeline.from_pretrained(folder))


def names_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


PATHS = ("../../escaped", "{root}/escaped", "a/../../escaped", "..")


def test_classes_named_like_paths_write_nothing_elsewhere(subjects, tmp_path):
    checkpoint, out = shutil.copytree(subjects / CHECKPOINT, tmp_path / CHECKPOINT), tmp_path / "a" / "b" / "out"
    spec, names = json.loads((checkpoint / "pipeline.json").read_text()), [x.format(root=tmp_path) for x in PATHS[:2]]
    (checkpoint / "pipeline.json").write_text(json.dumps(spec | {"class_names": names}))
    before = names_below(tmp_path)
    flags = dict(model_ckpt=checkpoint, results_dir=out, num_videos=2, video_length=2, device="cpu")
    sample.main([f"--{name}={value}" for name, value in flags.items()])
    sample_long.main([f"--{name}={value}" for name, value in (flags | {"frames": 2}).items() if name != "video_length"])
    made = names_below(tmp_path) - before
    assert {"a/b/out/sample_00001.mp4", "a/b/out/long_00001.mp4"} <= made
    assert all(name in ("a", "a/b") or name.startswith("a/b/out") for name in made)
    assert [json.loads(line)["class"] for line in (out / "samples.jsonl").read_text().splitlines()] == names


@pytest.mark.parametrize("base", [*PATHS, "a/b", "", ".", 3, None, ["x"]])
def test_state_whose_film_would_lie_elsewhere_is_refused(subjects, tmp_path, base):
    state, facts = StreamState.load(subjects / "state.safetensors")
    state.save(tmp_path / "state", **facts | {"base": base})
    with pytest.raises(ValueError, match="is no plain file name"):
        StreamState.load(tmp_path / "state")


@pytest.mark.parametrize("path", [*PATHS, "ball/../../../media/clip.mp4"])
def test_index_offers_no_file_outside_the_data_set(subjects, tmp_path, path):
    root = shutil.copytree(subjects / "data", tmp_path / "data")
    cache = next(root.glob(".index-train-*"))
    saved = json.loads(cache.read_text())
    saved["entries"].append(saved["entries"][0] | {"path": path.format(root=tmp_path)})
    cache.write_text(json.dumps(saved))
    assert [entry.path for entry in ClipDataset(root, "train", 4, 16).entries] == ["ball/clip.mp4"]


@pytest.mark.parametrize("name", [*PATHS, "../../escaped.mp4"])
def test_tally_writes_nothing_whatever_the_key_calls_its_videos(subjects, tmp_path, name):
    root = shutil.copytree(subjects / "study", tmp_path / "study")
    key = json.loads((root / "handout.key.json").read_text())
    for pair in key["pairs"]:
        pair["left"]["file"] = pair["right"]["file"] = name.format(root=tmp_path)
    (root / "handout.key.json").write_text(json.dumps(key | {"folders": {"ours": name, "theirs": name}}))
    before = names_below(tmp_path)
    assert tally(root / "handout.key.json", [root / "votes.json"])["voters"] == 1
    assert names_below(tmp_path) == before
