"""The project as a whole: sources, documents, packaging, examples, compiled modules."""
