"""Imports point one way, and files stay short: read from the source with ast, nothing imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"dropgen_rt": "dropgen_rt", "kernels": "dropgen_rt.kernels", "export": "dropgen_rt.export",
         "train": "dropgen_rt.train"}  # fmt: skip
OTHER_ROOMS = ("dropgen_rt.kernels", "dropgen_rt.export", "dropgen_rt.train")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60

FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def room_of(path):
    return path.relative_to(ROOT).parts[0]


def imports(tree):
    """The dotted names that import statements below ``tree`` name: ``from a import b`` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_outside_functions(tree):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(ast.Module([node], []))
        else:
            yield from imports_outside_functions(node)


def is_of(name, *packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def files(room):
    found = [path for path in FILES if room_of(path) == room]
    assert found, f"no files in {room}"
    return found


def offenders(paths, forbidden, *, read=imports):
    return [f"{path.relative_to(ROOT)}: {name}" for path in paths for name in read(parsed(path)) if forbidden(name)]


def test_the_reader_of_imports_sees_them():
    tree = ast.parse("import a.b\nfrom c import d\nif 1:\n    import e\ndef f():\n    import g\nclass H:\n    import i")
    assert set(imports(tree)) == {"a.b", "c.d", "e", "g", "i"}
    assert set(imports_outside_functions(tree)) == {"a.b", "c.d", "e", "i"}


def test_the_runtime_never_imports_training_or_export():
    heavy = "torch", "monai", "onnxruntime", "onnxscript", "dropgen_rt.train", "dropgen_rt.export"
    runtime = [path for path in files("dropgen_rt") if path.name != "onnxruntime_engine.py"]
    commands = sorted((ROOT / "dropgen_rt").glob("cli*.py"))
    assert offenders(runtime, lambda name: is_of(name, *heavy), read=imports_outside_functions) == []
    assert offenders([path for path in runtime if path not in commands], lambda name: is_of(name, *heavy)) == []


def test_engine_libraries_wait_until_an_engine_is_opened():
    owners = {path.name: "openvino" for path in files("dropgen_rt") if path.name.startswith("openvino_")}
    owners |= {"onnxruntime_engine.py": "onnxruntime"}
    for path in files("dropgen_rt"):
        own = owners.get(path.name, "")
        others = [name for name in ("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx") if name != own]
        assert offenders([path], lambda name, others=others: is_of(name, *others)) == []


def test_kernels_are_a_leaf():
    def forbidden(name):
        standard = name.split(".")[0] in sys.stdlib_module_names
        return not (standard or is_of(name, "numpy", "dropgen_rt.kernels", "dropgen_rt.errors"))

    assert offenders(files("kernels"), forbidden) == []


def test_training_never_imports_export():
    assert offenders(files("train"), lambda name: is_of(name, "dropgen_rt.export", "onnx", "onnxruntime")) == []


def test_export_never_imports_monai():
    assert offenders(files("export"), lambda name: is_of(name, "monai")) == []


def test_nothing_imports_the_command_line():
    assert offenders(FILES, lambda name: is_of(name, "dropgen_rt.cli")) == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("SimpleITK", {f"dropgen_rt/{name}.py" for name in ("volume", "surface", "components")}),
        ("openvino", {f"dropgen_rt/engines/openvino_{name}.py" for name in ("engine", "int8", "means", "upsampling")}),
        ("PIL", {"dropgen_rt/picture.py"}),
        (
            "click",
            {
                "dropgen_rt/cli.py",
                "dropgen_rt/cli_bench.py",
                "dropgen_rt/cli_engines.py",
                "dropgen_rt/cli_export.py",
                "dropgen_rt/cli_inspect.py",
                "dropgen_rt/cli_models.py",
                "dropgen_rt/cli_train.py",
                "dropgen_rt/console.py",
                "train/report.py",
            },
        ),
    ],
)
def test_a_library_has_one_place(package, allowed):
    found = {line.split(":")[0] for line in offenders(FILES, lambda name: is_of(name, package))}
    assert found and found <= allowed


def test_geometry_and_errors_stand_at_the_bottom():
    bottom = [ROOT / "dropgen_rt" / name for name in ("errors.py", "geometry.py")]
    assert offenders(bottom, lambda name: is_of(name, "dropgen_rt") and not is_of(name, "dropgen_rt.errors")) == []


def test_no_module_under_two_names():
    assert offenders(FILES, lambda name: is_of(name, "kernels", "export", "train")) == []


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short():
    long = {}
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert long == {}


@pytest.mark.parametrize("module", ["dropgen_rt", "dropgen_rt.cli", "dropgen_rt.infer", "dropgen_rt.evaluate"])
def test_importing_the_runtime_never_imports_torch(module):
    check = f"import sys, {module}; print(sorted({{'torch', 'monai', 'onnxruntime'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
