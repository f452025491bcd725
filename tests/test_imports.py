"""Rules for imports: the core without a host, the package without torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
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
OPTIONAL = ("accelerate", "peft", "tensorboard", "tifffile", "imagecodecs", "rich", "cyclopts", "diffusers", "PIL")


def run(code: str) -> list[str]:
    """The lines that the code prints in a new Python process."""
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


@pytest.mark.parametrize("package", ["onestep_sr", "onestep_sr.sr_models"])
def test_public_names_are_imported_when_they_are_used(package):
    """Each name separately, in a new Python process, without a host."""
    code = f"""
import sys
for host in {HOSTS}:
    sys.modules[host] = None
import {package} as package
print("torch" in sys.modules, *(name for name in package.__all__ if name in dir(package)))
from {package} import UserError
print("torch" in sys.modules, issubclass(UserError, Exception))
from {package} import SRModel, UpscaleOptions, load, upscale
print(SRModel.__module__, UpscaleOptions.__module__, load.__module__, upscale.__module__)
print(package.load is load, hasattr(package, "NODE_CLASS_MAPPINGS"))
"""
    before, light, modules, after = run(code)
    assert before.startswith("False ") and {"SRModel", "UpscaleOptions", "UserError", "load", "upscale"} <= set(
        before.split()
    )
    assert light == "False True"
    homes = ("core.model", "core.options", "families.loading", "core.pictures_in")
    assert modules.split() == [SR_MODELS + name for name in homes]
    assert after == "True False"


@pytest.mark.parametrize("command", [[], ["upscale"], ["prepare"], ["train", "teacher"], ["train", "tsd"]])
def test_help_is_shown_without_importing_torch(command):
    code = f"""
import sys
from onestep_sr.sr_models.commands import cli
sys.argv = ["onestep-sr", *{command}, "--help"]
try:
    cli.main()
except SystemExit as end:
    print("ended", end.code)
print(*sys.modules)
"""
    *shown, ended, loaded = run(code)
    assert any((" ".join(command) or "upscale") in line for line in shown)
    assert ended == "ended 0"
    assert {"torch", "numpy", "safetensors"}.isdisjoint(loaded.split())


def test_every_module_of_the_core_imports_without_a_host():
    """Hosts are blocked. A module may only fail to import a missing optional package."""
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
    for part in (
        "core.upscale",
        "families.loading",
        "canvas.tiling",
        "canvas.color",
        "core.schedule",
        "core.step",
        "networks.swin_unet",
        "checkpoints.low_rank",
    ):
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
def test_the_core_never_imports_a_host_or_a_layer_above_it(path):
    assert {name.split(".")[0] for name in imports(path)}.isdisjoint(HOSTS)
    own = {name.split(".")[1] for name in imports(path) if name.startswith("onestep_sr.")}
    assert own <= {"sr_models"}


@pytest.mark.parametrize(
    ("files", "other_host", "other_part"),
    [(NODES, WEBUI, "scripts"), (SCRIPTS, COMFYUI, "nodes")],
    ids=["nodes", "scripts"],
)
def test_a_hosts_part_imports_only_its_own_host_and_the_core(files, other_host, other_part):
    names = {name for path in files for name in imports(path)}
    assert {name.split(".")[0] for name in names}.isdisjoint(other_host)
    assert not any(name.startswith(f"onestep_sr.{other_part}") for name in names)


def test_the_pack_imports_itself_by_relative_names_only():
    """Hosts load the folder under a name of theirs, where `onestep_sr` may not exist and `nodes` is the host's."""
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] not in ("onestep_sr", "sr_models", "nodes", "scripts"), path


# From the ground up: a folder may import those before it and none after it.
FLOORS = (
    "errors",
    "canvas",
    "files",
    "networks",
    "checkpoints",
    "core",
    "codecs.seamless",
    "codecs",
    "measures",
    "families",
    "diffusers_host",
    "jobs",
    "training",
    "training.sd",
    "commands",
)
# What ComfyUI's side is made from; of `files` it needs the rename that leaves no half-written file.
NODES_MAY_IMPORT = {"errors", "canvas", "files", "checkpoints", "core", "codecs", "codecs.seamless", "families"}
SR_MODELS = "onestep_sr.sr_models."
MODULES = {name_of(path): path for path in CORE}
# The package's face hands names on, and `weights` holds files only: neither is a floor, and nothing imports them.
OFF_FLOORS = (ROOT / "sr_models" / "__init__.py", ROOT / "sr_models" / "weights" / "__init__.py")
ON_FLOORS = [path for path in CORE if path not in OFF_FLOORS]


def own_imports(path: Path) -> set[str]:
    """The modules of sr_models that a file imports, wherever in the file."""
    parts = (name.split(".") for name in imports(path) if name.startswith(SR_MODELS))
    prefixes = ([".".join(name[:count]) for count in range(len(name), 2, -1)] for name in parts)
    return {next(prefix for prefix in each if prefix in MODULES) for each in prefixes} - {name_of(path)}


def floor_of(module: str) -> str:
    """The innermost folder of FLOORS that holds a module."""
    inside = module.removeprefix(SR_MODELS)
    return max((floor for floor in FLOORS if f"{inside}.".startswith(f"{floor}.")), key=len)


@pytest.mark.parametrize("path", ON_FLOORS, ids=ids(ON_FLOORS))
def test_a_folder_imports_only_those_before_it(path):
    own = FLOORS.index(floor_of(name_of(path)))
    assert all(FLOORS.index(floor_of(module)) <= own for module in own_imports(path))


def test_no_module_imports_itself_through_others():
    TopologicalSorter({name: own_imports(path) for name, path in MODULES.items()}).prepare()


def test_nodes_are_made_from_the_core_and_not_from_the_command_line():
    assert {floor_of(module) for path in NODES for module in own_imports(path)} <= NODES_MAY_IMPORT


@pytest.mark.parametrize("path", NODES, ids=ids(NODES))
def test_only_host_files_know_comfyui_beyond_its_schemas(path):
    roots = {name.split(".")[0] for name in imports(path)} & set(COMFYUI)
    assert path.name.startswith("host") or roots <= {"comfy_api"}


@pytest.mark.parametrize("path", SHIPPED, ids=ids(SHIPPED))
def test_nothing_is_printed_and_no_path_is_edited(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "path")
