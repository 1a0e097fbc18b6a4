# SPDX-License-Identifier: Apache-2.0
"""Holds answers of the daemon against the contract it serves at /openapi.json."""
import json
import re
import urllib.parse

from jsonschema import Draft202012Validator, RefResolver
from jsonschema.exceptions import best_match

METHODS = ("get", "put", "post", "delete", "patch")
PROBLEM = "application/problem+json"


class Broken(AssertionError):
    """An answer that the contract does not know."""


def strict_json(data):
    def refuse(word):
        raise Broken(f"{word} is not JSON")

    def unique(pairs):
        if len({k for k, _ in pairs}) != len(pairs):
            raise Broken("an object names a member twice")
        return dict(pairs)

    return json.loads(data.decode("utf-8"), parse_constant=refuse, object_pairs_hook=unique)


def pattern_of(path):
    """A path of the contract as a regular expression; {name} may hold slashes."""
    parts = re.split(r"(\{\w+\})", path)
    return re.compile("".join(
        re.escape(p) if not p.startswith("{") else ".+" if p == "{name}" else "[^/:]+"
        for p in parts))


class Contract:
    def __init__(self, document):
        self.document = document
        self.resolver = RefResolver.from_schema(document)
        self.paths = [(pattern_of(p), p) for p in document["paths"]]
        self.seen = set()

    def resolve(self, node):
        while "$ref" in node:
            node = self.resolver.resolve(node["$ref"])[1]
        return node

    def match(self, value, schema, what):
        validator = Draft202012Validator(schema, resolver=self.resolver)
        error = best_match(validator.iter_errors(value))
        if error:
            where = "/".join(map(str, error.absolute_path))
            raise Broken(f"{what}: at /{where}: {error.message[:600]}")

    def match_name(self, value, name):
        """Against a schema by its name."""
        self.match(value, {"$ref": "#/components/schemas/" + name}, name)

    def operations(self):
        """(method, path, operation) of all."""
        for path, item in self.document["paths"].items():
            for method in METHODS:
                if method in item:
                    yield method.upper(), path, item[method]

    def find(self, path):
        """The path of the contract that this one is, or None."""
        path = urllib.parse.unquote(path.partition("?")[0])
        for pattern, name in self.paths:
            if pattern.fullmatch(path):
                return name
        return None

    def response_of(self, method, path, status):
        """The contract's word on this status, and the operation's id."""
        common = self.document["components"]["responses"]
        name = self.find(path)
        if name is None:
            return common["Problem"], None
        item = self.document["paths"][name]
        operation = item.get("get" if method == "HEAD" else method.lower())
        if operation is None:
            return common["MethodNotAllowed" if status == 405 else "Problem"], None
        responses = operation["responses"]
        if str(status) not in responses and status < 400:
            raise Broken(f"{method} {name} is not said to answer {status}")
        return self.resolve(responses.get(str(status), responses["default"])), operation["operationId"]

    def check(self, method, path, answer, sent=None):
        """Everything about one answer. `sent` is the JSON document of the request."""
        self.check_everywhere(answer)
        if method == "OPTIONS" and answer.status == 204:
            if "allow" not in answer.headers:
                raise Broken("OPTIONS without Allow")
            return
        response, operation = self.response_of(method, path, answer.status)
        if operation is None and answer.status < 400:
            raise Broken(f"{method} {path} is not in the contract, and answered {answer.status}")
        self.check_headers(response, answer)
        self.check_body(response, method, answer)
        if operation:
            self.seen.add((operation, answer.status))
            if sent is not None and answer.status < 300:
                self.check_sent(method, path, sent)

    def check_everywhere(self, answer):
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers.get("x-request-id", "")):
            raise Broken("no X-Request-Id")
        if answer.headers.get("x-content-type-options") != "nosniff":
            raise Broken("no X-Content-Type-Options")
        if answer.status in (429, 503, 507) and not re.fullmatch("[1-9][0-9]*", answer.headers.get("retry-after", "")):
            raise Broken(f"{answer.status} with Retry-After {answer.headers.get('retry-after')!r}")

    def check_headers(self, response, answer):
        for name, header in response.get("headers", {}).items():
            header = self.resolve(header)
            value = answer.headers.get(name.lower())
            if value is None:
                raise Broken(f"{answer.status} without {name}")
            self.match(value, header["schema"], name)

    def check_body(self, response, method, answer):
        if method == "HEAD" or "content" not in response:
            if answer.body:
                raise Broken(f"{answer.status} with a body of {len(answer.body)} bytes")
            return
        media = answer.headers.get("content-type", "").partition(";")[0]
        if media not in response["content"]:
            raise Broken(f"{answer.status} with Content-Type {media!r}, {list(response['content'])} are known")
        if (media == "application/json" or media.endswith("+json")) and answer.status != 206:
            value = strict_json(answer.body)
            self.match(value, response["content"][media]["schema"], f"{answer.status} {media}")
            if media == PROBLEM:
                self.check_problem(value, answer)

    def check_problem(self, problem, answer):
        if problem["status"] != answer.status:
            raise Broken(f"a problem with status {problem['status']} came as {answer.status}")
        if problem["type"] != "/problems/" + problem["code"]:
            raise Broken(f"type {problem['type']} of code {problem['code']}")
        if problem["request_id"] != answer.headers["x-request-id"]:
            raise Broken("another request_id than X-Request-Id")
        for error in problem.get("errors", ()):
            if error["code"] != problem["code"]:
                raise Broken("errors[] of another code")

    def check_sent(self, method, path, sent):
        """What the daemon took must be what the contract says it takes."""
        operation = self.document["paths"][self.find(path)][method.lower()]
        body = self.resolve(operation["requestBody"])["content"]["application/json"]
        self.match(sent, body["schema"], "the request")
