#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""embed.py OPENAPI.yaml PAGE.html OUT.c: the files the daemon serves from memory, as C.

The contract becomes JSON; inline scripts and styles of the page are allowed by hash in its
Content-Security-Policy and nothing else is.
"""
import base64
import hashlib
import json
import re
import sys

import yaml


def policy(page):
    def hashes(tag):
        found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.S)
        return " ".join(
            "'sha256-" + base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() + "'"
            for t in found)
    return ("default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; "
            f"script-src {hashes('script')}; style-src {hashes('style')}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def array(name, data):
    lines = [f"static const unsigned char {name}_bytes[] = {{"]
    for i in range(0, len(data), 20):
        lines.append("".join(f"{b}," for b in data[i:i + 20]))
    lines.append("};")
    return "\n".join(lines)


def entry(name, data, content_type, csp):
    quoted = "NULL" if csp is None else json.dumps(csp)
    return (f"{array(name, data)}\n"
            f"const struct embedded embedded_{name} = {{{name}_bytes, sizeof {name}_bytes, "
            f"{json.dumps(content_type)}, \"{hashlib.sha256(data).hexdigest()}\", {quoted}}};\n")


def main():
    contract, page_file, out = sys.argv[1:4]
    with open(contract, encoding="utf-8") as f:
        openapi = json.dumps(yaml.safe_load(f), separators=(",", ":"), ensure_ascii=False).encode()
    with open(page_file, encoding="utf-8") as f:
        page = f.read()
    with open(out, "w", encoding="utf-8") as f:
        f.write('#include "server/embedded.h"\n\n')
        f.write(entry("openapi", openapi, "application/json", None))
        f.write(entry("page", page.encode(), "text/html; charset=utf-8", policy(page)))


if __name__ == "__main__":
    main()
