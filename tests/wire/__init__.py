"""The structs, their bytes, and connections."""
