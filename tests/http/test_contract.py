# SPDX-License-Identifier: Apache-2.0
"""The daemon is what its contract says: a tour over all routes, and what every route has in common.

Every answer of every test in this folder is held against /openapi.json (contract.py); here it is
seen that nothing in the contract was left out, and that it is itself in order.
"""
import json
import re
import unittest

import jemd_test
from jemd_test import b64, form, sample, submit, wait_ended
from jsonschema import Draft202012Validator

JOB = {"type": "sample", "conditions": [{"count": 2, "attributes": {"sex": "male"}}], "seed": "7",
       "sampler": {"steps": 4}, "outputs": ["grid", "images", "tensor", "trace"]}


def routes():
    """(method, pattern) of the daemon's own table."""
    with open(jemd_test.os.path.join(jemd_test.SOURCE, "server", "routes.c"), encoding="utf-8") as f:
        return re.findall(r'^    \{"([A-Z]+)", "([^"]+)",', f.read(), re.M)


class Document(jemd_test.Case):
    def setUp(self):
        self.document = self.get("/openapi.json").json()

    def test_it_is_openapi_3_1_with_sound_schemas(self):
        self.assertEqual(self.document["openapi"], "3.1.0")
        for schema in self.document["components"]["schemas"].values():
            Draft202012Validator.check_schema(schema)

    def test_it_has_the_version_of_the_daemon(self):
        self.assertEqual(self.document["info"]["version"], self.get("/version").json()["version"])

    def test_every_reference_leads_somewhere(self):
        def references(node):
            if isinstance(node, dict):
                if "$ref" in node:
                    yield node["$ref"]
                for value in node.values():
                    yield from references(value)
            elif isinstance(node, list):
                for value in node:
                    yield from references(value)

        found = set(references(self.document))
        self.assertGreater(len(found), 30)
        for reference in found:
            self.assertTrue(self.daemon.contract.resolver.resolve(reference)[1], reference)

    def test_it_has_the_routes_of_the_daemon_and_no_others(self):
        table = routes()
        self.assertGreater(len(table), 20)
        mine = {(m, re.sub(r"\{\w+\}", "{}", p)) for m, p, _ in self.daemon.contract.operations()}
        self.assertEqual(mine, {(m, p.replace("{*}", "{}")) for m, p in table})

    def test_operations_have_names_of_their_own(self):
        names = [o["operationId"] for _, _, o in self.daemon.contract.operations()]
        self.assertEqual(len(names), len(set(names)))

    def test_every_object_of_ours_is_closed(self):
        open_ones = {"sampler", "layers", "provenance", "calibration"}  # of the model file

        def check(node, name):
            if isinstance(node, dict):
                if "properties" in node and name not in open_ones:
                    self.assertIn("additionalProperties", node, name)
                for key, value in node.items():
                    if key not in open_ones:
                        check(value, key)
            elif isinstance(node, list):
                for value in node:
                    check(value, name)

        check(self.document["components"]["schemas"], "schemas")

    def test_every_problem_code_has_its_page(self):
        for code in self.document["components"]["schemas"]["ProblemCode"]["enum"]:
            page = self.good(self.get("/problems/" + code))
            self.assertEqual((page["code"], page["type"]), (code, "/problems/" + code))
            self.assertGreater(len(page["help"]), 20)

    def test_the_codes_are_those_of_the_daemon(self):
        with open(jemd_test.os.path.join(jemd_test.SOURCE, "core", "base", "fail.h"), encoding="utf-8") as f:
            names = re.findall(r"^    X\(\w+, (\w+)\)", f.read(), re.M)
        self.assertEqual(names, self.document["components"]["schemas"]["ProblemCode"]["enum"])
        self.problem(self.get("/problems/none"), 404, "not_found")

    def test_the_words_are_those_of_the_capabilities(self):
        schemas, can = self.document["components"]["schemas"], self.get("/v1/capabilities").json()
        sampler = schemas["Sampler"]["properties"]
        self.assertEqual(sampler["kind"]["enum"], can["samplers"] + [None])
        self.assertEqual(sampler["step_rule"]["enum"], can["step_rules"] + [None])
        self.assertEqual(set(sampler["start"]["anyOf"][0]["enum"]), {*can["starts"], None})
        self.assertEqual(schemas["JobRequest"]["properties"]["outputs"]["items"]["enum"], can["outputs"])
        self.assertEqual(schemas["JobType"]["enum"], can["job_types"] + ["train"])  # which is off here
        parameters = self.document["components"]["parameters"]
        self.assertEqual(parameters["Include"]["schema"]["items"]["enum"], can["predict_include"])
        self.assertEqual(parameters["Resize"]["schema"]["enum"], can["resize"])
        images = self.document["components"]["requestBodies"]["Images"]
        self.assertEqual(list(images["content"]), can["predict_content_types"])


class Tour(jemd_test.Case):
    """Every route, answered well and badly. The checks are in Daemon.request."""

    def documents(self):
        self.assertIn(b"<html", self.get("/").body)
        self.good(self.get("/livez"))
        self.good(self.get("/readyz"))
        self.assertGreater(len(self.good(self.get("/readyz?verbose"))["checks"]), 2)
        self.good(self.get("/version"))
        self.good(self.get("/openapi.json"))
        self.good(self.get("/problems/not_found"))
        self.good(self.get("/v1/capabilities"))
        self.assertIn(b"jemd_build_info", self.get("/metrics").body)

    def models(self):
        self.good(self.get("/v1/models"))
        self.good(self.get("/v1/models/sprites"))
        self.good(self.get("/v1/models/sprites/calibration"))
        version = self.good(self.get("/v1/models/sprites/versions"))["versions"][0]
        self.assertEqual(version["state"], "serving")
        promote = f"/v1/models/sprites/versions/{version['version']}:promote"
        self.assertFalse(self.good(self.post(promote))["changed"])
        self.problem(self.post("/v1/models/sprites/versions/none:promote"), 404, "not_found")
        self.problem(self.get("/v1/models/sprite/versions"), 404, "not_found")
        found = self.problem(self.get("/v1/models/sprite"), 404, "not_found")
        self.assertIn("sprite", found["detail"])
        self.problem(self.get("/v1/models/sprite/calibration"), 404, "not_found")

    def predictions(self):
        body, kind = form([("a", "a.png", "image/png", sample()), ("b", None, "image/png", sample())])
        listed = json.dumps({"images": [{"id": "one", "b64": b64(sample())}]})
        for path in ("/v1/predict", "/v1/models/sprites:predict", "/v1/score", "/v1/models/sprites:score"):
            everything = "?include=probabilities,logits,approximate_mass&given=sex=male&alpha=0.1"
            self.good(self.post(path + everything, sample(), "image/png"))
            self.good(self.post(path + "?include=", body, kind))
            self.good(self.post(path, listed))
            self.problem(self.post(path, b"", "image/png"), 422, "bad_image")
            self.problem(self.post(path, sample(), "text/plain"), 415, "unsupported_media_type")
            self.problem(self.post(path + "?inclde=x", sample(), "image/png"), 400, "unknown_field")
        self.problem(self.post("/v1/models/none:predict", sample(), "image/png"), 404, "not_found")
        self.problem(self.post("/v1/models/none:score", sample(), "image/png"), 404, "not_found")

    def jobs(self):
        self.good(self.post("/v1/jobs:validate", JOB))
        answer = self.post("/v1/jobs", JOB)
        job = self.good(answer, 202)
        path = answer.headers["location"]
        self.assertEqual(path, "/v1/jobs/" + job["id"])
        done = wait_ended(self.daemon, job["id"])
        self.assertEqual(done["state"], "succeeded", done["error"])
        current = self.get(path)
        self.assertEqual(self.get(path, {"If-None-Match": current.headers["etag"]}).status, 304)
        self.good(self.get("/v1/jobs"))
        self.good(self.get("/v1/queue"))
        self.assertIn(b"event: end", self.get(path + "/events").body)
        for artifact in done["result"]["artifacts"]:
            self.artifact(f"{path}/artifacts/{artifact['name']}")
        self.good(self.post(path + ":cancel"), 202)
        self.changes(path)
        self.assertEqual(self.daemon.request("DELETE", path).status, 204)
        return path

    def send(self, method, path, document):
        return self.daemon.request(method, path, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def changes(self, ended):
        self.good(self.post("/v1/queue:drain"))
        self.problem(self.post(ended + ":retry"), 503, "overloaded")
        self.good(self.post("/v1/queue:pause"))
        again = self.good(self.post(ended + ":retry"), 202)["links"]["self"]
        self.good(self.send("PATCH", again, {"priority": "low", "labels": {"a": "b"}}))
        self.problem(self.send("PATCH", again, {"seed": "1"}), 400, "unknown_field")
        self.good(self.post("/v1/jobs:cancel", {"label": "a"}))
        self.problem(self.send("PATCH", again, {"priority": "low"}), 409, "conflict")
        self.good(self.send("PUT", "/v1/jobs/123e4567-e89b-42d3-a456-426614174000", JOB), 202)
        self.problem(self.send("PUT", again, JOB), 409, "conflict")
        self.good(self.post("/v1/queue:resume"))
        wait_ended(self.daemon, "123e4567-e89b-42d3-a456-426614174000")

    def artifact(self, path):
        whole = self.get(path)
        self.assertEqual(whole.status, 200, whole)
        self.assertEqual(self.get(path, {"Range": "bytes=2-5"}).status, 206)
        self.assertEqual(self.get(path, {"If-None-Match": whole.headers["etag"]}).status, 304)
        self.problem(self.get(path, {"Range": "bytes=99999999-"}), 416, "range_not_satisfiable")

    def no_such_job(self, path):
        for suffix in ("", "/events", "/artifacts/grid.png"):
            self.problem(self.get(path + suffix), 404, "not_found")
        self.problem(self.post(path + ":cancel"), 404, "not_found")
        self.problem(self.daemon.request("DELETE", path), 404, "not_found")

    def test_every_operation_does_what_the_contract_says(self):
        self.documents()
        self.models()
        self.predictions()
        self.no_such_job(self.jobs())
        contract = self.daemon.contract
        worked = {name for name, status in contract.seen if status < 300}
        self.assertEqual(worked, {o["operationId"] for _, _, o in contract.operations()})

    def test_what_the_contract_refuses_the_daemon_refuses(self):
        """Bodies that break the schema of a job; the daemon must not be laxer than the contract."""
        validator = Draft202012Validator({"$ref": "#/components/schemas/JobRequest"},
                                         resolver=self.contract().resolver)
        count = 0
        for broken in self.broken_jobs():
            count += 1
            self.assertFalse(validator.is_valid(broken), broken)
            answer = self.post("/v1/jobs:validate", broken)
            self.assertIn(answer.status, (400, 422), (broken, answer))
        self.assertGreater(count, 60)

    def contract(self):
        self.get("/livez")
        return self.daemon.contract

    def broken_jobs(self):
        condition = JOB["conditions"][0]
        for missing in ("type", "conditions"):
            yield {k: v for k, v in JOB.items() if k != missing}
        for wrong in ([], 5, "x", None, True):
            yield wrong
        members = {
            "type": ["samples", 5, None, []], "model": [5, "m" * 64], "seed": ["x", "", -1, 1.5, "-1", [], True],
            "conditions": [{}, [], [5], "x", [condition] * 65, None], "sampler": [5, [], "sgld"],
            "image": [{}, "x", {"b64": 5}, {"b64": "", "c": 1}], "mask": [{}, "x", {"b64": 5}, {"b64": "", "c": 1}],
            "outputs": ["grid", [5], ["grids"], ["grid"] * 9], "preview_every_steps": [-1, 1.5, "1"],
            "priority": ["hi", 1], "deadline": [5, "2" * 41], "labels": [{"a": 5}, {"k" * 64: "v"}, {"k": "v" * 256}, []],
            "extra": [1]}
        for name, values in members.items():
            for value in values:
                yield {**JOB, name: value}
        inner = {"count": [0, -1, "1", 1.5], "attributes": [[], 5, {"sex": []}, {"sex": 1.5}, {"sex": {}},
                 {"sex": {"not": "male", "and": 1}}, {"sex": None}], "weights": [{"sex": -1}, {"sex": 1001}, {"sex": "1"}, 5],
                 "any_of": [[], {}, [5], [{}] * 17, [{"attribute": {}}]], "cuont": [1]}
        for name, values in inner.items():
            for value in values:
                yield {**JOB, "conditions": [{**condition, name: value}]}
        sampler = {"kind": ["nuts", 5], "leapfrog_steps": [0, 1001, 1.5], "range": [[1], [1, 2, 3], 5, ["a", "b"]], "steps": [-1, 1.5, "4"], "step_rule": ["free"], "noise": [-1, 1001, "1"],
                   "temperature": [0, -1], "langevin_steps": [0, 1001], "clamp": [[1], [1, 2, 3], 5, ["a", "b"]],
                   "start": ["here", 5, {"kind": "x"}, {"grid": -1}, {"sort": 1}], "stesp": [1]}
        for name, values in sampler.items():
            for value in values:
                yield {**JOB, "sampler": {name: value}}


class EveryRoute(jemd_test.Case):
    JOB = "00000000-0000-4000-8000-000000000000"

    def each(self):
        """(method, path) of every operation, with names filled in."""
        self.get("/livez")
        for method, path, _ in self.daemon.contract.operations():
            yield method, (path.replace("{code}", "io").replace("{model}", "sprites")
                           .replace("{version}", "1").replace("{job}", self.JOB).replace("{name}", "grid.png"))

    def test_an_unknown_path_is_404(self):
        for path in ("/nope", "/v1", "/v1/", "/v1/models/", "/v1/models/sprites/", "/v1/jobs/", "//livez", "/livez/",
                     "/v1/models/sprites:predict/x", "/v1/models/:predict", "/v1/jobs/a/b", "/v1/jobs/a/artifacts/",
                     "/v1/jobs/a:resume", "/LIVEZ", "/problems/", "/v1/models/%2F", "/.."):
            for method in ("GET", "POST", "OPTIONS"):
                found = self.problem(self.daemon.request(method, path), 404, "not_found")
                self.assertIn("/openapi.json", found["detail"])

    def test_another_method_is_405_and_allow_says_which(self):
        allowed = {}
        for method, path in self.each():
            allowed.setdefault(path, []).extend(["GET", "HEAD"] if method == "GET" else [method])
        for path, methods in allowed.items():
            for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "BREW"} - set(methods):
                answer = self.daemon.request(method, path)
                self.assertEqual(answer.status, 405, (method, path, answer))
                self.assertEqual(sorted(answer.headers["allow"].split(", ")), sorted(methods))
                if method != "HEAD":
                    self.problem(answer, 405, "method_not_allowed")

    def test_options_is_answered_with_allow(self):
        for method, path in self.each():
            answer = self.daemon.request("OPTIONS", path)
            self.assertEqual((answer.status, answer.body), (204, b""))
            self.assertIn(method, answer.headers["allow"].split(", "))

    def test_head_is_get_without_the_body(self):
        for method, path in self.each():
            if method != "GET":
                continue
            get, head = self.get(path), self.daemon.request("HEAD", path)
            self.assertEqual(get.status, head.status, path)
            self.assertEqual(head.body, b"")
            varying = {"date", "x-request-id", "content-length", "connection"}
            self.assertEqual({k: v for k, v in get.headers.items() if k not in varying},
                             {k: v for k, v in head.headers.items() if k not in varying}, path)

    def test_head_of_a_job_and_what_belongs_to_it(self):
        job = submit(self.daemon, JOB)
        wait_ended(self.daemon, job["id"])
        for suffix in ("", "/events", "/artifacts/grid.png"):
            path = f"/v1/jobs/{job['id']}{suffix}"
            head = self.daemon.request("HEAD", path, timeout=10)
            self.assertEqual((head.status, head.body), (200, b""), path)
            if suffix != "/events":
                self.assertEqual(head.headers["content-length"], str(len(self.get(path).body)))

    def test_accept_without_json_is_406_where_json_is_answered(self):
        others = ("/", "/metrics", "/events", "/artifacts/grid.png")
        for method, path in self.each():
            if not path.endswith(others):
                answer = self.daemon.request(method, path, headers={"Accept": "text/html, image/png;q=0.5"})
                self.problem(answer, 406, "not_acceptable")

    def test_accept_that_could_mean_json_is_taken(self):
        for accept in ("*/*", "application/*", "application/json", "text/html, application/json;q=0.1",
                       "application/problem+json", "APPLICATION/JSON", ""):
            self.good(self.get("/livez", {"Accept": accept}))

    def test_a_request_id_of_the_client_comes_back(self):
        answer = self.get("/nope", {"X-Request-Id": "mine-1.2_3"})
        self.assertEqual(answer.headers["x-request-id"], "mine-1.2_3")
        self.assertEqual(answer.json()["request_id"], "mine-1.2_3")
        for bad in ("a b", "x" * 65, "a\"b", ""):
            self.assertRegex(self.get("/livez", {"X-Request-Id": bad}).headers["x-request-id"], "^[0-9A-Z]{26}$")

    def test_documents_have_etags_that_work(self):
        for path in ("/", "/openapi.json"):
            etag = self.get(path).headers["etag"]
            self.assertEqual(self.get(path, {"If-None-Match": etag}).status, 304)
            self.assertEqual(self.get(path, {"If-None-Match": '"other"'}).status, 200)

    def test_if_none_match_may_be_a_list_or_a_star(self):
        etag = self.get("/openapi.json").headers["etag"]
        for value in (f'"other", {etag}', "W/" + etag, "*"):
            self.assertEqual(self.get("/openapi.json", {"If-None-Match": value}).status, 304, value)

    def test_an_error_is_json_whatever_it_quotes(self):
        """Sentences that quote the request are cut to a length; a character must not be cut in two."""
        for n in range(2):
            path = "/" + "a" * n + "%C3%A9" * 200
            self.problem(self.get(path), 404, "not_found")
            self.problem(self.daemon.request("POST", "/v1/jobs/" + path[1:n + 1 + 120]), 405, "method_not_allowed")
            self.problem(self.get("/v1/models/" + path[1:n + 1 + 360]), 404, "not_found")
            self.problem(self.get("/problems/" + path[1:n + 1 + 360]), 404, "not_found")
            self.problem(self.get("/v1/jobs?" + path[1:] + "=1"), 400, "unknown_field")
            self.problem(self.get("/v1/jobs?state=" + path[1:]), 422, "out_of_range")
            self.problem(self.post("/v1/predict?include=" + path[1:], sample(), "image/png"), 422, "out_of_range")
        for kind in (b"text/\xff\xfe", b"text/\xc3\xa9" * 20):
            got = self.daemon.raw_answer(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                                         b"Content-Length: 1\r\nContent-Type: " + kind + b"\r\n\r\nx")
            self.problem(got, 415, "unsupported_media_type")

    def test_a_kept_connection_serves_many_requests(self):
        connection = self.daemon.connection()
        self.addCleanup(connection.close)
        socket = None
        for i in range(50):
            connection.request("GET", ("/livez", "/nope", "/v1/models")[i % 3])
            response = connection.getresponse()
            response.read()
            self.assertEqual(response.status, (200, 404, 200)[i % 3])
            socket = socket or connection.sock
            self.assertIs(connection.sock, socket)

    def test_pipelined_requests_are_answered_in_order(self):
        one = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
        last = b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        got = self.daemon.raw(one * 3 + last)
        self.assertEqual([line[9:12] for line in re.findall(rb"HTTP/1\.1 \d{3}", got)],
                         [b"200", b"200", b"200", b"404"])

    def test_the_page_allows_nothing_from_elsewhere(self):
        policy = self.get("/").headers["content-security-policy"]
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("unsafe", policy)


if __name__ == "__main__":
    unittest.main()
