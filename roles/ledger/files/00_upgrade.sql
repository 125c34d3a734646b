-- An older ledger's routines go before today's come: CREATE OR REPLACE can change neither the kind nor the result of one.
-- Tables stay. A routine that an orphaned session is executing runs on to its end.
DO $$
DECLARE
    v_routine text;
BEGIN
    FOR v_routine IN
        SELECT format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))
        FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname = 'pgrollout'
          -- A table's trigger may hang on it; those are replaced as they stand.
          AND p.prorettype <> 'trigger'::regtype
    LOOP
        EXECUTE 'DROP ROUTINE ' || v_routine;
    END LOOP;
END
$$;
