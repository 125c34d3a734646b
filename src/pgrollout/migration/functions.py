"""Functions that a statement calls, in function bodies too, and that a server without some extension does not have."""

from __future__ import annotations

from typing import Any

from pglast import ast, parser

# Of the extensions that ship with PostgreSQL; each name belongs to one of them.
EXTENSION_OF = {
    **dict.fromkeys(("armor", "crypt", "dearmor", "digest", "gen_random_bytes", "gen_salt", "hmac"), "pgcrypto"),
    **dict.fromkeys(("pgp_pub_decrypt", "pgp_pub_encrypt", "pgp_sym_decrypt", "pgp_sym_encrypt"), "pgcrypto"),
    **dict.fromkeys(("uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4", "uuid_generate_v5"), "uuid-ossp"),
    **dict.fromkeys(("show_trgm", "similarity", "strict_word_similarity", "word_similarity"), "pg_trgm"),
    **dict.fromkeys(("daitch_mokotoff", "dmetaphone", "levenshtein", "metaphone", "soundex"), "fuzzystrmatch"),
    **dict.fromkeys(("crosstab", "connectby", "normal_rand"), "tablefunc"),
    **dict.fromkeys(("earth_distance", "ll_to_earth", "earth_box"), "earthdistance"),
    **dict.fromkeys(("dblink", "dblink_connect", "dblink_exec"), "dblink"),
    "unaccent": "unaccent",
}
ENCODINGS = ("base64", "hex", "escape")


def extension_functions(sql: str, node: Any) -> dict[str, str]:
    """{function: extension} of what the statement calls by an unqualified name."""
    found = {}
    for text in (sql, *_bodies(node)):
        tokens = _tokens(text)
        for number, (name, word) in enumerate(tokens[:-1]):
            called = name == "IDENT" and tokens[number + 1][1] == "(" and tokens[max(number - 1, 0)][1] != "."
            if called and word.lower() in EXTENSION_OF:
                found[word.lower()] = EXTENSION_OF[word.lower()]
    return found


def unknown_encoding(sql: str, node: Any) -> str:
    """A sentence about an encode() or decode() into what PostgreSQL does not know, '' if there is none."""
    for text in (sql, *_bodies(node)):
        tokens = _tokens(text)
        for number, (_, word) in enumerate(tokens[:-1]):
            if word.lower() in ("encode", "decode") and tokens[number + 1][1] == "(":
                name, last = _last_argument(tokens[number + 2 :])
                if name == "SCONST" and last.strip("'").lower() not in ENCODINGS:
                    return f"{word}() knows {', '.join(ENCODINGS)} and not {last}; write the conversion out"
    return ""


def _last_argument(tokens: list[tuple[str, str]]) -> tuple[str, str]:
    """The token before the parenthesis that closes a call."""
    depth = 1
    for number, (_, word) in enumerate(tokens):
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth == 0:
            return tokens[number - 1]
    return "", ""


def _bodies(node: Any) -> list[str]:
    """The text of a function's body: its first string; PostgreSQL does not look into it either until it is called."""
    if not isinstance(node, ast.CreateFunctionStmt):
        return []
    return [option.arg[0].sval for option in node.options or () if option.defname == "as"]


def _tokens(text: str) -> list[tuple[str, str]]:
    try:
        return [
            (token.name, text[token.start : token.end + 1])
            for token in parser.scan(text)
            if "COMMENT" not in token.name
        ]
    except parser.ParseError:  # a body in another language
        return []
