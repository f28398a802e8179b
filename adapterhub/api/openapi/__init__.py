"""Parts of the OpenAPI description that serializers alone do not give."""
