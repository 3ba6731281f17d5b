"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_modules_and_tests_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    lost = []
    for name in sorted(set(re.findall(r"`([a-z_/]+\.py)`", text))):
        places = [ROOT, ROOT / "dpsw_ray", ROOT / "tests"]
        if not any((place / name).exists() for place in places) and ("/" in name or not _somewhere(name)):
            lost.append(name)
    for file, test in sorted(set(re.findall(r"(test_\w+\.py)::(\w+)", text))):
        path = ROOT / "tests" / file
        if not path.exists() or f"def {test}(" not in path.read_text():
            lost.append(f"{file}::{test}")
    assert not lost


def _somewhere(name: str) -> bool:
    """Whether some folder of the library has a module of this name, which a page names beside its folder."""
    return any(ROOT.glob(f"{top}/**/{name}") for top in ("dpsw_ray", "tune", "federated"))
