"""An approval is decided by the role that may insert signatures; a broken glass names a person and keeps its date."""

from django.db import migrations

EARNED = """
CREATE OR REPLACE FUNCTION registry_approval_is_earned() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changeable text[] := ARRAY['status', 'decided_at', 'broken_by_id', 'review_due_at'];
    signed int;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> 'pending' THEN
            RAISE EXCEPTION 'an approval begins as pending' USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF to_jsonb(NEW) - changeable IS DISTINCT FROM to_jsonb(OLD) - changeable THEN
        RAISE EXCEPTION 'an approval keeps what it is about' USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status <> OLD.status AND NOT (OLD.status, NEW.status) IN (
        ('pending', 'approved'), ('pending', 'rejected'), ('pending', 'lapsed'), ('pending', 'glass_broken'),
        ('approved', 'used'), ('approved', 'lapsed'), ('glass_broken', 'reviewed')
    ) THEN
        RAISE EXCEPTION 'an approval that is % cannot become %', OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status <> OLD.status AND NEW.status IN ('approved', 'rejected', 'glass_broken', 'reviewed')
        AND NOT has_table_privilege('registry_signature', 'INSERT') THEN
        RAISE EXCEPTION 'an approval is decided by the signer' USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.status = 'pending' AND NEW.status = 'glass_broken' THEN
        IF NEW.review_due_at IS NULL OR NEW.review_due_at > now() + interval '25 hours' OR NOT EXISTS (
            SELECT 1 FROM accounts_user WHERE id = NEW.broken_by_id AND is_active AND NOT is_service
        ) THEN
            RAISE EXCEPTION 'a person breaks the glass, and its review is due in a day'
                USING ERRCODE = 'restrict_violation';
        END IF;
    ELSIF NEW.broken_by_id IS DISTINCT FROM OLD.broken_by_id
        OR (NEW.review_due_at IS NULL) <> (OLD.review_due_at IS NULL) OR NEW.review_due_at > OLD.review_due_at THEN
        RAISE EXCEPTION 'a broken glass keeps who broke it, and its review is not put off'
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT count(*) INTO signed FROM registry_signature
        WHERE approval_id = NEW.id AND bound = NEW.bound
        AND decision = CASE NEW.status WHEN 'reviewed' THEN 'review' ELSE 'approve' END;
    IF NEW.status <> OLD.status AND NEW.status IN ('approved', 'reviewed')
        AND signed < (CASE NEW.status WHEN 'reviewed' THEN 1 ELSE NEW.quorum END) THEN
        RAISE EXCEPTION 'an approval needs its signatures' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0018_people_behind")]

    operations = [migrations.RunSQL(EARNED, migrations.RunSQL.noop)]
