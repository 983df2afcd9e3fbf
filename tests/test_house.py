"""The house: who may import whom, how fast --help answers, and that everything public says what it is."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = ("models", "diffusion", "data", "vocoder", "metrics")
JOINTS = ("pipeline", "training", "evaluation", "serving")  # where leaves meet: to generate, learn, measure, show
ROOMS = (*LEAVES, *JOINTS)
SHARED = ("cli", "conditional")  # by scripts
GROUND = ("allocator",)  # on which all may stand, since it stands on nothing of ours
SCRIPTS = sorted(p.stem for p in ROOT.glob("*.py") if p.stem not in (*SHARED, *GROUND))
BENCHMARKS = sorted(
    f"benchmarks/{p.stem}"
    for p in (ROOT / "benchmarks").glob("*.py")
    if "def main" in p.read_text() and p.stem not in ("extend", "memory")  # which compute with numpy
)
OURS = {*ROOMS, *SCRIPTS, *SHARED, *GROUND}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, inside: bool = True) -> set[str]:
    """First names of all that a file imports, anywhere in it, or when it is imported itself."""
    names, tree = set(), parsed(path)
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; rooms are named in full"
            names.add(node.module.partition(".")[0])
    return names


def files(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def test_walk_finds_imports_inside_functions_and_blocks(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("if True:\n    import av.codec\ndef f():\n    from pipeline.spec import AVSpec\n")
    assert imports(path) == {"av", "pipeline"}


def test_every_room_has_files():
    assert all(len(files(room)) > 1 for room in ROOMS) and {"train", "sample"} <= set(SCRIPTS)


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_imports_no_other_room_and_no_script(leaf):
    strangers = {str(path.relative_to(ROOT)): imports(path) & OURS - {leaf} for path in files(leaf)}
    assert not {path: found for path, found in strangers.items() if found}


def test_libraries_that_take_seconds_to_import_wait_until_they_are_needed():
    """diffusers brings transformers and peft along."""
    slow = {"diffusers", "transformers", "peft"}
    assert any(imports(path) & slow for path in files(*ROOMS))
    assert not [path for path in files(*ROOMS) if imports(path, inside=False) & slow]


def test_what_generates_knows_nothing_of_what_learns():
    """Training samples, too; sampling does not train. Measuring reads films, whoever made them."""
    assert not [path for path in files("pipeline") if imports(path) & {"training", "evaluation"}]
    assert not [path for path in files("evaluation") if imports(path) & {"training", "pipeline"}]
    assert not [path for path in files("training") if "evaluation" in imports(path)]


def test_only_the_live_page_knows_of_servers():
    """With live.py not running nothing imports what a server is made of, nor the room that does."""
    web = {"starlette", "uvicorn", "websockets", "serving"}
    sources = [*files(*ROOMS), *(ROOT / f"{name}.py" for name in (*SCRIPTS, *SHARED))]
    found = {str(path.relative_to(ROOT)) for path in sources if imports(path) & web}
    assert found and all(name == "live.py" or name.startswith("serving/") for name in found)
    assert not imports(ROOT / "live.py", inside=False) & web
    assert not [path for path in files("serving") if imports(path) & {"training", "evaluation"}]


def test_what_all_may_stand_on_imports_nothing_of_the_house():
    assert not {name: found for name in GROUND if (found := imports(ROOT / f"{name}.py") & OURS)}


def test_no_room_imports_a_script():
    assert not [path for path in files(*JOINTS) if imports(path) & {*SCRIPTS, *SHARED}]


def test_only_joints_and_scripts_join_leaves():
    """cli.py is shared by scripts, and contact.py is one: both are the front of the house."""
    front = {ROOT / f"{name}.py" for name in (*SCRIPTS, *SHARED)}
    rooms = [p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in ("tests", "benchmarks", ".venv")]
    elsewhere = [*ROOT.glob("*.py"), *files(*rooms)]
    joins = {path for path in elsewhere if len(imports(path) & set(LEAVES)) > 1}
    assert {path for path in joins if path not in front and path.parent.name not in JOINTS} == set()


def test_scripts_do_not_import_scripts():
    """Except contact.py, which is a module of drawing as well as a command."""
    found = {name: imports(ROOT / f"{name}.py") & set(SCRIPTS) - {name, "contact"} for name in SCRIPTS}
    assert not {name: others for name, others in found.items() if others}


def test_only_one_place_imports_pyav():
    sources = [*files(*ROOMS), *(ROOT / f"{name}.py" for name in (*SCRIPTS, "cli"))]
    assert {path.parent for path in sources if "av" in imports(path)} == {ROOT / "data" / "av"}


def test_no_utils():
    assert not [path for path in files(*ROOMS) if path.stem in ("utils", "helpers", "common", "misc")]
    assert not set(SCRIPTS) & {"utils", "helpers", "common", "misc"}


@cache
def helped(script: str) -> subprocess.CompletedProcess:
    """A script that was asked for --help; the last line tells how it ended and what it had imported."""
    look = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path('{script}.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print('exit', end.code, sorted({'torch', 'numpy', 'av', 'diffusers', 'matplotlib'} & set(sys.modules)))\n"
    )
    return subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("script", [*SCRIPTS, *BENCHMARKS])
def test_help_answers_before_anything_slow_is_imported(script):
    done = helped(script)
    assert done.stdout.startswith("usage: ") and done.stdout.endswith("exit 0 []\n") and not done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_takes_a_seed_or_only_reads(script):
    """contact.py draws nothing at random."""
    assert ("--seed" in helped(script).stdout) == (script != "contact")


@pytest.mark.parametrize(
    "path", [*files(*ROOMS), *(ROOT / f"{name}.py" for name in SHARED)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_public_names_have_a_docstring(path):
    """`main` is what the module's own docstring is about."""
    tree = parsed(path)
    kinds = (ast.FunctionDef, ast.ClassDef)
    bare = [node.name for node in tree.body if isinstance(node, kinds) and not ast.get_docstring(node)]
    assert ast.get_docstring(tree) and not [name for name in bare if not name.startswith("_") and name != "main"]
