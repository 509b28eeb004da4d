"""Plain technical English: words that docstrings, options' help and messages of the packages do without."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = re.compile(r"\b(shall|anew|likewise|to be had|nobody|somebody|everybody|told|wish|lies|goes? on)\b", re.I)


def test_texts_use_none_of_these_words():
    found = []
    for package in ("eschernet_prior", "style_nerf2nerf"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found += [f"{file.relative_to(ROOT)}:{node.lineno}: {word}" for word in WORDS.findall(node.value)]
    assert not found
