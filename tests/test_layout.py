"""The walls of the house: what a package may import, how large its face is, that nothing loads a pickle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "vlkd_runtime": ROOT / "runtime" / "vlkd_runtime",
    "vlkd_bench": ROOT / "benchmarks" / "vlkd_bench",
    "vlkd_distill": ROOT / "distill" / "vlkd_distill",
    "vlkd_compress": ROOT / "compress" / "vlkd_compress",
    "vlkd_edge": ROOT / "cli" / "vlkd_edge",
}
TORCH = {"torch", "torchvision", "timm", "open_clip"}
MAY_IMPORT = {
    "vlkd_runtime": set(),
    "vlkd_bench": {"vlkd_runtime"},
    "vlkd_distill": {"vlkd_bench", "vlkd_runtime"},
    "vlkd_compress": {"vlkd_bench", "vlkd_runtime"},
    "vlkd_edge": {"vlkd_bench", "vlkd_runtime", "vlkd_distill", "vlkd_compress"},
}


def modules(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of everything a module imports absolutely, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_every_module_was_seen() -> None:
    counts = {package: len(modules(package)) for package in PACKAGES}
    assert all(count >= 8 for count in counts.values()), counts
    assert sum(counts.values()) >= 100, counts


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_arrows_point_one_way(package: str) -> None:
    others = set(PACKAGES) - {package}
    crossing = {path.name: imported(path) & others - MAY_IMPORT[package] for path in modules(package)}
    assert not {name: found for name, found in crossing.items() if found}


@pytest.mark.parametrize("package", ["vlkd_runtime", "vlkd_bench", "vlkd_compress"])
def test_no_torch_where_it_must_not_be(package: str) -> None:
    found = {path for path in modules(package) if imported(path) & TORCH}
    # Training with quantization and pruning are torch's, in modules that nothing imports before they are asked for.
    torches = {
        "qat": ("network", "operators", "rounding", "training"),
        "prune": ("channels", "costs", "cutting", "harm", "norms", "sparsity"),
    }
    training = {PACKAGES[package] / part / f"{name}.py" for part, names in torches.items() for name in names}
    assert found == (training if package == "vlkd_compress" else set())


def test_compression_without_training_loads_no_torch() -> None:
    asked = (
        "import sys; sys.modules['torch'] = None\n"
        "import vlkd_edge.qat, vlkd_edge.pruning, vlkd_edge.compressing, vlkd_edge.ship, vlkd_compress.qat.settings"
    )
    subprocess.run([sys.executable, "-c", asked], check=True)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_faces_are_short_and_modules_do_not_import_them(package: str) -> None:
    assert len((PACKAGES[package] / "__init__.py").read_text().splitlines()) <= 45
    assert not {
        path.name for path in modules(package) if package in imported(path) and path.name != "__init__.py"
    }


def test_no_pickle_is_loaded() -> None:
    for package in PACKAGES:
        for path in modules(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "torch.load",
                    "np.load",
                    "numpy.load",
                ):
                    safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert safe.get("weights_only") == "True" or safe.get("allow_pickle") == "False", path
            assert not imported(path) & {"pickle", "dill", "joblib", "shelve"}, path


def test_runtime_and_benchmarks_import_with_numpy_and_pillow_alone() -> None:
    script = (
        "import sys, vlkd_runtime, vlkd_bench\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'matplotlib', 'jinja2', 'timm', 'open_clip'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
