"""Which file may import which: read from the source with `ast`, imports inside functions included."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MATHS = (
    "eschernet_prior/cape.py",
    "eschernet_prior/base/cameras.py",
    "eschernet_prior/procedural",
    "eschernet_prior/frames.py",
)
MATHS += (
    "style_nerf2nerf/swd.py",
    "style_nerf2nerf/features.py",
    "style_nerf2nerf/vgg19.py",
    "style_nerf2nerf/attention.py",
)
EDGE = ("dataparser.py",)  # nerfstudio's side of the procedural scenes


@cache
def imports(file: Path) -> frozenset[str]:
    """Modules that a file imports, by their full names; those for type checkers alone left out."""
    tree = ast.parse(file.read_text("utf8"))
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return frozenset(found)


def violations(files: list[Path], forbidden: tuple[str, ...], allowed: tuple[str, ...] = ()) -> list[str]:
    """Imports of the files that begin with a forbidden name and with no allowed one."""
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in sorted(imports(file))
        if f"{name}.".startswith(forbidden) and not f"{name}.".startswith(allowed or ("-",))
    ]


def below(*places: str) -> list[Path]:
    return [file for place in places for file in sorted((ROOT / place).rglob("*.py")) or [ROOT / place]]


def test_the_prior_never_imports_the_restyling():
    assert len(below("eschernet_prior")) > 30
    assert not violations(below("eschernet_prior"), ("style_nerf2nerf.",))


def test_base_and_procedural_import_nothing_of_the_rest():
    base = "eschernet_prior.base."
    assert not violations(below("eschernet_prior/base"), ("eschernet_prior.",), (base,))
    assert not violations(
        below("eschernet_prior/procedural"), ("eschernet_prior.",), (base, "eschernet_prior.procedural.")
    )


def test_the_maths_import_neither_nerfstudio_nor_diffusers():
    files = [file for file in below(*MATHS) if file.name not in EDGE]
    assert not violations(files, ("nerfstudio.", "diffusers.", "transformers.", "accelerate."), ("diffusers.models.",))


def test_stages_do_not_import_the_edge():
    edge = tuple(f"style_nerf2nerf.{name}." for name in ("config", "pipeline", "trainer"))
    assert not violations(below("style_nerf2nerf/restyler", "style_nerf2nerf/embedded"), edge)
    assert not violations(below("style_nerf2nerf/rounds"), edge)
    assert not violations(below("style_nerf2nerf/restyler"), ("style_nerf2nerf.embedded.", "style_nerf2nerf.rounds."))
