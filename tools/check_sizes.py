#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists functions of more than 80 lines and files of more than 500 in src/ (or in the folders given), and fails if there are any.

A function's lines are those from its signature to its closing brace; lambdas and local classes are part of the function around them.
"""

import pathlib
import re
import sys

MOST_FUNCTION_LINES, MOST_FILE_LINES = 80, 500
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}

# Text in which braces have no meaning: comments, strings, characters, preprocessor lines with their continuations.
OPAQUE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|^[ \t]*\#(?:\\\n|[^\n])*
    |R"(?P<mark>[^(\s]*)\(.*?\)(?P=mark)"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


def without_opaque(source):
    """The source with as many lines, and blanks where braces would not count."""
    return OPAQUE.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), source)


def kind_of(head):
    """What a brace opens at the scope of namespaces and classes, from the text before it."""
    head = re.sub(r"\b(alignas|__align__|__attribute__)\s*\((?:[^()]|\([^()]*\))*\)", "", head)
    if re.search(r"\bnamespace\b|\bextern\s*$", head):
        return "scope"
    if head.count("(") > head.count(")"):
        return "braces"  # an argument
    if re.search(r"\)[^;]*$", head) and not re.search(r"=\s*$", head):
        return "function"
    if re.search(r"\b(class|struct|union|enum)\b", head):
        return "scope"
    return "braces"  # an initialiser


def functions(source):
    """Pairs of a function's first and last line, and the text of its signature."""
    code = without_opaque(source)
    found, kinds, head_start = [], [], 0
    line_of = lambda at: code.count("\n", 0, at) + 1
    for match in re.finditer(r"[{};]", code):
        at = match.start()
        outside = all(kind == "scope" for kind, _, _ in kinds)
        if match.group() == "{":
            head = code[head_start:at]
            start = head_start + len(head) - len(head.lstrip())
            kinds.append((kind_of(head) if outside else "inner", start, " ".join(head.split())))
        elif match.group() == "}" and kinds:
            kind, start, head = kinds.pop()
            if kind == "function":
                found.append((line_of(start), line_of(at), head))
        head = code[head_start:at]
        in_parentheses = match.group() == ";" and head.count("(") > head.count(")")  # of a for, or a macro's
        if all(kind == "scope" for kind, _, _ in kinds) and not in_parentheses:
            head_start = at + 1
    return found


def name_of(head):
    """The name in a signature: the word before its first parenthesis, past attributes."""
    words = re.sub(r"\b(__\w+__|requires)\s*\((?:[^()]|\([^()]*\))*\)", "", head)
    found = re.search(r"([~\w:]+|operator\s*\S+?)\s*\(", words)
    return found.group(1) if found else head[:60]


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    folders = [pathlib.Path(folder) for folder in sys.argv[1:]] or [root / "src"]
    complaints, count = [], 0
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES):
        source = path.read_text()
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        lines = source.count("\n")
        if lines > MOST_FILE_LINES:
            complaints.append(f"{shown}: {lines} lines; a file has at most {MOST_FILE_LINES}")
        for first, last, head in functions(source):
            count += 1
            if last - first + 1 > MOST_FUNCTION_LINES:
                has = f"{name_of(head)}() has {last - first + 1} lines"
                complaints.append(f"{shown}:{first}: {has}; a function has at most {MOST_FUNCTION_LINES}")
    print("\n".join(complaints) or f"{count} functions, none too long")
    if count == 0:
        sys.exit("check_sizes.py: found no function at all")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
