"""Every schedule of a small world, on the real code: see engine.py, and one_log.py for a world."""
