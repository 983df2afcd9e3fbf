"""The commands of README.md and docs/: each parses; slowly, all of them run in order, made small."""

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
LINES, SECTION = 120, 8  # of README.md and of one of its sections, blank lines not counted
ELSEWHERE = ("--multi_gpu", "MaverickAlex/", "=A/export", "=W5/export", "=C/export")  # 8 GPUs, the hub, a data set
SMALL = {
    "--train": 6, "--test": 6, "--max-steps": 2, "--sample-every": 0, "--video-length": 16, "--pairs": 1,
    "--frames": {"240": 12, "300": 16, "60": 24, "120": 12, "64": 34, "150": 16}, "1 2 5": "1", "60:a blue": "6:a blue",
}  # fmt: skip


class Parsed(BaseException):
    """Raised where a script would begin its work."""


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[str]:
    lines = (line.partition("  #")[0].strip() for block in blocks(page, "") for line in block.splitlines())
    return [line for line in lines if line]


ALL = [pytest.param(line, id=f"{page.stem}: {line[:60]}") for page in PAGES for line in commands(page)]


def words(command: str) -> list[str]:
    """The script or module and its arguments; what comes before it belongs to python or accelerate."""
    parts = shlex.split(command)
    if parts[:2] == ["python", "-m"]:
        return [f"{parts[2].replace('.', '/')}.py", *parts[3:]]
    script = next(i for i, part in enumerate(parts) if part.endswith(".py"))
    return parts[script:]


def parsed(command: str, monkeypatch) -> None:
    """Run a command up to where its arguments are understood."""
    script, *arguments = words(command)
    understand = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        understand(parser, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize("command", ALL)
def test_every_command_of_the_pages_parses(command, monkeypatch):
    if command.startswith("make "):
        assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
    else:
        parsed(command, monkeypatch)


def test_a_wrong_flag_would_be_noticed(monkeypatch):
    with pytest.raises(SystemExit):
        parsed("python sample.py --model-ckpt x --num-vidoes 6", monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_the_pages_lead_somewhere_and_their_python_compiles(page):
    assert not [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tests_that_a_page_names_exist(page):
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text())
    assert not [(file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert page.stem.endswith("_rows") == bool(named)


def test_readme_can_be_scanned():
    text = (ROOT / "README.md").read_text()
    sections = {title: body.split("\n") for title, body in re.findall(r"^## (.*)\n(.*?)(?=^## |\Z)", text, re.M | re.S)}
    long = {
        title: n for title, body in sections.items() if (n := sum(map(bool, body))) > SECTION and title != "Read on"
    }
    assert len(text.splitlines()) <= LINES and not long


def made_small(command: str) -> str:
    for option, value in SMALL.items():
        if option.startswith("--"):
            command = re.sub(
                rf"(?<= {option} )(\d+)",
                lambda found, value=value: str(value[found[1]] if isinstance(value, dict) else value),
                command,
            )
        else:
            command = command.replace(option, value)
    return command


@pytest.mark.slow
def test_every_command_of_the_pages_runs_in_order(tmp_path):
    """Training stands in for `make demo`, whose folder the commands use."""
    train = next(line for line in commands(ROOT / "README.md") if "train.py" in line)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    first = ["python -m data.synthetic runs/demo/data --train 256 --test 64", train.replace("runs/balls", "runs/demo")]
    lines = first + [line for page in PAGES for line in commands(page) if line.startswith(("python", "accelerate"))]
    python = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    for line in dict.fromkeys(lines):  # an endless film replaces none
        if not any(text in line for text in ELSEWHERE):
            script, *arguments = words(made_small(line))
            module = script.removesuffix(".py").replace("/", ".")
            run([sys.executable, *(["-m", module] if "/" in script else [ROOT / script]), *arguments], tmp_path)
    for page in PAGES:
        for block in blocks(page, "python"):
            run([sys.executable, "-c", python + block], tmp_path)


def run(command: list, folder: Path) -> None:
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True)
    assert not done.returncode, f"{command}\n{done.stderr[-2000:]}"
