"""The model of a volume (volume_model.py) with paths that are in no snapshot, against brute force.

The patterns change under way, and with every cut the model works out anew, from the root down, what they leave of the
tree; it knows nothing of what changed. The look before a cut is left out at times, so that a seal has to
ask for another cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.base.errors import SnapshotError
from snapfs.transfer.seal import whole_files
from tests.fakes.histories.volume_model import Image, Node, World

Rule = Callable[[str, bool], bool]


def _name(pattern: str) -> Rule:
    return lambda path, is_directory: fnmatchcase(path.rpartition("/")[2], pattern)


def _either(*rules: Rule) -> Rule:
    return lambda path, is_directory: any(rule(path, is_directory) for rule in rules)


def _directory(rule: Rule) -> Rule:
    return lambda path, is_directory: is_directory and rule(path, is_directory)


def _path(pattern: str) -> Rule:
    """Of a fixed number of components."""
    parts = pattern.split("/")
    return lambda path, _: len(parts) == path.count("/") + 1 and all(map(fnmatchcase, path.split("/"), parts))


RULES: dict[tuple[str, ...], Rule] = {
    (): lambda path, is_directory: False,
    ("n1/",): _directory(_name("n1")),
    ("n2", "n[34]"): _either(_name("n2"), _name("n[34]")),
    ("/n5/n*",): _path("n5/n*"),
    ("n6/n7", "x*"): _either(_path("n6/n7"), _name("x*")),
    ("n[0-5]", "!n3"): lambda path, is_directory: _name("n[0-5]")(path, is_directory) and not _name("n3")(path, False),
}


class ExcludingWorld(World):
    def __init__(self, seed: int, folder: Path, threads: int = 0) -> None:
        super().__init__(seed, folder, threads)
        self._change_patterns()

    def _change_patterns(self) -> None:
        self.exclude = self.rng.choice(sorted(RULES))

    def _is_out(self, path: str, node: Node) -> bool:
        return RULES[self.exclude](path, node.is_dir)

    def _excluded(self, image: Image) -> list[tuple[Ino, bytes]]:
        """The names that the patterns leave out, without those below."""
        found, directories = list[tuple[Ino, bytes]](), [(ROOT_INO, "")]
        while directories:
            directory, above = directories.pop()
            for name, ino in image[directory].entries.items():
                path = above + name.decode(errors="surrogateescape")
                if self._is_out(path, image[ino]):
                    found.append((directory, name))
                elif image[ino].is_dir:
                    directories.append((ino, path + "/"))
        return found

    def shown(self, image: Image) -> Image:
        left = {ino: replace(node, entries=dict(node.entries)) for ino, node in image.items()}
        for directory, name in self._excluded(image):
            del left[directory].entries[name]
        return _reachable(left)

    def snapshot(self) -> None:
        if self.sealing is not None:
            return
        if self.rng.random() < 0.3:
            self._change_patterns()
        if self.rng.random() < 0.7:
            whole_files.mark_joined(self.tree, self.repository, self.parent, self.exclude)
        super().snapshot()

    def expected(self, failure: SnapshotError) -> bool:
        inos = whole_files.not_kept(failure)
        if inos:
            self.counts["not kept"] += 1
            self.tree.tidy()
            whole_files.mark(self.tree, self.repository, self.parent, inos, self.rng.randrange(1, 3))
        return bool(inos)

    def rolled_back(self, target: Image, before: Image, present: Image) -> Image:
        """An excluded name stays where the target has its directory and not the name, or the inode from elsewhere."""
        image = {ino: replace(node, entries=dict(node.entries)) for ino, node in target.items()}
        below = [(directory, name, directory in target) for directory, name in self._excluded(present)]
        while below:
            directory, name, stays = below.pop()
            ino = present[directory].entries[name]
            node = present[ino]
            stays = stays and name not in image[directory].entries and not (ino in target and ino not in before)
            if stays:
                image.setdefault(ino, replace(node, entries={}))
                image[directory].entries[name] = ino
                self.counts["excluded and kept"] += 1
            below += [(ino, each, stays) for each in node.entries]
        return _reachable(image)


def _reachable(image: Image) -> Image:
    """What can be reached from the root, with the links that it has then."""
    links, directories = Counter[Ino](), [ROOT_INO]
    for directory in directories:
        for ino in image[directory].entries.values():
            links[ino] += 1
            if image[ino].is_dir:
                directories.append(ino)
    for directory in directories:
        links[directory] = 2 + sum(image[ino].is_dir for ino in image[directory].entries.values())
    return {ino: replace(image[ino], nlink=links[ino]) for ino in image if links[ino]}
