"""The code that an exported folder carries, so that it loads where there is no `spear`.

transformers copies a model's Python files out of its folder and imports them, when it is told to
trust them. The files must lie side by side and import each other relatively. So every module of
ours that the classes of `spear.hub.hf` need is written as one flat file, its imports of other
modules of ours turned into relative ones: `spear.zipformer.layer` is `spear_zipformer_layer.py`.
Packages that are used where they are installed (numba) are imported in `try` blocks, which
transformers does not take for requirements.
"""

import ast
from pathlib import Path

from spear import __version__

ENTRY_POINTS = {
    "spear.hub.hf.config": "configuration_spear",
    "spear.hub.hf.features": "feature_extraction_spear",
    "spear.hub.hf.model": "modeling_spear",
}
"""Modules that `auto_map` names, and what their files are called in the folder."""

AUTO_MAP = {
    "AutoConfig": "configuration_spear.SpearConfig",
    "AutoModel": "modeling_spear.SpearModel",
    "AutoModelForCTC": "modeling_spear.SpearForCTC",
    "AutoModelForAudioClassification": "modeling_spear.SpearForAudioClassification",
    "AutoFeatureExtractor": "feature_extraction_spear.SpearFeatureExtractor",
}
"""Which file of a folder holds the class for which Auto class, as `config.json` says it."""

OPTIONAL = frozenset({"numba", "llvmlite"})
_OURS = "spear"


def write_code(folder: Path) -> None:
    """Writes the Python files of the model classes into a folder.

    Args:
        folder: A model folder that exists; files of the same names are replaced.
    """
    for name, source in flat_sources().items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")


def flat_sources() -> dict[str, str]:
    """Returns the source of every module that the classes need, by the name of its flat file."""
    header = f"# From spear {__version__} (Apache-2.0), written by `spear export`.\n"
    sources: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    waiting = list(ENTRY_POINTS)
    while waiting:
        module = waiting.pop()
        if flat_name(module) in sources:
            continue
        text = _path_of(module).read_text(encoding="utf-8")
        needs[module] = _modules_of_ours(ast.parse(text))
        sources[flat_name(module)] = header + _with_relative_imports(text)
        waiting += needs[module]
    for module in ENTRY_POINTS:
        name = flat_name(module)
        sources[name] += _naming(_all_needed(module, needs)) + _registrations(name)
    return sources


def flat_name(module: str) -> str:
    """Returns what the file of a module is called, without its suffix."""
    return ENTRY_POINTS.get(module, module.replace(".", "_"))


def _all_needed(module: str, needs: dict[str, list[str]]) -> list[str]:
    """Returns the modules that one needs, and that these need."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = set(needs[waiting.pop()]) - found
        found |= new
        waiting += new
    return sorted(found)


def _naming(modules: list[str]) -> str:
    """Returns lines that name files and do nothing."""
    names = "".join(f"    from .{flat_name(module)} import __name__\n" for module in modules)
    return f"\nif False:  # transformers 4 copies the files that this one names, no others\n{names}"


def _registrations(name: str) -> str:
    """Returns lines that make transformers save the code with the classes of a file."""
    places = [(auto, *place.split(".")) for auto, place in AUTO_MAP.items()]
    calls = (
        f'{cls}.register_for_auto_class("{auto}")' for auto, file, cls in places if file == name
    )
    return "\n" + "\n".join(calls) + "\n"


def _path_of(module: str) -> Path:
    return Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py")


def _imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _package(node: ast.Import | ast.ImportFrom) -> str:
    """Returns the outermost package of an import; each of ours has one in a line."""
    name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
    assert name is not None, ast.unparse(node)
    return name.split(".")[0]


def _modules_of_ours(tree: ast.Module) -> list[str]:
    modules = []
    for node in _imports(tree):
        if _package(node) == _OURS:
            assert isinstance(node, ast.ImportFrom) and node.module, ast.unparse(node)
            modules.append(node.module)
    return modules


def _with_relative_imports(text: str) -> str:
    """Returns a module's source as it stands in a folder of flat files."""
    lines = text.splitlines(keepends=True)
    for node in _imports(ast.parse(text)):
        first, end = node.lineno - 1, node.end_lineno
        if _package(node) == _OURS:
            assert isinstance(node, ast.ImportFrom) and node.module
            relative = f"from .{flat_name(node.module)} import"
            lines[first] = lines[first].replace(f"from {node.module} import", relative)
        elif _package(node) in OPTIONAL:
            lines[first:end] = [_tried("".join(lines[first:end]), node.col_offset)]
            lines[first + 1 : first + 1] = [""] * (
                (end or 0) - first - 1
            )  # numbers stay as they are
    return "".join(lines)


def _tried(statement: str, indent: int) -> str:
    """Puts an import into a `try` block that changes nothing when it runs."""
    space = " " * indent
    inner = "".join(f"    {line}" for line in statement.splitlines(keepends=True))
    return f"{space}try:\n{inner}{space}except ImportError:\n{space}    raise\n"
