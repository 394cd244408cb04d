"""Every error that the sources can end with, read from the sources: where it is raised, and what it can say.

A text is followed to where it is made: through f-strings, names, both sides of an `if`, and functions that return it. What is
only known when it is raised stands as `…`, or as a word in capitals where the source calls it that.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import chatbot_sft

ROOT = Path(chatbot_sft.__file__).parent
MOST = 48  # texts of one place
DEEPEST = 6  # functions within functions
# What a placeholder is called on the page; all others are `…`.
CALLED = {
    "file": "FILE", "path": "PATH", "folder": "FOLDER", "key": "KEY", "value": "VALUE", "where": "WHERE", "name": "NAME", "flag": "FLAG", "word": "WORD",
    "source": "FILE", "option": "OPTION", "group": "GROUP", "section": "SECTION", "row": "ROW", "command": "COMMAND", "url": "URL", "override": "OVERRIDE",
    "report_file": "FILE", "lock_file": "FILE", "study_file": "FILE", "package": "PACKAGE", "target": "PATH", "setting": "SETTING",
}  # fmt: skip
HINT = "; did you mean …?"
HANDED_IN = ("why", "nothing", "text", "how", "advice", "hint", "refusal", "fault", "choices", "needs")
SYSTEM = "\x01"  # the operating system's own words
PASSES_ON = "\x00"  # an error of ours within an error of ours: it has the form already


@dataclass(frozen=True)
class Site:
    """A place in the sources that raises, and each text that it can have."""

    file: str
    line: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Module:
    tree: ast.Module
    functions: dict[str, ast.FunctionDef]
    constants: dict[str, ast.expr]
    imported: dict[str, tuple[str, str]]  # name → (module, name in it)


@cache
def module(file: Path) -> Module:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    imported = {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return Module(tree, functions, constants, imported)


def _file_of(name: str) -> Path | None:
    """The source of a module of ours."""
    parts = name.split(".")
    if parts[0] != "chatbot_sft":
        return None
    place = ROOT.joinpath(*parts[1:])
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def sites() -> list[Site]:
    """All of them, in the order of the files."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        if file == ROOT / "errors.py":  # what it raises, it is handed
            continue
        for node in ast.walk(module(file).tree):
            for message in _messages(node):
                texts = {tidied(text) for text in _texts(message, file, 0)}
                # A guard keeps out what is empty behind the colon; where nothing is near, nothing can be offered.
                said = {text for text in texts if not text.endswith(":") and _with_hint(text, texts) is None}
                found.append(Site(str(file.relative_to(ROOT)), node.lineno, tuple(sorted(said))))
    return found


def _with_hint(text: str, texts: set[str]) -> str | None:
    """The one of `texts` that is `text` with a HINT in it."""
    return next((other for other in texts if HINT in other and other.replace(HINT, "") == text), None)


def _messages(node: ast.AST) -> Iterator[ast.expr]:
    """What an error that `node` raises says: UserError and its like, refuse_with, sys.exit and parser.error."""
    if not isinstance(node, ast.Call) or not node.args:
        return
    called = ast.unparse(node.func)
    if (
        called == "UserError"
        or called.endswith("parser.error")
        or (called == "sys.exit" and isinstance(node.args[0], ast.JoinedStr))
    ):
        yield node.args[0]
    elif called == "refuse_with":
        for pair in node.args[1:]:
            if isinstance(pair, ast.Tuple):
                yield ast.copy_location(
                    ast.BinOp(
                        ast.BinOp(node.args[0], ast.Add(), ast.Constant(": ")), ast.Add(), pair.elts[1]
                    ),
                    node,
                )


def _texts(node: ast.expr, file: Path, depth: int) -> list[str]:
    """What `node` can be, at most MOST texts."""
    if isinstance(node, ast.Constant):
        return [] if node.value is None else [str(node.value)]  # nothing is said of None
    if isinstance(node, ast.JoinedStr):
        return _joined([_texts(part, file, depth) for part in node.values])
    if isinstance(node, ast.FormattedValue):
        return _texts(node.value, file, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined([_texts(node.left, file, depth), _texts(node.right, file, depth)])
    if isinstance(node, ast.IfExp):
        return _some([*_texts(node.body, file, depth), *_texts(node.orelse, file, depth)])
    if isinstance(node, ast.BoolOp):
        *first, last = node.values
        if isinstance(node.op, ast.And):
            return _texts(last, file, depth)
        before = [text for value in first for text in _texts(value, file, depth) if text]
        if SYSTEM in before or (before and isinstance(last, ast.Constant) and not last.value):
            return before
        return _some([*before, *_texts(last, file, depth)])
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        table = _constant(node.value.id, file)
        if table and isinstance(table[1], ast.Dict):
            values = [
                value.args[1] if ast.unparse(value).startswith("dict.fromkeys(") else value
                for value in table[1].values
            ]
            return _some([text for value in values for text in _texts(value, table[0], depth + 1)])
    if isinstance(node, ast.Attribute) and node.attr == "strerror":
        return [SYSTEM]
    if isinstance(node, ast.Attribute) and ast.unparse(node) in (
        "report.error",
        "board.fault",
        "found.fault",
    ):
        return [PASSES_ON]
    if isinstance(node, ast.Call):
        return _of_call(node, file, depth)
    if isinstance(node, ast.Name):
        return _of_name(node, file, depth)
    return [_placeholder(node)]


def _of_call(node: ast.Call, file: Path, depth: int) -> list[str]:
    called = ast.unparse(node.func).rpartition(".")[2]
    if called in ("said", "one_line", "_refusal"):
        return [PASSES_ON]
    if ast.unparse(node.func).endswith("bound.refusal"):
        return _texts(ast.Call(ast.Name("refusal"), [], []), ROOT / "config" / "key.py", depth)
    if called == "join" and ast.unparse(node.func).startswith("'; '"):
        return [PASSES_ON]
    if called in ("shown_line", "shown") and node.args:
        return _texts(node.args[0], file, depth)
    if called == "amount" and isinstance(node.args[1], ast.Constant):
        return [f"… {node.args[1].value}{'es' if node.args[1].value.endswith('s') else 's'}"]
    if called == "install":
        return ["pip install …"]
    if called in ("did_you_mean", "question"):
        return ["", HINT]
    if called == "str" and node.args:
        return _texts(node.args[0], file, depth)
    if called == "format" and isinstance(node.func, ast.Attribute):
        return [re.sub(r"\{[^}]*\}", "…", text) for text in _texts(node.func.value, file, depth)]
    if called in ("removeprefix", "removesuffix", "replace") and isinstance(node.func, ast.Attribute):
        return _texts(node.func.value, file, depth)
    found = _function(node.func, file)
    if found is None or depth >= DEEPEST:
        return [_placeholder(node)]
    home, function = found
    texts = _returned(home, function, depth + 1)
    return texts if any(re.search(r"\w{2}|[\x00\x01]", text) for text in texts) else [_placeholder(node)]


@cache
def _returned(home: Path, function: ast.FunctionDef, depth: int) -> list[str]:
    values = [
        one.value for one in ast.walk(function) if isinstance(one, ast.Return) and _around(one) is function
    ]
    return _some([text for value in values if value is not None for text in _texts(value, home, depth)])


def _of_name(node: ast.Name, file: Path, depth: int) -> list[str]:
    """What was assigned to the name in this function, or in its module, or in the one it is imported from."""
    function = _around(node)
    assigned: list[ast.expr] = []
    for one in ast.walk(function) if function else ():
        if isinstance(one, (ast.Assign, ast.AugAssign, ast.NamedExpr)):
            for target in getattr(one, "targets", None) or [one.target]:
                if isinstance(target, ast.Name) and target.id == node.id:
                    assigned.append(one.value)
                elif isinstance(target, ast.Tuple) and isinstance(one.value, ast.Tuple):
                    assigned += [
                        value
                        for name, value in zip(target.elts, one.value.elts, strict=False)
                        if isinstance(name, ast.Name) and name.id == node.id
                    ]
        if isinstance(one, ast.ExceptHandler) and one.name == node.id and _within(node, one):
            kinds = ast.unparse(one.type) if one.type else ""
            if kinds in ("UserError", "Unusable", "NotText", "Refused"):
                return [PASSES_ON]
    # `where = f"{where}: …"` goes on with what it was.
    assigned = [
        value
        for value in assigned
        if node.id not in {one.id for one in ast.walk(value) if isinstance(one, ast.Name)}
    ]
    arguments = function.args.args if isinstance(function, ast.FunctionDef) else []
    if any(
        one.arg == node.id and one.annotation and ast.unparse(one.annotation) in ("UserError", "Exception")
        for one in arguments
    ):
        return [PASSES_ON]
    if not assigned and function and node.id in HANDED_IN:
        given = [(home, value) for home, value in _given(function, node.id) if depth < DEEPEST]
        if texts := _some([text for home, value in given for text in _texts(value, home, depth + 1)]):
            return texts
    if not assigned and (home := _constant(node.id, file)):
        assigned, file = [home[1]], home[0]
    if depth >= DEEPEST or not assigned:
        return [_placeholder(node)]
    texts = _some([text for value in assigned for text in _texts(value, file, depth + 1)])
    return (
        texts if any(re.search(r"[a-z]{2}|^$|[\x00\x01]", text) for text in texts) else [_placeholder(node)]
    )


@cache
def _given(function: ast.FunctionDef, parameter: str) -> list[tuple[Path, ast.expr]]:
    """What the calls of `function` in the sources give for `parameter`."""
    names = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    if parameter not in names or isinstance(function, ast.Lambda):
        return []
    place = names.index(parameter) - (names[0] == "self")
    given = []
    for file, call in _calls().get(function.name, []):
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        if parameter in named:
            given.append((file, named[parameter]))
        elif place < len(call.args):
            given.append((file, call.args[place]))
    return given


@cache
def _calls() -> dict[str, list[tuple[Path, ast.Call]]]:
    found: dict[str, list[tuple[Path, ast.Call]]] = {}
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(module(file).tree):
            if isinstance(node, ast.Call):
                found.setdefault(ast.unparse(node.func).rpartition(".")[2], []).append((file, node))
    return found


def _constant(name: str, file: Path) -> tuple[Path, ast.expr] | None:
    here = module(file)
    if name in here.constants:
        return file, here.constants[name]
    if name in here.imported and (home := _file_of(here.imported[name][0])):
        value = module(home).constants.get(here.imported[name][1])
        return (home, value) if value is not None else None
    return None


def _function(node: ast.expr, file: Path) -> tuple[Path, ast.FunctionDef] | None:
    """The function of ours that `node` names."""
    here = module(file)
    if isinstance(node, ast.Name):
        if node.id in here.functions:
            return file, here.functions[node.id]
        origin, name = here.imported.get(node.id, ("", ""))
        home = _file_of(origin)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id == "self":
            return (file, here.functions[node.attr]) if node.attr in here.functions else None
        if node.value.id not in here.imported:
            return _only(node.attr)
        origin, of = here.imported.get(node.value.id, ("", ""))
        home, name = _file_of(f"{origin}.{of}"), node.attr
    elif isinstance(node, ast.Attribute):
        return _only(node.attr)
    else:
        return None
    if home is None:
        return None
    if name in module(home).functions:
        return home, module(home).functions[name]
    return _function(ast.Name(name), home) if name in module(home).imported else None


@cache
def _only(name: str) -> tuple[Path, ast.FunctionDef] | None:
    """The method of that name, where the sources have one."""
    found = [
        (file, module(file).functions[name])
        for file in sorted(ROOT.rglob("*.py"))
        if name in module(file).functions
    ]
    return found[0] if len(found) == 1 else None


def _around(node: ast.AST) -> ast.AST | None:
    """The function that `node` stands in."""
    while (node := getattr(node, "parent", None)) is not None:
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            return node
    return None


def _within(node: ast.AST | None, outer: ast.AST) -> bool:
    while node is not None:
        if node is outer:
            return True
        node = getattr(node, "parent", None)
    return False


def _placeholder(node: ast.expr) -> str:
    name = re.split(r"\W", re.sub(r"[\[(].*", "", ast.unparse(node)))[-1]
    return CALLED.get(name, "…")


def _joined(parts: list[list[str]]) -> list[str]:
    return _some("".join(text) for text in itertools.islice(itertools.product(*parts), MOST))


def _some(texts) -> list[str]:
    return list(dict.fromkeys(texts))[:MOST]


def tidied(text: str) -> str:
    """In one line, as UserError makes it."""
    return " ".join(text.split())


# What a command came to: the errors of its jobs have been told.
OUTCOMES = ("… of … jobs failed", "worker … was stopped by …")
# The form: where it is, a colon, what is wrong, a semicolon, what to do. Or a key that needs another, which says all three.
PLACE = re.compile(
    r"[A-Z]{3,}|…|[a-z_]+\.[a-z_]+|(?<!\w)--?[a-z]|\w+=|^~?(?:seed|run|experiment|training|-m)\b|^/save\b|^''\B|^DatasetLoader\b|^step |^lm-eval"
)
# What is wrong may be said by what would be right, or by all that there is.
RIGHT = re.compile(
    r"\b(?:expected|must be|has to be|have to|needs?|not one of|there (?:is|are)|it has|takes|belongs? to|for instance|such as|as key=value|that names"
    r"|(?:leave|set|name|give|write|take|run|put|raise|start|say|use|pip install|quote|add|make|copy|choose) .)"
)
JARGON = re.compile(
    r"\b(?:OmegaConf|DictConfig|ListConfig|NoneType|struct mode|object_type|full_key|Exception|Traceback|stack trace)\b"
)


def faults(text: str) -> list[str]:
    """What keeps `text` from the form, in words; nothing where it has it."""
    text = text.removeprefix("error: ")
    if PASSES_ON in text or SYSTEM in text or text in OUTCOMES:
        return []
    head, _, advice = text.partition("; ")
    found = []
    if not PLACE.search(head):
        found.append("says not where: a file, a row or a key, and a colon behind it")
    if not (advice or RIGHT.search(text)):
        found.append("says not what to do, behind a semicolon")
    if text.endswith("."):
        found.append("ends with a full stop")
    if jargon := JARGON.search(text):
        found.append(f"speaks of {jargon[0]}")
    return found
