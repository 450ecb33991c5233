"""The client library and its command line.

May import: config and wire; neither node nor storage nor the protocol.
"""
