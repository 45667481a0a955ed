"""Models for other runtimes; see docs/export.md."""
