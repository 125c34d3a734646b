"""Statements that are no part of a migration, each with its command's name and what to do instead."""

from __future__ import annotations

_SESSION = "a session's own business, and every step has a session of its own; remove it"
_CLUSTER = "not of this database alone; let the administration of the server do it, outside the rollout"
_REPLICATION = "the business of replication, which a rollout must not change under itself; run it outside the rollout"
_FOREIGN = "part of the administration of foreign servers; run it outside the rollout"
_ROLES = "about roles, which belong to the whole server; make them before the rollout"
_OPAQUE = "hides what it does, so that nobody can say which locks it takes and when it is done"

REFUSALS: dict[str, tuple[str, str]] = {
    "AlterCollationStmt": ("ALTER COLLATION … REFRESH VERSION", "a repair after an upgrade; REINDEX first, by hand"),
    "AlterDatabaseRefreshCollStmt": ("ALTER DATABASE … REFRESH COLLATION VERSION", _CLUSTER),
    "AlterDatabaseSetStmt": ("ALTER DATABASE … SET", _CLUSTER),
    "AlterDatabaseStmt": ("ALTER DATABASE", _CLUSTER),
    "AlterEventTrigStmt": ("ALTER EVENT TRIGGER", _CLUSTER),
    "AlterExtensionContentsStmt": ("ALTER EXTENSION … ADD or DROP", "the work of an extension's own script"),
    "AlterFdwStmt": ("ALTER FOREIGN DATA WRAPPER", _FOREIGN),
    "AlterForeignServerStmt": ("ALTER SERVER", _FOREIGN),
    "AlterOpFamilyStmt": ("ALTER OPERATOR FAMILY", "the work of an extension; put it into one"),
    "AlterOperatorStmt": ("ALTER OPERATOR", "the work of an extension; put it into one"),
    "AlterPublicationStmt": ("ALTER PUBLICATION", _REPLICATION),
    "AlterRoleSetStmt": ("ALTER ROLE … SET", _ROLES),
    "AlterRoleStmt": ("ALTER ROLE", _ROLES),
    "AlterSubscriptionStmt": ("ALTER SUBSCRIPTION", _REPLICATION),
    "AlterSystemStmt": ("ALTER SYSTEM", _CLUSTER),
    "AlterTSConfigurationStmt": (
        "ALTER TEXT SEARCH CONFIGURATION",
        "a change under every index that uses it; make a configuration of a new name, then indexes on it",
    ),
    "AlterTSDictionaryStmt": (
        "ALTER TEXT SEARCH DICTIONARY",
        "a change under every index that uses it; make a dictionary of a new name",
    ),
    "AlterTableMoveAllStmt": ("ALTER … ALL IN TABLESPACE", "a copy of every table under ACCESS EXCLUSIVE"),
    "AlterTableSpaceOptionsStmt": ("ALTER TABLESPACE", _CLUSTER),
    "AlterUserMappingStmt": ("ALTER USER MAPPING", _FOREIGN),
    "CallStmt": ("CALL", f"{_OPAQUE}; write the statements themselves, an UPDATE with '-- Backfill: by <key>'"),
    "CheckPointStmt": ("CHECKPOINT", "the server's own work; remove it"),
    "ClosePortalStmt": ("CLOSE", _SESSION),
    "ConstraintsSetStmt": ("SET CONSTRAINTS", _SESSION),
    "CopyStmt": (
        "COPY",
        "rows that come from outside the file; load them before the rollout, or write an INSERT with "
        "'-- Done when: SELECT …'",
    ),
    "CreateAmStmt": ("CREATE ACCESS METHOD", "the work of an extension; write CREATE EXTENSION"),
    "CreateCastStmt": ("CREATE CAST", "a change to queries that do not name it; put it into an extension"),
    "CreateConversionStmt": ("CREATE CONVERSION", "the work of an extension; write CREATE EXTENSION"),
    "CreateEventTrigStmt": ("CREATE EVENT TRIGGER", _CLUSTER),
    "CreateFdwStmt": ("CREATE FOREIGN DATA WRAPPER", _FOREIGN),
    "CreateForeignServerStmt": ("CREATE SERVER", _FOREIGN),
    "CreateForeignTableStmt": ("CREATE FOREIGN TABLE", _FOREIGN),
    "CreateOpClassStmt": ("CREATE OPERATOR CLASS", "the work of an extension; write CREATE EXTENSION"),
    "CreateOpFamilyStmt": ("CREATE OPERATOR FAMILY", "the work of an extension; write CREATE EXTENSION"),
    "CreatePLangStmt": ("CREATE LANGUAGE", "written CREATE EXTENSION since PostgreSQL 13; write that"),
    "CreatePublicationStmt": ("CREATE PUBLICATION", _REPLICATION),
    "CreateRoleStmt": ("CREATE ROLE", _ROLES),
    "CreateSubscriptionStmt": ("CREATE SUBSCRIPTION", _REPLICATION),
    "CreateTableSpaceStmt": ("CREATE TABLESPACE", _CLUSTER),
    "CreateTransformStmt": ("CREATE TRANSFORM", "the work of an extension; write CREATE EXTENSION"),
    "CreateUserMappingStmt": ("CREATE USER MAPPING", _FOREIGN),
    "CreatedbStmt": ("CREATE DATABASE", _CLUSTER),
    "DeallocateStmt": ("DEALLOCATE", _SESSION),
    "DeclareCursorStmt": ("DECLARE", _SESSION),
    "DefineStmt": (
        "CREATE AGGREGATE, OPERATOR, COLLATION, TEXT SEARCH or base TYPE",
        "nothing that can be compared with what is there; put it into an extension and write CREATE EXTENSION",
    ),
    "DiscardStmt": ("DISCARD", _SESSION),
    "DoStmt": (
        "DO",
        f"{_OPAQUE}; write the statements themselves: DDL as it is, an UPDATE with '-- Backfill: by <key>', a check "
        "into validate.sql",
    ),
    "DropOwnedStmt": ("DROP OWNED", _ROLES),
    "DropRoleStmt": ("DROP ROLE", _ROLES),
    "DropSubscriptionStmt": ("DROP SUBSCRIPTION", _REPLICATION),
    "DropTableSpaceStmt": ("DROP TABLESPACE", _CLUSTER),
    "DropUserMappingStmt": ("DROP USER MAPPING", _FOREIGN),
    "DropdbStmt": ("DROP DATABASE", _CLUSTER),
    "ExecuteStmt": ("EXECUTE", _SESSION),
    "ExplainStmt": ("EXPLAIN", "a look, not a change; put the query into gates/"),
    "FetchStmt": ("FETCH", _SESSION),
    "GrantRoleStmt": ("GRANT or REVOKE of a role", _ROLES),
    "ImportForeignSchemaStmt": ("IMPORT FOREIGN SCHEMA", _FOREIGN),
    "ListenStmt": ("LISTEN", _SESSION),
    "LoadStmt": ("LOAD", _SESSION),
    "LockStmt": ("LOCK TABLE", "what the engine does itself, for 50 ms at a time; remove it"),
    "NotifyStmt": ("NOTIFY", "nothing that the catalog can tell; let the application send it"),
    "PLAssignStmt": ("an assignment", "a statement of PL/pgSQL"),
    "PrepareStmt": ("PREPARE", _SESSION),
    "RawStmt": ("a raw statement", "the parser's own"),
    "ReassignOwnedStmt": ("REASSIGN OWNED", _ROLES),
    "ReplicaIdentityStmt": ("REPLICA IDENTITY", "a part of ALTER TABLE; write that"),
    "ReturnStmt": ("RETURN", "the body of a function"),
    "RuleStmt": ("CREATE RULE", "a rewrite of queries that surprises everybody; write a trigger"),
    "SecLabelStmt": ("SECURITY LABEL", _CLUSTER),
    "SelectStmt": (
        "SELECT",
        "a look, or it hides what it changes; put a check into validate.sql, and write a change as INSERT or UPDATE",
    ),
    "SetOperationStmt": ("UNION", "a part of SELECT"),
    "TransactionStmt": (
        "ROLLBACK, SAVEPOINT or a transaction with options",
        "set by the engine itself, step by step; remove it",
    ),
    "UnlistenStmt": ("UNLISTEN", _SESSION),
    "VariableSetStmt": (
        "SET or RESET",
        "over with its session, and every step has a session of its own; search_path and timeouts are the engine's",
    ),
    "VariableShowStmt": ("SHOW", "a look, not a change; remove it"),
}


def refusal(name: str) -> str:
    """The sentence for a statement of that node class; one for a class that nobody knows yet too."""
    command, why = REFUSALS.get(name, (name.removesuffix("Stmt"), "unknown to this engine; see docs/planner.md"))
    return f"{command} is not a step of a migration: it is {why}" if not why.startswith("hides") else f"{command} {why}"
