"""An erasure is decided by the role that may insert signatures."""

from django.db import migrations

DECIDED = """
CREATE OR REPLACE FUNCTION training_erasure_is_decided_once() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changeable text[] := ARRAY['status', 'signer_id', 'meaning', 'decided_at'];
BEGIN
    IF TG_OP = 'INSERT' AND (NEW.status <> 'pending' OR NEW.signer_id IS NOT NULL) THEN
        RAISE EXCEPTION 'an erasure begins as pending' USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_OP = 'UPDATE' AND (OLD.status <> 'pending'
        OR to_jsonb(NEW) - changeable IS DISTINCT FROM to_jsonb(OLD) - changeable) THEN
        RAISE EXCEPTION 'an erasure is decided once and keeps what it is about' USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_OP = 'UPDATE' AND NOT has_table_privilege('registry_signature', 'INSERT') THEN
        RAISE EXCEPTION 'an erasure is decided by the signer' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("training", "0021_files_of_datasets"), ("registry", "0019_signer")]

    operations = [migrations.RunSQL(DECIDED, migrations.RunSQL.noop)]
