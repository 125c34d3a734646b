"""Our statement as it runs on the empty twin of its table: not concurrent, without IF NOT EXISTS, unqualified.

The author's text is cut, not printed anew from the tree: a printer may spell the same expression otherwise
(`now() AT TIME ZONE 'utc'` as `timezone('utc', now())`), and PostgreSQL keeps the difference.
"""

from __future__ import annotations

from typing import Any

from pglast import ast, parse_sql, parser
from pglast.visitors import Visitor

VIEW_TWIN = "pgrollout_view_twin"


def twin_statement(sql: str) -> str:
    """`sql` for the twin. Every relation loses its schema: a qualified name left in here would reach the real table."""
    node = parse_sql(sql)[0].stmt
    tokens = parser.scan(sql)
    names = [token.name for token in tokens]
    if isinstance(node, ast.ViewStmt | ast.CreateTableAsStmt):
        return _view(sql, tokens, names)
    cut = _words(names, ["CONCURRENTLY"]) | _words(names, ["IF_P", "NOT", "EXISTS"])
    if isinstance(node, ast.CreateFunctionStmt) and len(node.funcname) > 1:
        keyword = names.index("PROCEDURE" if node.is_procedure else "FUNCTION")
        cut |= {keyword + 1, keyword + 2}
    qualified = _Qualified()
    qualified(node)
    cut |= {i + offset for i, token in enumerate(tokens) if token.start in qualified.starts for offset in (0, 1)}
    return _without(sql, tokens, cut)


class _Qualified(Visitor):  # type: ignore[misc]  # pglast is untyped here
    """Collects where a schema-qualified relation starts."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: set[int] = set()

    def visit_RangeVar(self, _ancestors: Any, node: ast.RangeVar) -> None:
        if node.schemaname:
            self.starts.add(node.location)


def _words(names: list[str], words: list[str]) -> set[int]:
    """Token numbers of the first run of `words`: the options stand before anything that an author can name."""
    for start in range(len(names) - len(words) + 1):
        if names[start : start + len(words)] == words:
            return set(range(start, start + len(words)))
    return set()


def _without(sql: str, tokens: list[Any], cut: set[int]) -> str:
    text = []
    position = 0
    for number in sorted(cut):
        text.append(sql[position : tokens[number].start])
        position = tokens[number].end + 1
    return "".join([*text, sql[position:]])


def _view(sql: str, tokens: list[Any], names: list[str]) -> str:
    """A temporary view over the real tables: PostgreSQL prints its query as it prints ours."""
    begin = names.index("AS")
    end = len(sql)
    if names[-2:] == ["WITH", "DATA_P"] or names[-3:-1] == ["WITH", "NO"]:
        end = tokens[max(i for i, name in enumerate(names) if name == "WITH")].start
    columns = ""
    # The first parenthesis is the list of columns, unless it belongs to WITH (options).
    opened = names.index("ASCII_40") if "ASCII_40" in names[:begin] else begin
    if opened < begin and names[opened - 1] != "WITH":
        columns = " " + sql[tokens[opened].start : tokens[names.index("ASCII_41", opened)].end + 1]
    return f"CREATE TEMP VIEW {VIEW_TWIN}{columns} {sql[tokens[begin].start : end]}"
