-- Migration: 006_short_id_backfill.sql
-- Description: Generate short IDs for existing records
-- Risk Level: LOW (data updates with proper validation)

BEGIN;

-- Create temporary function for safe short ID generation
CREATE OR REPLACE FUNCTION generate_safe_short_id(entity_prefix text) 
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    new_short_id text;
    counter integer := 0;
BEGIN
    LOOP
        -- Generate random short ID
        new_short_id := entity_prefix || '-' || 
            translate(encode(gen_random_bytes(3), 'base32'), '018', '239');
        
        -- Check for collisions across all entities
        IF NOT EXISTS (
            SELECT 1 FROM project_management_projects WHERE short_id = new_short_id
            UNION ALL
            SELECT 1 FROM project_management_epics WHERE short_id = new_short_id  
            UNION ALL
            SELECT 1 FROM project_management_prds WHERE short_id = new_short_id
            UNION ALL
            SELECT 1 FROM project_management_tasks WHERE short_id = new_short_id
            UNION ALL
            SELECT 1 FROM agents WHERE short_id = new_short_id
        ) THEN
            RETURN new_short_id;
        END IF;
        
        counter := counter + 1;
        IF counter > 10 THEN
            RAISE EXCEPTION 'Unable to generate unique short ID after 10 attempts';
        END IF;
    END LOOP;
END;
$$;

-- Backfill projects
UPDATE project_management_projects 
SET short_id = generate_safe_short_id('PRJ')
WHERE short_id IS NULL;

-- Backfill epics  
UPDATE project_management_epics 
SET short_id = generate_safe_short_id('EPC')
WHERE short_id IS NULL;

-- Backfill PRDs
UPDATE project_management_prds 
SET short_id = generate_safe_short_id('PRD')
WHERE short_id IS NULL;

-- Backfill tasks
UPDATE project_management_tasks 
SET short_id = generate_safe_short_id('TSK')
WHERE short_id IS NULL;

-- Backfill agents
UPDATE agents 
SET short_id = generate_safe_short_id('AGT')
WHERE short_id IS NULL;

-- Clean up temporary function
DROP FUNCTION generate_safe_short_id(text);

-- Add NOT NULL constraints now that data is populated
ALTER TABLE project_management_projects 
ALTER COLUMN short_id SET NOT NULL;

ALTER TABLE project_management_epics 
ALTER COLUMN short_id SET NOT NULL;

ALTER TABLE project_management_prds 
ALTER COLUMN short_id SET NOT NULL;

ALTER TABLE project_management_tasks 
ALTER COLUMN short_id SET NOT NULL;

ALTER TABLE agents 
ALTER COLUMN short_id SET NOT NULL;

COMMIT;
