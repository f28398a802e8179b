"""MLflow's registered-model REST API and its artifact API, over adapters, versions and aliases.

The paths, fields and error codes are those of `mlflow.MlflowClient`; rights, tenants and audit events are those of the
calls below /api/v1/.
"""
