"""Write the stanzas of the bundled Python packages for debian/copyright, and see that each brings its licence's text.

    wheel_licences.py SITE-PACKAGES

A stanza names the files, the licence as the metadata has it, who claims the copyright, and where the texts lie. Where a
wheel comes without the text, it is in packaging/licences and is laid beside the metadata. Standard library only, as it
runs with the system's Python when the package is built.

SystemExit where a package names no licence or has no text.
"""

from __future__ import annotations

import re
import shutil
import sys
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

OWN = "snapfs"
KEPT = Path(__file__).resolve().parent / "licences"
"""NAME.txt: the text of a package whose wheel has none, from the source of that package."""
_TEXT = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
_CLAIM = re.compile(
    r"^[\s#*]*((?:Copyright|\(c\)|©)\s.*?(?:\d{4}|contributors).*?)[\s*]*$", re.IGNORECASE | re.MULTILINE
)
_CLASSIFIED = {
    "MIT License": "Expat",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
_REWORDED = {"Apache 2.0": "Apache-2.0", "MIT": "Expat"}
_COPIES = {"Apache-2.0": "Apache-2.0", "LGPL-2.1": "LGPL-2.1", "MPL-2.0": "MPL-2.0"}
"""Licences whose text is in /usr/share/common-licenses, under this name."""


def main(packages: Path) -> int:
    wrong: list[str] = []
    for folder in sorted(packages.glob("*.dist-info")):
        metadata = HeaderParser().parsestr((folder / "METADATA").read_text())
        if metadata["Name"] == OWN:
            continue
        _lay_kept_text(folder, metadata["Name"])
        licence, texts = licence_of(metadata), texts_of(folder)
        if not licence or not texts:
            wrong.append(f"{metadata['Name']} has no {'text of its licence' if licence else 'licence'}")
        print(stanza(packages, folder, metadata, licence, texts))
    if wrong:
        sys.exit("wheel_licences: " + "; ".join(wrong))
    return 0


def licence_of(metadata: Message) -> str:
    """As the metadata has it, in the words of Debian's format; empty if it names none."""
    named = metadata["License-Expression"] or metadata["License"]
    if named and "\n" not in named:
        words = re.sub(r"\s+", " ", named.strip())
        joined = re.sub(r" (AND|OR) ", lambda found: found[0].lower(), words)
        return " ".join(_REWORDED.get(word, word) for word in [_REWORDED.get(joined, joined)])
    classified = [each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier", []) if "License ::" in each]
    return " or ".join(_CLASSIFIED.get(each, each) for each in classified)


def texts_of(folder: Path) -> list[Path]:
    """The files of a dist-info folder that hold licences, notices and authors, sorted."""
    return sorted(each for each in folder.rglob("*") if each.is_file() and _TEXT.search(each.name))


def stanza(packages: Path, folder: Path, metadata: Message, licence: str, texts: list[Path]) -> str:
    claims = dict.fromkeys(claim for text in texts for claim in _CLAIM.findall(text.read_text(errors="replace")))
    author = metadata["Author"] or metadata["Author-email"] or metadata["Maintainer"]
    holders = list(claims) or [author or f"the authors of {metadata['Name']}"]
    copies = [f"/usr/share/common-licenses/{name}" for key, name in _COPIES.items() if key in licence]
    where = [f"/usr/lib/snapfs/{text.relative_to(packages.parents[2])}" for text in texts]
    lines = [
        "",
        f"Files: {' '.join(_files(packages, folder))}",
        "Copyright: " + "\n ".join(holders),
        f"License: {licence}",
        f" {metadata['Name']} {metadata['Version']}, as its authors released it. The text is in",
        *(f"  {path}" for path in where),
    ]
    if copies:
        lines.append(f" and on Debian systems in {', '.join(copies)}.")
    return "\n".join(lines)


def _lay_kept_text(folder: Path, name: str) -> None:
    kept = KEPT / f"{name}.txt"
    if kept.exists() and not texts_of(folder):
        (folder / "licenses").mkdir(exist_ok=True)
        shutil.copy(kept, folder / "licenses/LICENSE")


def _files(packages: Path, folder: Path) -> list[str]:
    """Patterns of what the package brings, by its list of top-level names, else by the name of its folder."""
    listed = folder / "top_level.txt"
    name = folder.name.partition("-")[0]
    tops = [name, *(listed.read_text().split() if listed.exists() else [])]
    own = {top: packages / top for top in dict.fromkeys(tops) if not top.startswith("_") or listed.exists()}
    found = [f"{top}/*" if path.is_dir() else f"{top}*" for top, path in own.items() if any(packages.glob(f"{top}*"))]
    return [f"*/site-packages/{each}" for each in [*found, f"{folder.name}/*"]]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
