"""Messages and bytes: the structs of kvstore.thrift, their encoding, the methods, and connections.

May import: kvstore.
"""
