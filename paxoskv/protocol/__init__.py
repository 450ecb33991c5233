"""The rest of a node's protocol, in parts: each owns its state, and knows no Node.

No part does I/O, looks at a clock or draws random numbers of its own. What is to be sent, journaled, applied
or answered goes into one Outbox. node.Node is the frame that joins the parts.

May import: multipaxos, wire.
"""
