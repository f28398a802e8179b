"""Responses in partitions by month, so that those past their retention go without a trace of work on the rest."""

from django.db import migrations

# The definitions of the indexes and foreign keys that were there are used again, under the same names.
APART = """
SET CONSTRAINTS ALL IMMEDIATE;
DO $$
DECLARE
    indexes text[];
    keys text[];
    one record;
    definition text;
    month_after timestamptz := (date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC';
BEGIN
    FOR one IN SELECT conname FROM pg_constraint
        WHERE conrelid = 'registry_feedback'::regclass AND confrelid = 'registry_response'::regclass LOOP
        EXECUTE format('ALTER TABLE registry_feedback DROP CONSTRAINT %I', one.conname);
    END LOOP;
    SELECT array_agg(pg_get_indexdef(indexrelid)) INTO indexes
        FROM pg_index WHERE indrelid = 'registry_response'::regclass AND NOT indisunique;
    SELECT array_agg(format('ALTER TABLE registry_response ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid)))
        INTO keys FROM pg_constraint WHERE conrelid = 'registry_response'::regclass AND contype = 'f';
    FOR one IN SELECT conname FROM pg_constraint
        WHERE conrelid = 'registry_response'::regclass AND contype = 'p' LOOP
        EXECUTE format('ALTER TABLE registry_response DROP CONSTRAINT %I', one.conname);
    END LOOP;
    FOR one IN SELECT indexrelid::regclass AS name FROM pg_index WHERE indrelid = 'registry_response'::regclass LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', one.name, 'before_' || left(one.name::text, 55));
    END LOOP;
    ALTER TABLE registry_response RENAME TO registry_response_before;
    CREATE TABLE registry_response (LIKE registry_response_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS)
        PARTITION BY RANGE (at);
    ALTER TABLE registry_response ADD CONSTRAINT registry_response_pkey PRIMARY KEY (id, at);
    FOREACH definition IN ARRAY indexes || keys LOOP
        EXECUTE definition;
    END LOOP;
    CREATE TABLE registry_response_default PARTITION OF registry_response DEFAULT;
    INSERT INTO registry_response SELECT * FROM registry_response_before WHERE at >= month_after;
    DELETE FROM registry_response_before WHERE at >= month_after;
    SET CONSTRAINTS ALL IMMEDIATE;
    -- What was there is a partition without being copied; it goes when the youngest of it is past its retention.
    IF EXISTS (SELECT FROM registry_response_before) THEN
        EXECUTE format('ALTER TABLE registry_response ATTACH PARTITION registry_response_before
            FOR VALUES FROM (MINVALUE) TO (%L)', month_after);
    ELSE
        DROP TABLE registry_response_before;
    END IF;
END $$;

-- The time of the answer is part of its key now, and of the foreign key of what is said about it.
ALTER TABLE registry_feedback ADD COLUMN response_at timestamptz;
UPDATE registry_feedback SET response_at = registry_response.at
    FROM registry_response WHERE registry_response.id = response_id;
ALTER TABLE registry_feedback ALTER COLUMN response_at SET NOT NULL,
    ADD CONSTRAINT registry_feedback_of_response FOREIGN KEY (response_id, response_at)
        REFERENCES registry_response (id, at) DEFERRABLE INITIALLY DEFERRED;
CREATE FUNCTION registry_feedback_of_when() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT at INTO NEW.response_at FROM registry_response WHERE id = NEW.response_id;
    RETURN NEW;
END $$;
CREATE TRIGGER of_when BEFORE INSERT OR UPDATE OF response_id ON registry_feedback
    FOR EACH ROW EXECUTE FUNCTION registry_feedback_of_when();

-- The application's role owns no tables: it may make and drop partitions of responses by this function alone.
CREATE FUNCTION registry_keep_responses(keep_days integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    this_month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    oldest timestamptz := now() - make_interval(days => keep_days);
    part record;
    dropped integer := 0;
BEGIN
    IF keep_days IS NULL OR keep_days < 180 THEN
        RAISE EXCEPTION 'responses are kept for at least 180 days' USING ERRCODE = 'check_violation';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('adapterhub.responses'));
    FOR part IN
        SELECT format('registry_response_%s', to_char(starts, 'YYYY_MM')) AS name, starts AT TIME ZONE 'UTC' AS first,
            (starts + interval '1 month') AT TIME ZONE 'UTC' AS until
        FROM generate_series(this_month, this_month + interval '2 months', interval '1 month') AS starts
    LOOP
        IF to_regclass(part.name) IS NULL THEN
            BEGIN
                EXECUTE format('CREATE TABLE %I PARTITION OF registry_response FOR VALUES FROM (%L) TO (%L)',
                    part.name, part.first, part.until);
            EXCEPTION
                -- Another partition has the month, or answers of it are in the default one already: there they stay.
                WHEN invalid_object_definition OR check_violation THEN NULL;
            END;
        END IF;
    END LOOP;
    FOR part IN
        SELECT name, until FROM (
            SELECT inhrelid::regclass AS name,
                substring(pg_get_expr(relpartbound, pg_class.oid) FROM 'TO \\(''([^'']+)''\\)')::timestamptz AS until
            FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
            WHERE inhparent = 'registry_response'::regclass
        ) AS partitions WHERE until <= oldest
    LOOP
        EXECUTE format('DELETE FROM registry_feedback USING %s AS old WHERE response_id = old.id', part.name);
        EXECUTE format('ALTER TABLE registry_response DETACH PARTITION %s', part.name);
        EXECUTE format('DROP TABLE %s', part.name);
        dropped := dropped + 1;
    END LOOP;
    DELETE FROM registry_feedback USING registry_response_default AS old
        WHERE response_id = old.id AND old.at < oldest;
    DELETE FROM registry_response_default WHERE at < oldest;
    RETURN dropped;
END $$;
SELECT registry_keep_responses(36500);
"""
TOGETHER = """
DROP FUNCTION registry_keep_responses(integer);
DROP TRIGGER of_when ON registry_feedback;
DROP FUNCTION registry_feedback_of_when();
SET CONSTRAINTS ALL IMMEDIATE;
DO $$
DECLARE
    indexes text[];
    keys text[];
    definition text;
BEGIN
    ALTER TABLE registry_feedback DROP CONSTRAINT registry_feedback_of_response, DROP COLUMN response_at;
    SELECT array_agg(replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ')) INTO indexes
        FROM pg_index WHERE indrelid = 'registry_response'::regclass AND NOT indisunique;
    SELECT array_agg(format('ALTER TABLE registry_response ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid)))
        INTO keys FROM pg_constraint
        WHERE conrelid = 'registry_response'::regclass AND contype = 'f' AND conparentid = 0;
    CREATE TABLE registry_response_whole (LIKE registry_response INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
    INSERT INTO registry_response_whole SELECT * FROM registry_response;
    DROP TABLE registry_response;
    ALTER TABLE registry_response_whole RENAME TO registry_response;
    ALTER TABLE registry_response ADD CONSTRAINT registry_response_pkey PRIMARY KEY (id);
    FOREACH definition IN ARRAY indexes || keys LOOP
        EXECUTE definition;
    END LOOP;
    ALTER TABLE registry_feedback ADD CONSTRAINT registry_feedback_of_response FOREIGN KEY (response_id)
        REFERENCES registry_response (id) DEFERRABLE INITIALLY DEFERRED;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0035_staged_files")]

    operations = [migrations.RunSQL(APART, TOGETHER)]
