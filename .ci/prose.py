"""Find phrases that this project does not use, in every tracked *.py and *.md: `python .ci/prose.py`.

They are literal translations that a native speaker has to read twice. Write what is given beside each instead.
"""

import re
import subprocess
import sys
from pathlib import Path

INSTEAD = {
    r"\blies\b|\blie (?:at|below|beside|elsewhere|in|on|that|there|together)\b": "is, is stored, are",
    r"(?<!there )(?<!There )\b(?:is|are|was|were) no (?!(?:longer|more|less|better|worse|other)\b)[a-z]": "is not a",
    r"\bthat (?:is|are|was|were) none\b": "that is not one",
    r"\bbegun\b": "started",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"(?<!one )\b[Oo]f none\b": "without, none of them",
    r"\b[Ww]hoever\b": "anyone who, those who",
    r"\b[Ww]hat (?:a|an|the) \w+ may not\b": "rules for, limits of",
}
# Files that still hold some. Remove a line when its file is clean; add none.
ALLOWED = Path(__file__).with_name("prose_allowed.txt")
SELF = ".ci/prose.py"


def main() -> int:
    files = subprocess.check_output(["git", "ls-files", "*.py", "*.md"], text=True).splitlines()
    allowed = set(ALLOWED.read_text().split())
    phrase = re.compile("|".join(f"({pattern})" for pattern in INSTEAD))
    found = {file: _find(file, phrase) for file in files if file != SELF and Path(file).is_file()}
    for file, lines in found.items():
        if file not in allowed:
            print("\n".join(lines), end="\n" if lines else "")
    clean = sorted(file for file in allowed if not found.get(file))
    for file in clean:
        print(f"{file} is clean; remove it from {ALLOWED.name}")
    return int(bool(clean) or any(lines for file, lines in found.items() if file not in allowed))


def _find(file: str, phrase: re.Pattern[str]) -> list[str]:
    instead = list(INSTEAD.values())
    return [
        f"{file}:{number}: {match[0]!r}; write: {instead[match.lastindex - 1]}"
        for number, line in enumerate(Path(file).read_text("utf-8").splitlines(), start=1)
        for match in phrase.finditer(line)
        if match.lastindex
    ]


if __name__ == "__main__":
    sys.exit(main())
