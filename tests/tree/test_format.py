# SPDX-License-Identifier: Apache-2.0
"""The hand, as far as a program can tell: clang-format, lengths, nothing left open."""
import re
import shutil
import subprocess
import unittest

import tree

FUNCTION_LINES = 80
FILE_LINES = 700
SOURCES = (".c", ".h", ".py", ".sh", ".js")
TEXTS = SOURCES + (".md", ".txt", ".conf", ".yaml", ".cmake", ".service", ".css", ".html")
# Written so that this file does not hold them.
OPEN_ENDS = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
# A number after '#', "issue", "GH" or "PR"; not a colour, an HTML entity or a C format.
ISSUE = re.compile(r"(?<![\w&#\"'])#\d{1,5}\b(?!\s*[;}])|"
                   r"\b(?:[Ii]ssues?|GH|PR|pull request)[ -]#?\d+\b")


def functions(lines):
    """(first line, its number, length) of every function of a C file as clang-format leaves it:
    its braces, and nothing else that ends in one, stand in column 0."""
    first = None
    for number, line in enumerate(lines, 1):
        if line == "{":
            first = number - 1
            while lines[first - 1][:1].isspace():
                first -= 1
        elif line == "}" and first:
            yield lines[first - 1], first, number - first + 1
            first = None


def matches(pattern, endings):
    for path in tree.files(*endings):
        for number, line in enumerate(tree.lines(path), 1):
            if pattern.search(line):
                yield f"{path}:{number}: {line.strip()}"


class Format(unittest.TestCase):
    def test_clang_format_would_change_nothing(self):
        program = shutil.which("clang-format-14") or shutil.which("clang-format")
        if not program or "version 14." not in subprocess.check_output([program, "--version"],
                                                                       text=True, timeout=60):
            self.skipTest("clang-format 14 is not installed")
        done = subprocess.run([program, "--dry-run", "-Werror", *tree.files(".c", ".h")],
                              cwd=tree.SOURCE, capture_output=True, text=True, timeout=300,
                              check=False)
        places = [x for x in done.stderr.splitlines() if ": error: " in x]
        self.assertEqual(done.returncode, 0, "\n" + ("\n".join(places) or done.stderr))


class Lengths(unittest.TestCase):
    def test_no_function_is_longer_than_80_lines(self):
        found, long = 0, []
        for path in tree.files(".c", ".h"):
            for name, number, length in functions(tree.lines(path)):
                found += 1
                if length > FUNCTION_LINES:
                    long.append(f"{path}:{number}: {length} lines: {name}")
        self.assertGreater(found, 100)
        self.assertEqual(long, [], "\n" + "\n".join(long))

    def test_no_file_is_longer_than_700_lines(self):
        lengths = {f: len(tree.lines(f)) for f in tree.files(*SOURCES)}
        self.assertEqual({f: n for f, n in lengths.items() if n > FILE_LINES}, {})

    def test_functions_are_measured_from_their_first_line_to_the_last(self):
        text = ["#include <a.h>", "", "static int a(int b,", "             int c)", "{",
                "    if (b) {", "    }", "}", "", "struct x {", "    int y;", "};", "int d(void)",
                "{", "}"]
        self.assertEqual(list(functions(text)),
                         [("static int a(int b,", 3, 6), ("int d(void)", 13, 3)])


class OpenEnds(unittest.TestCase):
    def test_nothing_is_left_open(self):
        self.assertEqual(list(matches(OPEN_ENDS, TEXTS)), [])

    def test_no_issue_is_named_by_number(self):
        self.assertEqual(list(matches(ISSUE, TEXTS)), [])

    def test_the_patterns_find_what_they_are_for(self):
        for text in ("/* TO" "DO: x */", "# FIX" "ME", "X" "XX"):
            self.assertTrue(OPEN_ENDS.search(text), text)
        for text in ("see #" "12", "(#" "7)", "issue " "12", "GH-" "3", "fixes issue #" "9"):
            self.assertTrue(ISSUE.search(text), text)
        for text in ("mkstemp(\"XXXXXX\")", "color: #000;", "&#39;", "a#1", "printf(\"#1\")",
                     "RFC 7578"):
            self.assertFalse(ISSUE.search(text) or OPEN_ENDS.search(text), text)


if __name__ == "__main__":
    unittest.main()
