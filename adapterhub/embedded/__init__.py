"""The embedded installation: Postgres, Valkey and every process of AdapterHub on one machine; no root, no Docker."""
