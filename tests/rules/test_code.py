"""What no file of the package may do."""

from __future__ import annotations

import ast

from tests.rules import source

BANNED_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Reading any of these runs code that the file brings along."""
BANNED_CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "os.popen": "runs a shell",
    "os.system": "runs a shell",
    "torch.load": "unpickles",
    "yaml.load": "builds any object",
    "yaml.unsafe_load": "builds any object",
}
ALLOWED_CALLS = {'torchtrack/active.py: exec("raise KeyboardInterrupt")'}
"""The only way to have Python end by SIGINT after Ctrl-C, once it has forgotten that."""
BANNED_METHODS = {"extractall": "writes where the archive says"}
BROAD = {"Exception", "BaseException"}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def is_broad(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(is_broad(element) for element in caught.elts)
    return caught is None or ast.unparse(caught).removeprefix("builtins.") in BROAD


def test_only_the_guard_catches_everything() -> None:
    found = []
    for path, node in source.nodes():
        # One that ends in a bare raise only tidies up on the way.
        broad = isinstance(node, ast.ExceptHandler) and is_broad(node.type) and ast.unparse(node.body[-1]) != "raise"
        if isinstance(node, ast.Call) and called(node).endswith("suppress"):
            broad = any(is_broad(argument) for argument in node.args)
        if broad and path != source.PACKAGE / "guard.py":
            found.append(source.place(path, node))

    assert found == []


def test_nothing_is_unpickled() -> None:
    found = []
    for path in source.files():
        for node, name in source.imports(path):
            if name.partition(".")[0] in BANNED_MODULES:
                found.append(f"{source.place(path, node)} imports {name}")
            # The test harness talks to processes it started itself, over a socket nobody else has.
            if "ForkingPickler" in name and path.parent != source.PACKAGE / "testing":
                found.append(f"{source.place(path, node)} imports {name}")

    assert found == []


def test_nothing_is_run_that_is_not_our_own() -> None:
    found = []
    for path, node in source.nodes():
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        why = BANNED_CALLS.get(name) or BANNED_METHODS.get(name.rpartition(".")[2])
        if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords):
            why = "runs a shell"
        if (
            why
            and f"{path.relative_to(source.ROOT)}: {ast.get_source_segment(path.read_text(), node)}"
            not in ALLOWED_CALLS
        ):
            found.append(f"{source.place(path, node)}: {name} {why}")

    assert found == []


def test_every_file_says_what_it_is() -> None:
    assert [source.dotted(path) for path in source.files() if not ast.get_docstring(source.tree(path))] == []


def test_functions_stay_short() -> None:
    found = []
    for path, node in source.nodes():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > 60:
                found.append(f"{source.place(path, node)}: the body of {node.name} has {length} lines")

    assert found == []
