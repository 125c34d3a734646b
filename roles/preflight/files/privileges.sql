-- One sentence for each privilege that is missing, with the statement that grants it.
SELECT format('may not create schemas in %%I: GRANT CREATE ON DATABASE %%I TO %%I.', current_database(), current_database(), current_user) AS sentence
WHERE NOT has_database_privilege(current_database(), 'CREATE') AND to_regnamespace('pgrollout') IS NULL
UNION ALL
SELECT format('may not use temporary tables in %%I: GRANT TEMPORARY ON DATABASE %%I TO %%I.', current_database(), current_database(), current_user)
WHERE NOT has_database_privilege(current_database(), 'TEMPORARY')
UNION ALL
SELECT format('may not create objects in schema %%I: GRANT CREATE ON SCHEMA %%I TO %%I.', n.nspname, n.nspname, current_user)
FROM pg_namespace AS n WHERE n.nspname = %(schema)s AND NOT has_schema_privilege(n.oid, 'CREATE')
UNION ALL
SELECT format('does not own %%I.%%I, its owner is %%I: GRANT %%I TO %%I.', n.nspname, c.relname, o.rolname, o.rolname, current_user)
FROM jsonb_array_elements_text(%(relations)s::jsonb) AS r (name)
JOIN pg_class AS c ON c.relname = (parse_ident(r.name))[2]
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = (parse_ident(r.name))[1]
JOIN pg_roles AS o ON o.oid = c.relowner
WHERE NOT pg_has_role(c.relowner, 'USAGE')
UNION ALL
SELECT format('does not own the ledger (schema pgrollout), its owner is %%I: run as that role.', o.rolname)
FROM pg_namespace AS n JOIN pg_roles AS o ON o.oid = n.nspowner
WHERE n.nspname = 'pgrollout' AND NOT pg_has_role(n.nspowner, 'USAGE')
