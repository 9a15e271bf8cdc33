"""Who may import what: the packages form layers, and each foreign package has one owner."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

# For each of our packages what it may import besides itself and the standard library; None: whatever
# is installed, and every package above it in this table.
LAYERS: dict[str, set[str] | None] = {
    "pipeline": set(),
    "retry": {"tenacity", "pybreaker"},
    "stages": {"pipeline", "retry"},
    "chat_gateway": None,
}
# Not ours to ship, so nobody may depend on them.
UNSHIPPED = {"tests", "bench"}
FORBIDDEN = {"stages": {"socket", "socketserver", "multiprocessing", "subprocess"}}


def imports(source: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import in a file, also of those inside functions and for types."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [package if node.level else node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [str(one.value) for one in node.args[:1] if isinstance(one, ast.Constant)]
        for name in names:
            yield node.lineno, name.partition(".")[0]  # type: ignore[attr-defined]  # every import has a line


def problem_with(package: str, imported: str) -> str | None:
    """What is wrong when this package imports that one."""
    if imported in FORBIDDEN.get(package, ()):
        return "forbidden"
    if imported == package or imported in sys.stdlib_module_names:
        return None
    allowed = LAYERS[package]
    if imported in UNSHIPPED or (allowed is not None and imported not in allowed):
        return "upward" if imported in LAYERS else "foreign"
    return None


def violations(root: Path) -> list[str]:
    """Every import below `root` that breaks a rule, one line of text for each."""
    found: list[str] = []
    owners: dict[str, set[str]] = defaultdict(set)
    for package in LAYERS:
        for source in sorted((root / package).rglob("*.py")):
            for line, imported in imports(source, package):
                if imported not in LAYERS and imported not in sys.stdlib_module_names:
                    owners[imported].add(package)
                problem = problem_with(package, imported)
                if problem is not None:
                    found.append(f"{source.relative_to(root)}:{line}: {problem} import of {imported}")
    shared = {name: sorted(packages) for name, packages in owners.items() if len(packages) > 1}
    return found + [f"{name}: shared by {', '.join(packages)}" for name, packages in shared.items()]


def test_packages_import_downward_only() -> None:
    """No import of ours breaks a rule."""
    assert violations(ROOT) == []


def test_packages_are_seen_when_their_imports_are_walked() -> None:
    """The walker finds the imports that are known to be there, so that it cannot pass by seeing nothing."""
    seen = {
        package: {name for source in (ROOT / package).rglob("*.py") for _, name in imports(source, package)}
        for package in LAYERS
    }
    assert "asyncio" in seen["pipeline"]
    assert {"tenacity", "pybreaker"} <= seen["retry"]
    assert "chat_gateway" in seen["chat_gateway"]
    assert {"pipeline", "stages"} <= seen["chat_gateway"]


@pytest.mark.parametrize(
    ("file", "code", "expected"),
    [
        ("pipeline/channel.py", "import stages.message", "1: upward import of stages"),
        ("pipeline/deep/er.py", "from retry import policy", "1: upward import of retry"),
        ("pipeline/channel.py", "import tenacity", "1: foreign import of tenacity"),
        ("retry/policy.py", "from pipeline.permits import Permits", "1: upward import of pipeline"),
        ("retry/policy.py", "import os, structlog.typing", "1: foreign import of structlog"),
        ("stages/route.py", "def f():\n    from chat_gateway import hub", "2: upward import of chat_gateway"),
        ("stages/route.py", "if TYPE_CHECKING:\n    import chat_gateway", "2: upward import of chat_gateway"),
        ("stages/route.py", "importlib.import_module('chat_gateway.x')", "1: upward import of chat_gateway"),
        ("stages/route.py", "from multiprocessing import Process", "1: forbidden import of multiprocessing"),
        ("stages/route.py", "import os, socket", "1: forbidden import of socket"),
        ("stages/route.py", "__import__('subprocess')", "1: forbidden import of subprocess"),
        ("chat_gateway/cli.py", "from tests import conftest", "1: foreign import of tests"),
    ],
)
def test_walker_reports_import_when_it_breaks_a_rule(
    tmp_path: Path, file: str, code: str, expected: str
) -> None:
    """A planted import of each kind is found, with its place."""
    source = tmp_path / file
    source.parent.mkdir(parents=True)
    source.write_text(code, encoding="utf-8")
    assert violations(tmp_path) == [f"{file}:{expected}"]


def test_walker_reports_foreign_package_when_two_of_ours_import_it(tmp_path: Path) -> None:
    """A third-party package belongs to one of ours alone."""
    for file in ("retry/policy.py", "chat_gateway/gateway.py"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("import tenacity", encoding="utf-8")
    assert violations(tmp_path) == ["tenacity: shared by chat_gateway, retry"]


def test_walker_reports_nothing_when_imports_point_downward(tmp_path: Path) -> None:
    """Allowed imports are let pass, relative ones too."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/route.py").write_text(
        "import asyncio\nfrom . import x\nfrom .message import Batch\nimport pipeline.channel, retry\n",
        encoding="utf-8",
    )
    (tmp_path / "chat_gateway").mkdir()
    (tmp_path / "chat_gateway/cli.py").write_text("import typer, socket, stages\n", encoding="utf-8")
    assert violations(tmp_path) == []
