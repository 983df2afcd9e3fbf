"""Show a film without end on a page while it is made: watch, hear and steer it, fork it, drop a clip in, record it."""

from __future__ import annotations

import argparse
import secrets
import shlex
import socket
import sys
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import cli
from data.folders import nearest_path

if TYPE_CHECKING:  # torch and starlette load after the arguments are known to be good
    from pipeline import AVPipeline
    from serving.desk import Desk

AS_GIVEN = (
    "adapter",
    "audio_scale",
    "codec_source",
    "sound_source",
    "text_source",
    "vocoder",
    "device",
    "solver",
    "dtype",
)
LEAST_LEAD = 0.3  # s


def parse(argv=None):
    from serving.messages import MOST

    p = cli.Parser(__doc__)
    cli.add_checkpoint_arguments(p)
    cli.add_sampling_arguments(p)
    p.add_argument("--host", default="127.0.0.1", help="address to bind; any but this machine's own demands a token, "
                   "which is part of the address that is printed")  # fmt: skip
    p.add_argument("--port", type=cli.whole, default=8000, help="port to bind; 0 for any that is free")
    p.add_argument("--lead", type=cli.finite, default=0.6, help="seconds that frames are made before they are seen")
    p.add_argument("--idle", type=cli.finite, default=30, help="seconds without a viewer after which the model pauses")
    p.add_argument("--results-dir", type=Path, default=Path("runs/live"), help="where states go when it ends")
    p.add_argument("--resume", type=Path, nargs="+", help=f"state files that films go on from, {MOST} at most")
    p.add_argument("--overlap", action=argparse.BooleanOptionalAction, help="denoise and decode in a thread each; "
                   "the film is the same; if not given, on a GPU")  # fmt: skip
    p.set_defaults(solver=None)
    args = p.parse_args(argv)
    if args.port > 65535:
        p.error(f"--port {args.port} does not exist; give one from 0 to 65535")
    if args.lead < LEAST_LEAD or args.idle < 0:
        p.error(f"--lead is {LEAST_LEAD} or more and --idle 0 or more; {args.lead:g} and {args.idle:g} were given")
    if args.resume and len(args.resume) > MOST:
        p.error(f"--resume takes {MOST} states at most; {len(args.resume)} were given")
    for path in args.resume or ():
        if not path.is_file():
            p.error(f"{path} does not exist{nearest_path(path)}; give a state file")
    return args


def main(argv=None):
    args = parse(argv)
    cli.output_folder(args.results_dir)
    door = opened(args.host, args.port)
    import uvicorn

    from serving.app import Room
    from serving.engine import Engine
    from serving.guard import needs_token
    from serving.hub import Hub
    from serving.messages import LONGEST
    from serving.uploads import Uploads

    pipe = cli.load_pipeline(args, whole=False, state=next(iter(args.resume or ()), None))
    open_desk = desk_opener(args, pipe)
    uploads = Uploads()
    hub = Hub(lambda watching, playing: engine.watched(watching, playing))
    engine = Engine(open_desk, hub.publish, hub.tell, args.lead, args.idle)
    token = secrets.token_urlsafe(16) if needs_token(args.host) else ""
    try:
        engine.start()
        desk = engine.ready.result()
        room = Room(engine, hub, facts(args, pipe), checkpoint(args), uploads, args.host, token)
        del pipe, open_desk  # so that the memory can be released
        server = uvicorn.Server(uvicorn.Config(room.app, log_level="warning", access_log=False, lifespan="on",
                                               ws_max_size=2 * LONGEST, timeout_graceful_shutdown=2))  # fmt: skip
        print(told(args.host, door.getsockname()[1], token), flush=True)
        with cli.Stop():
            server.run(sockets=[door])
        engine.end()
        engine.join()
        save(args, desk)
    finally:
        engine.end()
        door.close()
        uploads.close()


def opened(host: str, port: int) -> socket.socket:
    """The socket that the server listens at.

    Raises:
        OSError: it cannot be bound.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"{host}:{port} cannot be bound ({error.strerror}); give another --port or --host") from None


def desk_opener(args, pipe: AVPipeline):
    """What makes the desk with this pipeline at first, and with one that is loaded anew later.

    Raises:
        ValueError: a state or an argument does not fit.
    """
    import torch

    from serving.desk import Desk, Settings

    states = tuple(loaded(path, pipe, args) for path in args.resume or ())
    label = first_label(args, pipe)
    sys.stderr.write(cli.told_of_type(args) + cli.settle_guidance(args, pipe) + cli.told_of_both(pipe))
    args.solver = args.solver or (states[0].solver if states else "euler")
    how = Settings(args.num_timesteps, args.cfg_scale, args.negative_prompt or "", label, args.seed, args.solver,
                   args.overlap)  # fmt: skip
    threads, first = torch.get_num_threads(), [pipe]

    def load() -> AVPipeline:
        return first.pop() if first else cli.load_pipeline(args, whole=False)

    def open_desk() -> Desk:
        torch.set_num_threads(threads)  # counts for this thread alone
        return Desk(load, how, states)

    return open_desk


def loaded(path: Path, pipe: AVPipeline, args):
    """A state to go on from; the guidance that it was made with is taken over where none is given.

    Raises:
        ValueError: it is none, or of another model.
    """
    from pipeline import StreamState

    state, facts = StreamState.load(path)
    cli.check_goes_on(args, pipe, path, facts)
    if args.cfg_scale is None:
        args.cfg_scale = facts.get("cfg_scale")
    if args.negative_prompt is None:
        args.negative_prompt = facts.get("negative")
    return state


def first_label(args, pipe: AVPipeline) -> str | None:
    """Class or prompt of the first film, in words."""
    if pipe.model.text_width:
        return args.prompt
    y = cli.conditions(args, pipe, 1)
    return None if y is None else pipe.spec.class_names[y[0]]


def facts(args, pipe: AVPipeline) -> dict:
    """What the page shows of the model."""
    from serving.messages import MOST

    spec, model = pipe.spec, pipe.model
    return {
        "name": str(args.model_ckpt), "fps": spec.fps, "side": spec.image_size, "bins": spec.n_mels,
        "columns": spec.mel_per_frame, "top": spec.sample_rate // 2, "classes": list(spec.class_names),
        "texts": bool(model.text_width), "takes": list(model.takes), "guided": bool(model.has_null_label),
        "lead": args.lead, "most": MOST,
    }  # fmt: skip


def checkpoint(args) -> str:
    """The checkpoint and what belongs to it, as commands name it."""
    given = [(name, getattr(args, name)) for name in AS_GIVEN if getattr(args, name) is not None]
    given += [("negative_prompt", args.negative_prompt)] * bool(args.negative_prompt)
    more = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given]
    return " ".join([shlex.quote(str(args.model_ckpt)), *more])


def told(host: str, port: int, token: str) -> str:
    """Where the page is, and how to reach it from elsewhere."""
    name = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):  # bound everywhere, which is no address to go to
        name = socket.gethostname()
    address = f"http://{name}:{port}/" + (f"?token={token}" if token else "")
    if token:
        return f"film on {address}\nwho has this address sees and steers it; Ctrl-C ends it"
    return (f"film on {address}\nfrom another machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}, "
            "then the same address there; Ctrl-C ends it")  # fmt: skip


def save(args, desk: Desk) -> None:
    """Write the state of each film, over none that is there, and say how it goes on."""
    paths = []
    for number, film in desk.films.items():
        if film.state.frame:
            path = free_path(args.results_dir, f"live_{number}")
            desk.save(number, path)
            paths.append(shlex.quote(str(path)))
    if paths:
        steps = f"--num-timesteps {desk.settings.steps:g}"
        print(f"goes on with: python live.py --model-ckpt {checkpoint(args)} {steps} --resume {' '.join(paths)}")


def free_path(folder: Path, name: str) -> Path:
    """A state file of this name in a folder that is not there yet."""
    numbered = (f"{name}{suffix}.state.safetensors" for suffix in chain([""], (f"_{k}" for k in count(2))))
    return next(path for path in (folder / file for file in numbered) if not path.exists())


if __name__ == "__main__":
    cli.run(main)
