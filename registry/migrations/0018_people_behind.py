"""Approvals name the people behind a request, signatures the signer's person; triggers compare both."""

import django.contrib.postgres.fields
from django.db import migrations, models

SIGNER = """
CREATE OR REPLACE FUNCTION registry_signer_is_another() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    asked registry_approval;
    opener bigint;
    maker bigint;
BEGIN
    SELECT * INTO asked FROM registry_approval WHERE id = NEW.approval_id;
    SELECT created_by_id INTO opener FROM registry_rollout WHERE id = asked.rollout_id;
    SELECT created_by_id INTO maker FROM registry_adapterversion WHERE id = asked.candidate_id;
    IF NEW.author_id IS DISTINCT FROM asked.author_id OR NEW.bound <> asked.bound
        OR asked.status NOT IN ('pending', 'glass_broken') THEN
        RAISE EXCEPTION 'a signature is of an open request as it was made' USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT accounts_mail_key(email) INTO NEW.person FROM accounts_user
        WHERE id = NEW.user_id AND is_active AND NOT is_service;
    IF COALESCE(NEW.person, '') = '' THEN
        RAISE EXCEPTION 'a signer is a person with a mail address' USING ERRCODE = 'restrict_violation';
    END IF;
    IF EXISTS (
        SELECT 1 FROM accounts_user AS behind
        LEFT JOIN accounts_user AS owner ON owner.id = behind.owner_id
        WHERE (behind.id IN (asked.author_id, asked.broken_by_id, opener, maker) OR behind.id = ANY (asked.people))
        AND (NEW.user_id IN (behind.id, behind.owner_id)
            OR NEW.person IN (accounts_mail_key(behind.email), accounts_mail_key(owner.email)))
    ) THEN
        RAISE EXCEPTION 'an author cannot approve their own change' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
"""
FILL = """
ALTER TABLE registry_signature DISABLE TRIGGER kept_rows;
UPDATE registry_signature AS signed SET person = COALESCE(
    NULLIF(accounts_mail_key(signer.email), ''), 'account:' || signer.id
) FROM accounts_user AS signer WHERE signer.id = signed.user_id;
UPDATE registry_signature AS signed SET person = 'account:' || signed.user_id WHERE EXISTS (
    SELECT 1 FROM registry_signature AS other
    WHERE other.approval_id = signed.approval_id AND other.person = signed.person AND other.id < signed.id
);
ALTER TABLE registry_signature ENABLE ALWAYS TRIGGER kept_rows;
"""


class Migration(migrations.Migration):
    # The triggers' events of filled rows are done before the table is changed again.
    atomic = False
    dependencies = [
        ("registry", "0017_signed_shares"),
        ("accounts", "0008_people_behind"),
    ]

    operations = [
        migrations.AddField(
            model_name="approval",
            name="people",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.BigIntegerField(),
                default=list,
                help_text="Keys of the people behind the request, who may not sign it.",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="signature",
            name="person",
            field=models.CharField(default="", editable=False, max_length=254),
            preserve_default=False,
        ),
        migrations.RunSQL(FILL, migrations.RunSQL.noop),
        migrations.AddConstraint(
            model_name="signature",
            constraint=models.UniqueConstraint(fields=("approval", "person"), name="one_signature_a_mail_address"),
        ),
        migrations.RunSQL(SIGNER, migrations.RunSQL.noop),
    ]
