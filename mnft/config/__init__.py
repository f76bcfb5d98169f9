"""The typed config: schema, loading, documentation."""
