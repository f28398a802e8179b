"""A dataset's content is erased by two people and never under a legal hold, for raw SQL too; its row is kept."""

from django.db import migrations

PROTECT = """
CREATE FUNCTION training_dataset_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status = 'erased' AND to_jsonb(NEW) IS DISTINCT FROM to_jsonb(OLD) THEN
        RAISE EXCEPTION 'dataset % is erased for good', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status = 'erased' AND OLD.status <> 'erased' AND (
        OLD.hold_reason <> '' OR NEW.hold_reason <> '' OR NOT EXISTS (
            SELECT 1 FROM training_erasure WHERE dataset_id = OLD.id AND status = 'approved'
        )
    ) THEN
        RAISE EXCEPTION 'dataset % is erased by an approved request and without a legal hold', OLD.id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION training_erasure_is_decided_once() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changeable text[] := ARRAY['status', 'signer_id', 'meaning', 'decided_at'];
BEGIN
    IF TG_OP = 'INSERT' AND NEW.status <> 'pending' THEN
        RAISE EXCEPTION 'an erasure begins as pending' USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_OP = 'UPDATE' AND (OLD.status <> 'pending'
        OR to_jsonb(NEW) - changeable IS DISTINCT FROM to_jsonb(OLD) - changeable) THEN
        RAISE EXCEPTION 'an erasure is decided once and keeps what it is about' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER kept BEFORE UPDATE ON training_dataset FOR EACH ROW EXECUTE FUNCTION training_dataset_is_kept();
CREATE TRIGGER kept_rows BEFORE DELETE ON training_dataset FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_table BEFORE TRUNCATE ON training_dataset
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER decided BEFORE INSERT OR UPDATE ON training_erasure
    FOR EACH ROW EXECUTE FUNCTION training_erasure_is_decided_once();
CREATE TRIGGER kept_rows BEFORE DELETE ON training_erasure FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_table BEFORE TRUNCATE ON training_erasure
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
ALTER TABLE training_dataset ENABLE ALWAYS TRIGGER kept;
ALTER TABLE training_dataset ENABLE ALWAYS TRIGGER kept_rows;
ALTER TABLE training_dataset ENABLE ALWAYS TRIGGER kept_table;
ALTER TABLE training_erasure ENABLE ALWAYS TRIGGER decided;
ALTER TABLE training_erasure ENABLE ALWAYS TRIGGER kept_rows;
ALTER TABLE training_erasure ENABLE ALWAYS TRIGGER kept_table;
"""
RELEASE = """
DROP TRIGGER kept_table ON training_erasure;
DROP TRIGGER kept_rows ON training_erasure;
DROP TRIGGER decided ON training_erasure;
DROP TRIGGER kept_table ON training_dataset;
DROP TRIGGER kept_rows ON training_dataset;
DROP TRIGGER kept ON training_dataset;
DROP FUNCTION training_erasure_is_decided_once();
DROP FUNCTION training_dataset_is_kept();
"""


class Migration(migrations.Migration):
    dependencies = [("training", "0010_erasures"), ("audit", "0006_append")]

    operations = [migrations.RunSQL(PROTECT, RELEASE)]
