"""The chain's next event in one call: lock, head, hash and row, so that others wait for a chain as short as can be."""

from django.db import migrations

# The function is volatile, so that the head is read by a snapshot taken after the lock was got.
APPEND = """
CREATE FUNCTION audit_append(
    domain bytea, before_sequence bytea, after_sequence bytea, of_project bigint, at_time timestamptz, tag_name varchar,
    by_actor bigint, by_name varchar, by_method varchar, by_token varchar, about_type varchar, about_id varchar,
    about_name varchar, old jsonb, new jsonb, why text, proof jsonb, request varchar
) RETURNS audit_auditevent LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    last_sequence bigint := 0;
    last_hash bytea := decode(repeat('00', 32), 'hex');
    written audit_auditevent;
    bytes bytea;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('adapterhub.audit'), COALESCE(of_project, 0)::int);
    IF of_project IS NULL THEN
        SELECT sequence, hash INTO last_sequence, last_hash FROM audit_auditevent WHERE project_id IS NULL
            ORDER BY sequence DESC LIMIT 1;
    ELSE
        SELECT sequence, hash INTO last_sequence, last_hash FROM audit_auditevent WHERE project_id = of_project
            ORDER BY sequence DESC LIMIT 1;
    END IF;
    last_sequence := COALESCE(last_sequence, 0) + 1;
    last_hash := COALESCE(last_hash, decode(repeat('00', 32), 'hex'));
    bytes := before_sequence || convert_to(last_sequence::text, 'UTF8') || after_sequence;
    INSERT INTO audit_auditevent (
        project_id, sequence, at, tag, actor_id, actor_name, auth_method, token_id, object_type, object_id,
        object_name, before, after, reason, evidence, request_id, canonical, prev_hash, hash
    ) VALUES (
        of_project, last_sequence, at_time, tag_name, by_actor, by_name, by_method, by_token, about_type, about_id,
        about_name, old, new, why, proof, request, bytes, last_hash, sha256(domain || last_hash || bytes)
    ) RETURNING * INTO written;
    RETURN written;
END $$;

DROP FUNCTION audit_locked_head(bigint);
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0005_locked_head")]

    operations = [migrations.RunSQL(APPEND, migrations.RunSQL.noop)]
