"""What draws a trace: sentences, text, Mermaid, SVG, and a page of its own to step through.

All of it works on the events as they stand in a trace's JSON Lines, wherever they come from.

May import: trace.
"""
