"""A trace as text, as a sequence diagram for Mermaid, as SVG, and as a page to step through."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from json import dumps, loads
from math import atan2, degrees
from pathlib import Path
from typing import Any, Final

from paxoskv.page.words import Event, Step, message, steps

TEMPLATE: Final = Path(__file__).with_name("page.html")
COLUMN, ROW, TOP, LEFT = 90, 26, 56, 70  # of the SVG, in pixels
LOST_AT: Final = 0.6  # of its way a lost message comes so far
COLORS: Final = {  # those of Okabe and Ito, which color-blind people tell apart; dark enough for thin lines
    "Prepare": "#a86400", "Promise": "#a86400", "Accept": "#0072b2", "Accepted": "#0072b2",
    "lost": "#c43c00", "chosen": "#00704f",
}  # fmt: skip
OTHER: Final = "#767676"


FORMS: Final = ("html", "svg", "mermaid", "json")  # of files: the methods of Drawing that make them


class Drawing:
    """A trace, read from its lines: what it is, and its steps."""

    def __init__(self, lines: Iterator[str] | Sequence[str], gossip: bool = False) -> None:
        """`gossip`: whether the drawings show what tells no story, too."""
        self.lines = list(lines)
        self.header, *events = [loads(line) for line in self.lines]
        begin: int = self.header.get("before", 0)
        self.before, self.events = events[:begin], events[begin:]
        self.members: list[int] = self.header["nodes"]
        self.steps = steps(self.events, self.members, self.before)
        self.shown = [step for step in self.steps if gossip or not step.minor]
        self.sent = {event["id"]: event for event in self.events if event["kind"] == "sent"}

    def title(self) -> str:
        return str(self.header.get("title", "A run"))

    def save(self, files: Mapping[str, Any], write: Callable[[str], object]) -> bool:
        """Write the files that are named by their forms, and tell it. OSError names the file.

        `write` is given what is for "-", which stands for stdout.
        """
        asked = [(form, files[form]) for form in FORMS if files.get(form)]
        for form, path in asked:
            text = getattr(self, form)()
            if path == "-":
                write(text)
                continue
            try:
                Path(path).write_text(text, encoding="utf-8")
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            print(f"{path} is written", file=sys.stderr)
        return bool(asked)

    def json(self) -> str:
        """The lines themselves."""
        return "\n".join(self.lines) + "\n"

    def text(self) -> str:
        """One paragraph for each step."""
        lines = [self.title(), self.header.get("text", ""), ""]
        for step in self.shown:
            begin = f"{step.time * 1000:9.2f} ms  " if step.timed else " " * 14
            for line in step.lines:
                lines.append(begin + line)
                begin = " " * len(begin)
        return "\n".join(lines) + "\n"

    def mermaid(self) -> str:
        """A sequence diagram: an arrow where a message arrives, or a cross where it is lost."""
        lines = ["sequenceDiagram", "    participant C as client"]
        lines += [f"    participant N{node} as node {node}" for node in self.members]
        for step in self.shown:
            for event in step.events:
                lines += self._arrow(event)
            notes = [
                words
                for kind, words in step.caption
                if kind not in ("sent", "delivered", "lost", "asked", "answered")
            ]
            if notes and step.node:
                lines.append(f"    Note over N{step.node}: {_plain('<br/>'.join(notes))}")
            elif notes:
                lines.append(f"    Note over N{self.members[0]},N{self.members[-1]}: {_plain(notes[0])}")
        return "\n".join(lines) + "\n"

    def _arrow(self, event: Event) -> Iterator[str]:
        kind, node = event["kind"], event["node"]
        if kind == "delivered":
            yield f"    N{event['from']}->>N{node}: {_plain(message(event))}"
        elif kind == "lost":
            yield f"    N{event['from']}-xN{event['to']}: {event['message']} (lost)"
        elif kind == "asked":
            yield f"    C->>N{node}: {_plain(', '.join(event['commands']))}"
        elif kind == "answered":
            yield f"    N{node}-->>C: {_plain(event['answer'])}"

    # ----------------------------------------------------------------------------------------- a picture

    def svg(self) -> str:
        """A space-time diagram: a line for each node, time goes down, a row for each step."""
        rows = {id(event): number for number, step in enumerate(self.shown) for event in step.events}
        at = {event["id"]: rows[id(event)] for event in self.events if id(event) in rows}
        height = TOP + ROW * len(self.shown) + 20
        width = LEFT + COLUMN * len(self.members) + 680
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="sans-serif" font-size="12">',
            f"<title>{escape(self.title())}</title>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="8" y="20" font-size="15" font-weight="bold">{escape(self.title())}</text>',
        ]
        for node in self.members:
            x = self._x(node)
            parts.append(f'<text x="{x}" y="{TOP - 14}" text-anchor="middle">node {node}</text>')
            parts.append(f'<path d="M{x} {TOP - 8}V{height - 10}" stroke="#999999"/>')
        for event in self.events:
            if event["kind"] in ("delivered", "lost") and event.get("cause") in at and event["id"] in at:
                parts.append(self._line(event, at[event["cause"]], at[event["id"]]))
        for number, step in enumerate(self.shown):
            parts += self._row(number, step)
        return "\n".join([*parts, "</svg>"]) + "\n"

    def _x(self, node: int) -> float:
        return LEFT + COLUMN * (self.members.index(node) + 0.5)

    def _line(self, event: Event, begin: int, end: int) -> str:
        lost = event["kind"] == "lost"
        x1, x2 = self._x(event["from"]), self._x(event["to"] if lost else event["node"])
        y1, y2 = TOP + ROW * (begin + 0.5), TOP + ROW * (end + 0.5)
        color = COLORS["lost"] if lost else COLORS.get(event["message"], OTHER)
        if lost:
            y2 = max(y2, y1 + ROW / 2)
            x2, y2 = x1 + LOST_AT * (x2 - x1), y1 + LOST_AT * (y2 - y1)
            mark = f'<text x="{x2}" y="{y2 + 4}" fill="{color}" text-anchor="middle">✕ lost</text>'
        else:
            angle = degrees(atan2(y2 - y1, (x2 - x1) / 2))  # of the curve's end
            mark = (
                f'<path d="M-4 0l-9 -4v8Z" fill="{color}" '
                f'transform="translate({x2} {y2}) rotate({angle:.0f})"/>'
            )
        return f'<path d="M{x1} {y1}Q{(x1 + x2) / 2} {y1} {x2} {y2}" fill="none" stroke="{color}"/>{mark}'

    def _row(self, number: int, step: Step) -> Iterator[str]:
        y = TOP + ROW * (number + 0.5) + 4
        if step.timed:
            yield f'<text x="8" y="{y}" fill="#666666">{step.time * 1000:.1f} ms</text>'
        words = " · ".join(words for _, words in step.caption)
        bold = (
            ' font-weight="bold"' if any(kind in ("chosen", "violation") for kind, _ in step.caption) else ""
        )
        who = f"{step.node}: " if step.node else ""
        x = LEFT + COLUMN * len(self.members) + 10
        yield f'<text x="{x}" y="{y}"{bold}>{who}{escape(words[:100])}</text>'
        if step.node:
            radius, fill = (7, COLORS["chosen"]) if bold else (4.5, "#222222")
            yield f'<circle cx="{self._x(step.node)}" cy="{y - 4}" r="{radius}" fill="{fill}"/>'

    # -------------------------------------------------------------------------------------------- a page

    def html(self) -> str:
        """One file that needs nothing else."""
        data = {
            "title": self.title(),
            "text": self.header.get("text", ""),
            "command": self.header.get("command", ""),
            "nodes": self.members,
            "only": self.header.get("only"),
            "before": [_compact(event) for event in self._still_true()],
            "steps": [[len(step.events), int(step.minor), step.caption, step.lines] for step in self.steps],
            "events": [_compact(event) for step in self.steps for event in step.events],
        }
        text = dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
        page = TEMPLATE.read_text(encoding="utf-8")
        return page.replace("<!--title-->", escape(self.title())).replace("/*data*/null", text)

    def _still_true(self) -> Iterator[Event]:
        """Of what was before: all but the messages that have arrived or were lost."""
        over = {event.get("cause") for event in self.before if event["kind"] in ("delivered", "lost")}
        for event in self.before:
            if "message" not in event or (event["kind"] == "sent" and event["id"] not in over):
                yield event


def _compact(event: Event) -> list[Any]:
    """What the page needs to know of an event; what is last and empty is left out."""
    found = [
        event["id"], round(event["time"] * 1e6), event["node"], event["kind"], event.get("cause", 0),
        event.get("because", []), event.get("log", 0), event.get("slot", 0), event.get("ballot", ""),
        event.get("to", event.get("from", 0)), [text for _, text in event.get("entries", ())],
        event.get("length", 0), event.get("message", ""), event.get("logs", []), event.get("leads", []),
    ]  # fmt: skip
    while not found[-1]:
        found.pop()
    return found


def _plain(text: str) -> str:
    """Without what Mermaid would take for its own."""
    return text.replace(";", ",").replace("#", "no. ")
