"""Messages and bytes.

structs has the messages, codec makes bytes of them and back, validation has the limits. methods makes frames
for the calls of the interface, and connection moves frames.

May import: kvstore.
"""
