"""The embedded default: Postgres, Valkey and every process of AdapterHub on one machine, without root and without Docker."""
