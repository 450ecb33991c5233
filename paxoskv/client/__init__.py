"""The client library and its command line.

May import: config, wire.
"""
