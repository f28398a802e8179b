"""The form of mail addresses by which accounts of one person are recognised, for quoted names and other alphabets."""

from django.db import migrations

# As before, the form has no case, no width, no invisible characters, and nothing behind a plus. It has no quotes
# either, and an address that is not ASCII has no form: its domain could be written in two ways, and letters look alike.
MAIL_KEY = r"""
CREATE OR REPLACE FUNCTION accounts_mail_key(address text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN plain ~ '^[\u0021-\u007e]+$' AND plain ~ '^[^@]+@[^@]+$' THEN plain ELSE '' END FROM (
        SELECT regexp_replace(rtrim(lower(normalize(regexp_replace(
            COALESCE(address, ''),
            '[\s\u0001-\u0020\u00a0\u00ad\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff"\\]', '', 'g'
        ), NFKC)), '.'), '\+[^@]*@', '@') AS plain
    ) AS cleaned
$$;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0013_project_limits"),
    ]

    operations = [
        migrations.RunSQL(MAIL_KEY, migrations.RunSQL.noop),
    ]
