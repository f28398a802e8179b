"""The chain's lock and its head in one call: a change waits for the chain one journey less."""

from django.db import migrations

# Volatile, so that the head is read by a snapshot taken after the lock was got.
CREATE = """
CREATE FUNCTION audit_locked_head(wanted bigint) RETURNS TABLE (sequence bigint, hash bytea)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('adapterhub.audit'), COALESCE(wanted, 0)::int);
    IF wanted IS NULL THEN
        RETURN QUERY SELECT e.sequence, e.hash FROM audit_auditevent e WHERE e.project_id IS NULL
            ORDER BY e.sequence DESC LIMIT 1;
    ELSE
        RETURN QUERY SELECT e.sequence, e.hash FROM audit_auditevent e WHERE e.project_id = wanted
            ORDER BY e.sequence DESC LIMIT 1;
    END IF;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0004_kept_checkpoints")]

    operations = [migrations.RunSQL(CREATE, "DROP FUNCTION audit_locked_head(bigint)")]
