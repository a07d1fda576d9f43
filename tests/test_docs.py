"""The documents are true: what they list is what the code has, and what they quote is what the code says.

Some parts of docs/ are generated: they stand between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``. After a change of the
code, ``python -m tests.test_docs`` writes them anew; everything else is written by hand and checked here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from src import config, counters, data, error_handler, main, reconciliation, ring_buffer, slots, sockets, supervisor, teacher
from src.bus import Topic
from src.exchange import faults, market, options, orders, recorded, rest, ws_api
from src.exchange.streams import MARKET, PUBLIC, route_of
from src.journal import Journal
from src.venue import errors
from tests.test_exchange_streams import LIVELY, lively
from tests.test_exchange_wire import Client, exchange
from tests.test_tidy import LAYERS, ROOMS

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
SOURCES = sorted((ROOT / "src").rglob("*.py"))
INTERFACE = (
    "🚀 A.E.G.I.S. v8.0", "🔇 Log Level: WARNING", "💓 System Monitor: Enabled (15-min heartbeat)", "🔄 Ring buffer ready: N bytes",
    "🚀 Launching Feed + Brain + Orchestrator processes...", "📡 Feed process started (PID=N)", "🧠 Brain process started (PID=N)",
    "🔄 Orchestrator process started (PID=N)", "✅ All processes running", "🔄 Entering Process Monitor Loop (keep-alive)",
    "⚠️ RingBuffer Overflow!", "🔴 CRITICAL: X process died! Container will restart.",
    "🔄 Cache reconciliation task started (interval: 900s)", "✅ Cache reconciled: N positions on Binance",
    "📊 Report: X matches, Y mismatches", "⚠️ Position mismatches detected",
)  # fmt: skip
"""Lines that people watch for, word for word. Changing one is a change of an interface."""
LETTERS_MIN = 6
"""A string with fewer letters of its own could be anything."""
README_HEADINGS = ("Two commands", "What you will see", "Settings", "Safety", "Going live")


# --- reading documents and sources -----------------------------------------------------------------------------------------------------


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def table_under(name: str, heading: str) -> list[list[str]]:
    """The rows of the first table below that heading, without its head; backticks are taken off."""
    lines = text_of(name).splitlines()
    marks = [i for i, line in enumerate(lines) if line.lstrip("#") != line and line.lstrip("# ") == heading]
    assert len(marks) == 1, f"{name} has {len(marks)} headings {heading!r}"
    rows: list[list[str]] = []
    for line in lines[marks[0] + 1:]:
        if line.startswith("|"):
            rows.append([cell.strip().replace("`", "").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows or line.startswith("#"):
            break
    assert len(rows) > 2, f"{name}: no table below {heading!r}"
    return rows[2:]


def column(name: str, heading: str, index: int = 0) -> list[str]:
    return [row[index] for row in table_under(name, heading)]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def pattern_of(node: ast.expr) -> str:
    """What a string, plain or with values in it, looks like: a regular expression. Backticks are left out, as in the documents' cells."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return ".*".join(re.escape(part) for part in node.value.replace("`", "").split("{}"))
    if isinstance(node, ast.JoinedStr):
        parts = (re.escape(str(part.value).replace("`", "")) if isinstance(part, ast.Constant) else ".*" for part in node.values)
        return "".join(parts)
    return ".*"


def said_in(tree: ast.AST) -> Iterator[str]:
    """Every string of a source that says something, as a pattern."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in inside:
            pattern = pattern_of(node)
            if sum(letter.isalpha() for letter in pattern) >= LETTERS_MIN:
                yield pattern


@cache
def everything_said() -> tuple[str, ...]:
    return tuple(pattern for path in SOURCES for pattern in said_in(tree_of(path)))


@cache
def expressions() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.DOTALL) for pattern in dict.fromkeys(everything_said()))


def is_said(line: str) -> bool:
    """Whether a source can say this line; a line that ends in … is the beginning of one."""
    if line.endswith("…"):
        start = re.escape(line.removesuffix("…"))
        return any(pattern.startswith(start) for pattern in everything_said())
    return any(expression.fullmatch(line) for expression in expressions())


def calls(path: str, function: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree_of(ROOT / path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == function:
            yield node


# --- generated parts -------------------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def code(*words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def default_of(default: Any) -> str:
    """A default, by mode where modes differ."""
    if not callable(default):
        return code(plain(default)) if plain(default) else "empty"
    by_mode = {mode: plain(default(mode)) for mode in config.MODES}
    usual = max(by_mode.values(), key=list(by_mode.values()).count)
    return ", ".join(f"{mode} `{value}`" for mode, value in by_mode.items() if value != usual) + f", else `{usual}`"


def allowed(meta: Any) -> str:
    if "choices" in meta:
        return code(*meta["choices"])
    low = f"above {meta['above']}" if "above" in meta else str(meta.get("low", ""))
    return f"{low} to {meta['high']:,}".strip() if "high" in meta else ("kept secret" if meta["secret"] else "")


def settings() -> str:
    rows = []
    for spec in fields(config.Settings):
        meta = spec.metadata
        kind = "0 or 1" if spec.type == "bool" else allowed(meta)
        alias = f" (also `{meta['alias']}`)" if "alias" in meta else ""
        rows.append([code(spec.name.upper()) + alias, default_of(meta["default"]), "" if meta["unit"] == kind else meta["unit"], kind, meta["doc"]])
    return table(["setting", "default", "unit", "allowed", "what"], rows)


def layers() -> str:
    names = ("ground", "words", "means", "market", "judgement", "organs", "composition")
    rows: list[list[str]] = [[str(n), name, code(*row)] for n, (name, row) in enumerate(zip(names, LAYERS, strict=True), 1)]
    rooms = [["", f"room `{room}/`", "imports only " + code(*sorted(given))] for room, given in ROOMS.items()]
    return table(["", "layer", "modules, lowest first"], rows + rooms)


def modules() -> str:
    rows = []
    for path in SOURCES:
        said = (ast.get_docstring(tree_of(path)) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`").split(":class:")
        sentence = re.split(r"(?<=[.])\s+(?=[A-Z\"])", "".join(said))[0]
        if path.name != "__init__.py" or len(path.relative_to(ROOT / "src").parts) > 1:
            rows.append([code(path.relative_to(ROOT)), sentence])
    return table(["module", "what it is"], rows)


def transitions(module: Any, given: Any) -> str:
    """A table of states, with the remarks that stand behind its rows in the source."""
    rows = re.findall(r"\((?:\w+\.)*_?(\w+), (?:\w+\.)*(\w+)\): [\w.]+,  # (.+)", inspect.getsource(module))
    remarks = {(state, event): remark for state, event, remark in rows}

    def name(x: Any) -> str:
        return f"`{x.value if isinstance(x.value, str) else x.name}`"

    return table(["state", "event", "next", "remark"],
                 [[name(state), name(event), name(after), remarks.get((state.name, event.name), "")] for (state, event), after in given.items()])


def slot_fields() -> str:
    dtype = ring_buffer.SLOT_DTYPE
    rows = [[dtype.fields[n][1], code(n), dtype.fields[n][0].name] for n in dtype.names]  # type: ignore[index, union-attr]
    return table(["byte", "field", "type"], rows)


def control_words() -> str:
    words = {name: value for name, value in vars(ring_buffer).items() if name.startswith("WORD_")}
    rows = [[value, code(name.removeprefix("WORD_").lower())] for name, value in sorted(words.items(), key=lambda item: item[1])]
    return table(["word", "name"], [*rows, [ring_buffer.CONTROL_WORDS, "first slot"]])


def journal_tables() -> str:
    db = sqlite3.connect(":memory:")
    db.executescript(next(v for n, v in vars(importlib.import_module("src.journal")).items() if n == "_SCHEMA"))
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY rowid")]
    return table(["table", "columns"], [[code(n), code(*(c[1] for c in db.execute(f"PRAGMA table_info({n})")))] for n in names])


def reactions() -> str:
    rows = []
    for reaction in errors.Reaction:
        codes = [str(number) for number, (found, _) in errors.REACTIONS.items() if found is reaction]
        rows.append([code(reaction.name), code(errors._CLASSES[reaction].__name__), ", ".join(codes)])
    return table(["reaction", "becomes", "codes of the venue"], rows)


def error_classes() -> str:
    found = [cls for cls in vars(error_handler).values() if inspect.isclass(cls) and issubclass(cls, error_handler.AegisError)]
    rows = [[code(cls.__name__), (cls.__doc__ or "").split("\n\n")[0].replace("``", "`")] for cls in found if cls is not error_handler.AegisError]
    return table(["class", "what we do next"], rows)


def dataclass_rows(cls: Any) -> str:
    """Fields with their defaults and the remark behind them in the source."""
    source = inspect.getsource(cls)
    remarks = dict(re.findall(r"^\s+(\w+): .*?# (.+)$", source, re.MULTILINE))
    return table(["name", "default", "what"], [[code(f.name), code(plain(f.default)), remarks.get(f.name, "")] for f in fields(cls)])


def rule_book() -> str:
    return table(["part", "weight", "what it rewards"], [[code(part), weight, what] for part, weight, what in teacher.RULES])


def fenced(text: str) -> str:
    return "```\n" + text + "\n```"


GENERATED: dict[str, Callable[[], str]] = {
    "settings": settings, "layers": layers, "modules": modules, "slot fields": slot_fields, "control words": control_words,
    "slot transitions": lambda: transitions(slots, slots.TRANSITIONS), "socket transitions": lambda: transitions(sockets, sockets.NEXT),
    "order life": lambda: transitions(orders, orders.ORDER_LIFE), "algo life": lambda: transitions(orders, orders.ALGO_LIFE),
    "journal tables": journal_tables, "error classes": error_classes, "reactions": reactions, "rule book": rule_book,
    "recordings": lambda: fenced(data.ACCEPTED), "raw frames": lambda: fenced(recorded.ACCEPTED),
    "switches": lambda: dataclass_rows(options.Switches), "venue limits": lambda: dataclass_rows(options.Limits),
}  # fmt: skip
_BLOCK = re.compile(r"(<!-- generated: ([\w ]+) -->\n)(.*?)(\n<!-- end of \2 -->)", re.DOTALL)


def renewed(text: str) -> str:
    return _BLOCK.sub(lambda block: block[1] + GENERATED[block[2]]() + block[4], text)


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_generated_parts_are_what_the_code_says(path: Path) -> None:
    blocks = zip(_BLOCK.findall(path.read_text()), _BLOCK.findall(renewed(path.read_text())), strict=True)
    stale = [new[1] for old, new in blocks if old[2] != new[2]]
    assert not stale, f"{path.name}: {', '.join(stale)} differ from the code: run python -m tests.test_docs"


def test_every_generated_part_stands_once() -> None:
    standing = [block[1] for path in DOCS for block in _BLOCK.findall(path.read_text())]
    assert sorted(standing) == sorted(GENERATED)


# --- settings and commands -------------------------------------------------------------------------------------------------------------


def test_the_example_of_settings_is_the_committed_one() -> None:
    assert text_of(".env.example") == config.example(), "write it anew from src.config.example()"


def test_every_setting_stands_in_operations_and_in_the_example() -> None:
    for spec in fields(config.Settings):
        name = spec.name.upper()
        assert f"`{name}`" in text_of("docs/operations.md") and f"\n# {name}=" in text_of(".env.example"), name


def test_what_looks_like_a_setting_is_one() -> None:
    """A renamed setting leaves no trace in the documents."""
    known = {spec.name.upper() for spec in fields(config.Settings)} | {spec.metadata.get("alias") for spec in fields(config.Settings)}
    for name in ("README.md", "docs/operations.md"):
        for word in re.findall(r"\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)=", text_of(name)):
            assert word in known | {"PYTHONUNBUFFERED", "NUMBA_CACHE_DIR", "RECORDED_DATA"}, f"{name} speaks of {word}"


def test_every_command_is_documented_and_none_else() -> None:
    words = set(re.findall(r"^  (\w+) ", main.USAGE, re.MULTILINE))
    in_code = {key.value for node in ast.walk(tree_of(ROOT / "src/main.py")) if isinstance(node, ast.Dict) for key in node.keys
               if isinstance(key, ast.Constant)} | {"exchange"}  # fmt: skip
    assert words == in_code
    assert words == set(column("docs/operations.md", "Commands"))
    for name in ("README.md", *(f"docs/{path.name}" for path in DOCS)):
        for word in re.findall(r"-m src\.main ([a-z]+)\b", text_of(name)):
            assert word in words, f"{name}: there is no command {word}"


def test_every_option_of_the_exchange_is_documented() -> None:
    said = {call.args[0].value for call in calls("src/exchange/command.py", "add_argument") if isinstance(call.args[0], ast.Constant)}
    assert {row.split()[0] for row in column("docs/exchange.md", "Options")} == said


def test_exit_codes_are_those_of_the_supervisor() -> None:
    codes = [supervisor.EXIT_OK, supervisor.EXIT_DIED, supervisor.EXIT_FATAL]
    assert [int(row) for row in column("docs/operations.md", "Exit codes")] == codes


# --- what it says ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", INTERFACE)
def test_a_line_that_is_an_interface_is_in_the_source_and_in_the_document(line: str) -> None:
    assert is_said(line), f"no source says {line!r}"
    assert line in column("docs/operations.md", "Lines that are an interface")


def test_no_other_line_is_called_an_interface() -> None:
    assert sorted(column("docs/operations.md", "Lines that are an interface")) == sorted(INTERFACE)


def test_quoted_lines_can_be_said() -> None:
    for heading in ("Other lines worth knowing", "Runbook"):
        for line in re.findall(r"`([^`]*)`", "\n".join(raw_cells("docs/operations.md", heading))):
            assert is_said(line), f"{heading}: no source says {line!r}"


def raw_cells(name: str, heading: str) -> list[str]:
    """First cells of the table below a heading, with their backticks."""
    part = text_of(name).split(f" {heading}\n", 1)[1].split("\n#", 1)[0]
    return [line.split("|")[1] for line in part.splitlines() if line.startswith("|")][2:]


def test_every_reason_of_health_is_explained() -> None:
    judge = next(n for n in tree_of(ROOT / "src/system_monitor.py").body if isinstance(n, ast.FunctionDef) and n.name == "judge")
    body = ast.Module(judge.body[1:], [])
    patterns = [p for p in said_in(body) if " " in p.replace("\\ ", " ")]
    rows = column("docs/operations.md", "Reasons")
    for pattern in patterns:
        assert any(re.search(pattern, row) for row in rows), f"not explained: {pattern}"
    for row in rows:
        assert any(re.fullmatch(pattern, row) for pattern in patterns), f"never said: {row}"


def test_every_metric_is_explained() -> None:
    held: dict[str, list[str]] = {}
    for process, block in counters.BLOCKS.items():
        for name in block:
            held.setdefault(f"aegis_{name}", []).append(process)
    shown = {name: "all" if len(who) == len(counters.BLOCKS) else ", ".join(who) for name, who in held.items()}
    assert {row[0]: row[1] for row in table_under("docs/operations.md", "Metrics")} == shown


def test_every_refusal_of_a_signal_is_explained() -> None:
    patterns = [pattern_of(call.args[0]) for call in calls("src/risk.py", "Refusal")]
    patterns += [pattern_of(call.args[1]) for call in calls("src/portfolio.py", "Verdict") if len(call.args) == 2]
    rows = column("docs/operations.md", "Why a signal was refused")
    unexplained = [p for p in patterns if not any(re.fullmatch(p, row) for row in rows)]
    unsaid = [row for row in rows if not any(re.fullmatch(p, row) for p in patterns)]
    assert not unexplained and not unsaid


def test_every_hold_and_every_latch_is_explained() -> None:
    said = "\n".join(path.read_text() for path in SOURCES)
    holds = set(re.findall(r'holds(?:: dict\[str, str\] = \{|\[)"(\w+)"', said))
    assert set(column("docs/operations.md", "Holds")) == holds == set(counters.HOLDS)
    latches = set(re.findall(r'latch\("(\w+)"', said)) | set(re.findall(r'broken\.append\(\("(\w+)"', said))
    assert set(column("docs/operations.md", "Latches")) == latches


def test_every_class_of_mismatch_is_explained() -> None:
    assert column("docs/operations.md", "Reconciliation") == [kind.value for kind in reconciliation.Kind]


def test_every_part_of_the_heartbeat_is_explained() -> None:
    """The words in front of its lines."""
    function = inspect.getsource(importlib.import_module("src.system_monitor").heartbeat)
    words = re.findall(r'f"   (\w+) {2,}', function)
    assert [row.split()[0] for row in column("docs/operations.md", "The heartbeat, line by line")] == ["💓", *words, "(slots)", "🛑"]


# --- how it is made --------------------------------------------------------------------------------------------------------------------


def test_topics_of_the_bus_are_listed() -> None:
    assert column("docs/architecture.md", "The EventBus") == [topic.value for topic in Topic]


def test_kinds_of_slots_are_listed() -> None:
    numbers = {name: getattr(ring_buffer, name) for name in ("TRADE", "QUOTE", "MARK", "TIME", "GAP", "HEALED", "STATE")}
    assert {row[1]: int(row[0]) for row in table_under("docs/architecture.md", "Kinds of slots")} == numbers


def test_how_far_an_order_is_known_is_listed() -> None:
    assert column("docs/architecture.md", "How far an order is known") == [word.value for word in slots.Word]


def test_journal_columns_are_those_of_a_real_journal(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    names = {row[0] for row in sqlite3.connect(tmp_path / "journal.sqlite").execute("SELECT name FROM sqlite_master WHERE type='table'")}
    assert set(column("docs/architecture.md", "The journal")) == names


def _value(place: str) -> tuple[str, Any]:
    """``src/x.py NAME``, ``src/x.py Class.field`` or ``src/x.py Class(argument)`` → (its last name, its value)."""
    path, _, where = place.partition(" ")
    found: Any = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    *way, name = re.split(r"[.(]", where.rstrip(")"))
    for step in way:
        found = getattr(found, step)
    if where.endswith(")"):
        return name, inspect.signature(found).parameters[name].default
    if is_dataclass(found):
        default = next(f for f in fields(found) if f.name == name).default
        return name, default if default is not MISSING else None
    return name, getattr(found, name)


def shown(name: str, value: Any) -> str:
    """A limit as the documents write it."""
    if isinstance(value, tuple):
        return " to ".join(shown(name, part) for part in value)
    unit = re.search(r"_(NS|MS|S)(_|$)", name.upper())
    if unit:
        seconds = Decimal(str(value)) / {"NS": 10**9, "MS": 1000, "S": 1}[unit[1]]
        for size, word in ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s")):
            if seconds >= size and (size == 1 or (seconds >= 2 * size and seconds % size == 0)):
                return f"{float(seconds / size):g} {word}"
        return f"{float(seconds * 1000):g} ms"
    if re.search(r"BYTES|FRAME_|BODY|DISK", name.upper()):
        return f"{value / 2**20:g} MiB" if value % 2**20 == 0 else f"{value / 10**6:g} MB"
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}"


@pytest.mark.parametrize("row", table_under("docs/architecture.md", "Limits"), ids=lambda row: row[1])
def test_a_limit_is_what_the_code_has(row: list[str]) -> None:
    assert row[0] == shown(*_value(row[1])), f"{row[1]} is {shown(*_value(row[1]))}"


def test_tests_and_sources_that_are_named_exist() -> None:
    for name in ("README.md", *(f"docs/{path.name}" for path in DOCS)):
        text = text_of(name)
        for file, test in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text):
            assert (ROOT / file).is_file(), f"{name} names {file}"
            assert not test or f"def {test}(" in text_of(file), f"{name} names {file}::{test}"
        for file in re.findall(r"`(src/[\w/]+\.py)`", text):
            assert (ROOT / file).is_file(), f"{name} names {file}"


# --- the local exchange ----------------------------------------------------------------------------------------------------------------


def told(heading: str) -> tuple[set[str], set[str]]:
    """(names that are answered, names that are not) of a table of docs/exchange.md; the second cell is yes, partly or no."""
    rows = table_under("docs/exchange.md", heading)
    assert {row[1] for row in rows} <= {"yes", "partly", "no"}, heading
    assert all(row[2] for row in rows if row[1] != "yes"), f"{heading}: what is not a yes has a reason"
    return {row[0] for row in rows if row[1] != "no"}, {row[0] for row in rows if row[1] == "no"}


def exchange_sources() -> list[Path]:
    return sorted((ROOT / "src/exchange").glob("*.py"))


def test_every_route_of_the_exchange_is_documented_and_none_else() -> None:
    yes, no = told("REST endpoints")
    routes = {f"{method} {path}" for method, path in rest.ENDPOINTS}
    assert yes == routes and not no & routes


def test_every_method_of_the_ws_api_is_documented_and_none_else() -> None:
    yes, no = told("WebSocket API methods")
    methods = {*ws_api.METHODS, *ws_api.SESSION_METHODS}
    assert yes == methods and not no & methods


def test_every_user_event_is_documented_and_none_else() -> None:
    found = set()
    for path in exchange_sources():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Dict) and path.stem in ("events", "streams"):
                pairs = [(k.value, v.value) for k, v in zip(node.keys, node.values, strict=True)
                         if isinstance(k, ast.Constant) and isinstance(v, ast.Constant)]  # fmt: skip
                found |= {value for key, value in pairs if key == "e"}
    yes, no = told("User events")
    assert yes == found and not no & found


def test_every_filter_is_documented_and_none_else() -> None:
    found = set(re.findall(r'"filterType": "(\w+)"', text_of("src/exchange/public.py")))
    yes, no = told("Filters")
    assert yes == found and not no & found


def test_every_refusal_of_the_exchange_is_documented_and_none_else() -> None:
    """Codes that some place of the exchange uses; texts that nobody uses do not count."""
    found = set()
    for path in exchange_sources():
        for node in ast.walk(tree_of(path)) if path.stem != "errors" else ():
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
                number = node.operand.value
                if isinstance(number, int) and 1000 <= number <= 9999:
                    found.add(str(-number))
    yes, no = told("Error codes")
    assert yes == found and not no & found


def test_the_control_door_is_documented() -> None:
    matches = [node for node in ast.walk(tree_of(ROOT / "src/exchange/control.py")) if isinstance(node, ast.Match)]
    patterns = [case.pattern for node in matches for case in node.cases if isinstance(case.pattern, ast.MatchSequence)]
    cases = {tuple(ast.literal_eval(part.value) for part in pattern.patterns if isinstance(part, ast.MatchValue)) for pattern in patterns}
    assert {tuple(row.split(" /control/")) for row in column("docs/exchange.md", "The control door")} == cases
    assert column("docs/exchange.md", "Kinds of faults") == [kind.value for kind in faults.Kind]


def test_the_markets_are_documented() -> None:
    assert column("docs/exchange.md", "Markets") == list(market.KINDS)


def test_the_peers_are_documented_with_their_versions() -> None:
    pinned = {tuple(path.read_text().strip().split("==")) for path in (ROOT / "tests" / "peers").glob("*.txt")}
    heading = "Other people's clients"
    assert set(zip(column("docs/exchange.md", heading), column("docs/exchange.md", heading, 1), strict=True)) == pinned


async def liquidated(client: Client) -> None:
    """A position of the account's own is seized."""
    await client.signed("POST", "v1/marginType", symbol="BTCUSDT", marginType="ISOLATED")
    await client.good("POST", "v1/leverage", symbol="BTCUSDT", leverage=100)
    await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.010")
    price = Decimal((await client.get("v1/ticker/price", symbol="BTCUSDT"))["price"])
    await client.control("price", symbol="BTCUSDT", price=str(price * Decimal("0.97")))


async def test_streams_deliver_as_documented() -> None:
    """Each stream that is called delivering does so, one after the other; those that are called silent say nothing all that time."""
    delivers, silent = told("Streams")
    async with exchange(LIVELY, lively()) as client:
        for base in (client.ready.market, client.ready.public):
            socket = await client.socket(base + "/stream")
            assert await socket.ask({"method": "SUBSCRIBE", "params": sorted(silent), "id": 1}) == {"result": None, "id": 1}
            route = PUBLIC if base == client.ready.public else MARKET
            for name in sorted(n for n in delivers if route_of(n) == route):
                await socket.ask({"method": "SUBSCRIBE", "params": [name], "id": 2})
                if name == "!contractInfo":
                    await client.control("symbol", symbol="ETHUSDT", status="SETTLING")
                if "forceOrder" in name:
                    await liquidated(client)
                got = [m["stream"] for m in await socket.until(lambda m, name=name: m.get("stream") == name) if "stream" in m]
                assert not silent & set(got)
                await socket.send({"method": "UNSUBSCRIBE", "params": [name], "id": 3})
            await socket.send({"method": "SUBSCRIBE", "params": ["btcusdt@aggTrade", "btcusdt@bookTicker"], "id": 4})
            assert not silent & {(await socket.next()).get("stream") for _ in range(100)}


# --- manners ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", ".env.example", *(f"docs/{path.name}" for path in DOCS)])
def test_documents_have_no_machine_paths_and_no_notes_to_oneself(name: str) -> None:
    text = text_of(name)
    assert not re.search(r"(?<![\w.])/(root|home|work|Users|tmp)/", text), f"{name} names a path of somebody's machine"
    assert not re.search(r"\b(TODO|FIXME|XXX|TBD)\b", text), f"{name} has a note to oneself"


def test_links_lead_somewhere() -> None:
    for path in (ROOT / "README.md", *DOCS):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_readme_has_what_others_rely_on() -> None:
    text = text_of("README.md")
    for heading in README_HEADINGS:
        assert f"\n## {heading}\n" in text, heading
    assert text.count("python3.11 -m venv") == 2 and "-m pytest" in text and "docs/operations.md" in text


def test_the_changelog_begins_with_this_version() -> None:
    assert re.search(r"^## (\S+)", text_of("docs/changelog.md"), re.MULTILINE)[1] == importlib.import_module("src").VERSION  # type: ignore[index]


if __name__ == "__main__":
    for document in DOCS:
        document.write_text(renewed(document.read_text()))
