"""Runs a regular expression over a text in time linear in both: all ways to match go on side by side, none is tried anew."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.regexp.classes import PERL, Chars
from llmgallery.templates.gotmpl.regexp.syntax import At, Choice, Group, Node, One, Repeat, Sequence, Tree, wrong

LARGEST = 10_000  # instructions
Marks = tuple[int, ...]  # begin and end of the match and of each group, -1 where it took no part


@dataclass
class Step:
    """An instruction: `take` a character of `chars` and go on behind; `split` to both of `to`, the first preferred; `mark` the
    position as number `slot`; stand at a `place`; `match`.
    """

    kind: str
    chars: Chars | None = None
    to: tuple[int, int] = (0, 0)
    slot: int = 0
    place: str = ""


@dataclass
class Program:
    steps: list[Step] = field(default_factory=list)
    slots: int = 2
    anchored: bool = False
    prefix: str = ""


class _Compiler:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.steps: list[Step] = []

    def add(self, step: Step) -> int:
        if len(self.steps) >= LARGEST:
            raise wrong("expression too large", self.pattern)
        self.steps.append(step)
        return len(self.steps) - 1

    def node(self, node: Node) -> None:
        """Appends what matches `node`; goes on at the end of it."""
        match node:
            case One():
                self.add(Step("take", chars=node.chars))
            case At():
                self.add(Step("place", place=node.place))
            case Sequence():
                for part in node.parts:
                    self.node(part)
            case Choice():
                self.choice(node)
            case Group():
                self.add(Step("mark", slot=2 * node.number))
                self.node(node.part)
                self.add(Step("mark", slot=2 * node.number + 1))
            case Repeat():
                self.repeat(node)

    def split(self, first: int, second: int, greedy: bool) -> tuple[int, int]:
        return (first, second) if greedy else (second, first)

    def choice(self, node: Choice) -> None:
        jumps = []
        for option in node.options[:-1]:
            fork = self.add(Step("split"))
            self.node(option)
            jumps.append(self.add(Step("split")))
            self.steps[fork].to = (fork + 1, len(self.steps))
        self.node(node.options[-1])
        for jump in jumps:
            self.steps[jump].to = (len(self.steps), len(self.steps))

    def repeat(self, node: Repeat) -> None:
        if node.most is None:
            for _ in range(node.least - 1):
                self.node(node.part)
            self.any_number(node)
            return
        for _ in range(node.least):
            self.node(node.part)
        forks = []
        for _ in range(node.most - node.least):
            forks.append(self.add(Step("split")))
            self.node(node.part)
        for fork in forks:
            self.steps[fork].to = self.split(fork + 1, len(self.steps), node.greedy)

    def any_number(self, node: Repeat) -> None:
        """x+ for what must come, x* for what need not; the latter is (x+)? where x may be empty, for the order of preference."""
        optional = node.least == 0
        if optional and not _may_be_empty(node.part):
            fork = self.add(Step("split"))
            self.node(node.part)
            back = self.add(Step("split"))
            self.steps[back].to = (fork, fork)
            self.steps[fork].to = self.split(fork + 1, len(self.steps), node.greedy)
            return
        fork = self.add(Step("split")) if optional else -1
        start = len(self.steps)
        self.node(node.part)
        end = self.add(Step("split"))
        self.steps[end].to = self.split(start, end + 1, node.greedy)
        if optional:
            self.steps[fork].to = self.split(fork + 1, len(self.steps), node.greedy)


def _may_be_empty(node: Node) -> bool:
    match node:
        case One():
            return False
        case At():
            return True
        case Sequence():
            return all(map(_may_be_empty, node.parts))
        case Choice():
            return any(map(_may_be_empty, node.options))
        case Group():
            return _may_be_empty(node.part)
        case Repeat():
            return node.least == 0 or _may_be_empty(node.part)


def compile_tree(tree: Tree, pattern: str) -> Program:
    """Raises GoError when the program would be too large."""
    compiler = _Compiler(pattern)
    compiler.node(tree.root)
    compiler.add(Step("match"))
    return Program(compiler.steps, 2 * len(tree.names), _is_anchored(tree.root), _prefix(compiler.steps))


def _prefix(steps: list[Step]) -> str:
    """What every match begins with: the characters before the first choice."""
    chars = []
    for step in steps:
        if step.kind == "mark":
            continue
        only = step.chars.only if step.kind == "take" and step.chars is not None else ""
        if not only:
            break
        chars.append(only)
    return "".join(chars)


def _is_anchored(node: Node) -> bool:
    if isinstance(node, Sequence) and node.parts:
        return _is_anchored(node.parts[0])
    return isinstance(node, At) and node.place == "text start"


class Search:
    """The search for the leftmost match at or behind `start`; of those the one that a backtracking matcher would find first.
    The text may come in pieces: each `run` gets all of it so far. `found`: the match, final once `run` has returned True."""

    def __init__(self, program: Program, start: int) -> None:
        self.found: Marks | None = None
        self.at = start
        self._program = program
        self._blank: Marks = (-1,) * (program.slots - 1)
        self._threads: list[tuple[int, Marks]] = []

    @property
    def earliest(self) -> int:
        """Where the match begins, if there will be one, or no sooner than there."""
        begun = [marks[0] for _, marks in self._threads]
        return min([self.at, *begun, *(self.found[:1] if self.found else ())])

    def run(self, text: str, *, final: bool = True) -> bool:
        """Whether it is known what the match is, or that there is none. `final`: nothing comes behind `text`."""
        program, budget = self._program, current()
        # What stands behind a character tells whether it ends a word or a line.
        end = len(text) + 1 if final else len(text) - 1
        while self.at < end:
            if self.found is None and (not program.anchored or self.at == 0):
                if not self._threads and program.prefix and self._skip(text, end):
                    break
                seen = {pc for pc, _ in self._threads}
                _follow(program, self._threads, seen, 0, (self.at, *self._blank), text, self.at)
            at, self.at = self.at, self.at + 1
            if not self._threads:
                if self.found is not None or program.anchored:
                    return True
                budget.step()
                continue
            budget.step(1 + len(self._threads))
            self._threads, match = _advance(program, self._threads, text, at)
            self.found = match or self.found
        return final or (self.found is not None and not self._threads)

    def forget(self, count: int) -> None:
        """The first `count` characters of the text will be missing from now on; no match begins in them."""
        self.at -= count
        self._threads = [(pc, _shifted(marks, count)) for pc, marks in self._threads]
        self.found = self.found and _shifted(self.found, count)

    def _skip(self, text: str, end: int) -> bool:
        """On to where the program's first characters stand, or may come to stand; True when that is not before `end`."""
        prefix, start = self._program.prefix, self.at
        found = text.find(prefix, start)
        if found < 0:
            found = text.find(prefix[0], max(start, len(text) - len(prefix) + 1))
            while found >= 0 and not prefix.startswith(text[found:]):
                current().step()
                found = text.find(prefix[0], found + 1)
        self.at = found if found >= 0 else max(start, len(text))
        current().text(self.at - start)
        return self.at >= end or not text.startswith(prefix, self.at)


def _shifted(marks: Marks, count: int) -> Marks:
    return tuple(mark if mark < 0 else mark - count for mark in marks)


def search(program: Program, text: str, start: int) -> Marks | None:
    """The match of a Search in a text that is all there."""
    searching = Search(program, start)
    searching.run(text)
    return searching.found


def _advance(
    program: Program, threads: list[tuple[int, Marks]], text: str, at: int
) -> tuple[list[tuple[int, Marks]], Marks | None]:
    """Moves all threads over the character at `at`, and tells the match of the first that is through."""
    char = text[at] if at < len(text) else ""
    moved: list[tuple[int, Marks]] = []
    seen: set[int] = set()
    for pc, marks in threads:
        step = program.steps[pc]
        if step.kind == "match":
            return moved, (marks[0], at, *marks[2:])
        assert step.chars is not None
        if char and step.chars.has(char):
            _follow(program, moved, seen, pc + 1, marks, text, at + 1)
    return moved, None


def _follow(
    program: Program, threads: list[tuple[int, Marks]], seen: set[int], pc: int, marks: Marks, text: str, at: int
) -> None:
    """Adds the threads that `pc` leads to without taking a character, the preferred first."""
    stack = [(pc, marks)]
    count = 0
    while stack:
        pc, marks = stack.pop()
        if pc in seen:
            continue
        seen.add(pc)
        count += 1
        step = program.steps[pc]
        if step.kind == "split":
            stack += [(step.to[1], marks), (step.to[0], marks)]
        elif step.kind == "mark":
            stack.append((pc + 1, (*marks[: step.slot], at, *marks[step.slot + 1 :])))
        elif step.kind == "place":
            if _stands(step.place, text, at):
                stack.append((pc + 1, marks))
        else:
            threads.append((pc, marks))
    current().step(count)


def _stands(place: str, text: str, at: int) -> bool:
    if place == "text start":
        return at == 0
    if place == "text end":
        return at == len(text)
    if place == "line start":
        return at == 0 or text[at - 1] == "\n"
    if place == "line end":
        return at == len(text) or text[at] == "\n"
    word = PERL["w"]
    before = at > 0 and word.has(text[at - 1])
    after = at < len(text) and word.has(text[at])
    return (before != after) == (place == "word")
