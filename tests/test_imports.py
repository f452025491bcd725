"""What may import what: the core without a host, the package without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import onestep_sr
import pytest

ROOT = Path(onestep_sr.__file__).parent
CORE = sorted((ROOT / "sr_models").rglob("*.py"))
NODES, SCRIPTS = sorted((ROOT / "nodes").rglob("*.py")), sorted((ROOT / "scripts").rglob("*.py"))
SHIPPED = [ROOT / "__init__.py", ROOT / "__main__.py", ROOT / "install.py", *CORE, *NODES, *SCRIPTS]
COMFYUI = ("comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server")
WEBUI = ("modules", "backend", "launch", "gradio")
HOSTS = (*COMFYUI, *WEBUI)
OPTIONAL = ("accelerate", "peft", "tensorboard", "tifffile", "imagecodecs", "rich", "typer", "diffusers", "PIL")


def run(code: str) -> list[str]:
    """The lines that the code prints in a fresh Python."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def name_of(path: Path) -> str:
    return ".".join(["onestep_sr", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def test_importing_the_package_imports_neither_torch_nor_a_host():
    loaded = run("import sys, onestep_sr; print(onestep_sr.WEB_DIRECTORY); print(*sys.modules)")
    assert loaded[0] == "./web"
    roots = {name.split(".")[0] for name in loaded[1].split()}
    assert "onestep_sr" in roots
    assert roots.isdisjoint({"torch", "numpy", "safetensors", *HOSTS})


def test_help_is_shown_without_importing_torch():
    code = """
import sys
from onestep_sr.sr_models import cli
sys.argv = ["onestep-sr", "--help"]
try:
    cli.main()
except SystemExit as end:
    print("ended", end.code)
print(*sys.modules)
"""
    *shown, ended, loaded = run(code)
    assert any("upscale" in line for line in shown)
    assert ended == "ended 0"
    assert {"torch", "numpy", "safetensors"}.isdisjoint(loaded.split())


def test_every_module_of_the_core_imports_without_a_host():
    """Hosts are blocked; a module that needs an optional package which is not here may miss that one only."""
    code = f"""
import importlib, sys
for host in {HOSTS}:
    sys.modules[host] = None
for name in {[name_of(path) for path in CORE]}:
    try:
        importlib.import_module(name)
        print("imported", name)
    except ImportError as error:
        if (error.name or "").split(".")[0] not in {OPTIONAL}:
            raise
        print("misses", name)
"""
    lines = run(code)
    assert len(lines) == len(CORE) > 20
    for part in ("upscale", "loading", "tiling", "color", "schedule", "step", "networks.swin_unet", "checkpoints.own"):
        assert f"imported onestep_sr.sr_models.{part}" in lines


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, relative ones resolved."""
    package = name_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found |= {".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return found


@pytest.mark.parametrize("path", CORE, ids=ids(CORE))
def test_the_core_never_imports_a_host_or_what_stands_before_it(path):
    assert {name.split(".")[0] for name in imports(path)}.isdisjoint(HOSTS)
    own = {name.split(".")[1] for name in imports(path) if name.startswith("onestep_sr.")}
    assert own <= {"sr_models"}


@pytest.mark.parametrize(
    ("files", "other_host", "other_part"),
    [(NODES, WEBUI, "scripts"), (SCRIPTS, COMFYUI, "nodes")],
    ids=["nodes", "scripts"],
)
def test_a_hosts_part_knows_its_own_host_and_the_core_only(files, other_host, other_part):
    names = {name for path in files for name in imports(path)}
    assert {name.split(".")[0] for name in names}.isdisjoint(other_host)
    assert not any(name.startswith(f"onestep_sr.{other_part}") for name in names)


def test_the_pack_imports_itself_by_relative_names_only():
    """Hosts load the folder under a name of theirs, where `onestep_sr` may not exist and `nodes` is the host's."""
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] not in ("onestep_sr", "sr_models", "nodes", "scripts"), path


ARROWS = {
    "sr_model": {"recipe", "step"},
    "recipe": {"color", "schedule", "step"},
    "step": {"schedule"},
    "schedule": set(),
    "tiling": {"errors"},
    "color": {"errors", "image"},
    "image": {"errors"},
    "errors": set(),
    "memory": set(),
    "tiled_step": {"errors", "memory", "sr_model", "step", "tiling"},
    "noise": set(),
    "geometry": {"errors", "recipe"},
    "forecast": {"geometry", "image", "recipe", "tiling"},
    "upscale": {"color", "errors", "geometry", "image", "memory", "noise", "sr_model", "tiled_step", "tiling"},
}


@pytest.mark.parametrize(("module", "allowed"), ARROWS.items())
def test_arrows_inside_the_core_point_one_way(module, allowed):
    names = {name.split(".")[2] for name in imports(ROOT / "sr_models" / f"{module}.py") if "sr_models." in name}
    assert names <= allowed


@pytest.mark.parametrize("path", SHIPPED, ids=ids(SHIPPED))
def test_nothing_is_printed_and_no_path_is_edited(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "path")
