"""Find phrases that this project does not use, in every tracked *.py, *.md and *.jinja: `python .ci/prose.py`.

They are literal translations that a native speaker has to read twice. Each is given with what to write instead.
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
    r"\banew\b": "again, over",
    r"\bby heart\b": "memorise",
    r"\bfor ever\b": "forever",
    r"\b[Ww]hat (?:a|an|the) \w+ may not\b": "rules for, limits of",
    r"\b[Bb]eside (?:an?|the|each|its?|others?|th[aio][ts]e?|them|stock|one|two|always)\b": "next to, compared with",
    r"\b(?:goes|went|go) on (?:after|with|into|under|where|from|serving|being)\b(?! crashed)": "continues",
    r"\bdearest\b": "most expensive",
    r"\bsurest (?!\.)(?:prompt|half|third|two|one|answers?|rows?)\b": "most confident",
    r"\btried again\b": "retried",
    r"\b[Bb]ut for (?:a|an|one|case|those|its|their|the)\b": "except",
    r"\b[Ww]hat(?:ever)? became of\b": "the result of, whatever its state",
    r"\bhas to know\b": "must define, needs to know",
    r"\bwhat a person should know\b": "messages for the user",
    r"\ball the same\b": "anyway, identical",
    r"\b[Bb]roke off\b|\bbroken off\b": "was interrupted",
    r"\bin the place of\b": "instead of",
}
SELF = ".ci/prose.py"


def main() -> int:
    files = subprocess.check_output(["git", "ls-files", "*.py", "*.md", "*.jinja"], text=True).splitlines()
    phrase = re.compile("|".join(f"({pattern})" for pattern in INSTEAD))
    found = [line for file in files if file != SELF and Path(file).is_file() for line in _find(file, phrase)]
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


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
