"""The controls of a page's forms with their labels and what explains them, read from its HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

# Elements that hold one control with its label and its help.
BOXES = ("p", "div", "label", "td", "dd", "fieldset", "form")
SILENT = ("hidden", "submit", "button")


@dataclass
class Control:
    """A control: its name, the id that a label names, the ids that describe it, and the boxes around it."""

    name: str
    id: str
    described_by: list[str]
    boxes: list[int]
    label: str = ""


@dataclass
class Text:
    """The text of a label or of a help, as it is read."""

    box: int
    of: str
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


class Controls(HTMLParser):
    """Reader of a page: `controls`, `labels` by the id that they name, and `helps` by their own id and their box."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.controls: list[Control] = []
        self.labels: list[Text] = []
        self.helps: list[Text] = []
        self._open: list[tuple[str, int]] = []
        self._texts: list[tuple[int, Text]] = []
        self._number = 0
        self._skips = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._number += 1
        given = {name: value or "" for name, value in attrs}
        if tag in ("input", "select", "textarea") and given.get("type") not in SILENT:
            boxes = [number for name, number in self._open if name in BOXES]
            described = given.get("aria-describedby", "").split()
            control = Control(given.get("name", ""), given.get("id", ""), described, boxes, given.get("aria-label", ""))
            self.controls.append(control)
        if tag in ("input", "br", "img", "hr", "meta", "link", "wbr"):
            return
        self._open.append((tag, self._number))
        if tag == "label":
            self._start(self.labels, Text(self._number, given.get("for", "")))
        elif "helptext" in given.get("class", "").split() or given.get("id", "").endswith("_helptext"):
            outer = next((number for name, number in reversed(self._open[:-1]) if name in BOXES), 0)
            self._start(self.helps, Text(outer, given.get("id", "")))
        elif tag in ("select", "textarea"):
            self._skips += 1

    def _start(self, texts: list[Text], text: Text) -> None:
        texts.append(text)
        self._texts.append((self._number, text))

    def handle_endtag(self, tag: str) -> None:
        if tag not in [name for name, _ in self._open]:
            return
        while self._open:
            name, number = self._open.pop()
            self._texts = [(start, text) for start, text in self._texts if start != number]
            self._skips -= name in ("select", "textarea")
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if self._skips <= 0:
            for _, text in self._texts:
                text.words.append(data)

    def label_of(self, control: Control) -> str:
        """The words of its label, or those that a screen reader is told; empty without either."""
        around = [one for one in self.labels if one.box in control.boxes]
        named = [one for one in self.labels if control.id and one.of == control.id]
        return next((one.text for one in (*named, *around)), control.label)

    def help_of(self, control: Control) -> str:
        """The words of the help that it names or that stands in a box with it alone; empty without one."""
        named = [one.text for one in self.helps if one.of and one.of in control.described_by]
        beside = [one.text for one in self.helps if one.box in control.boxes and self._is_of_one(one.box)]
        return next(iter((*named, *beside)), "")

    def _is_of_one(self, box: int) -> bool:
        """True if all controls in the box have one name, as checkboxes of one field do."""
        return len({control.name for control in self.controls if box in control.boxes}) == 1
