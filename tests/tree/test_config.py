# SPDX-License-Identifier: Apache-2.0
"""The files around the daemon agree with it: alerts and dashboard name metrics and labels that exist,
the unit is hardened, and its files and users are the ones the settings speak of."""
import configparser
import json
import os
import re
import shutil
import subprocess
import unittest

try:
    import yaml
except ImportError:
    yaml = None

SOURCE = os.environ.get("JEMD_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
EXPOSURE_MAX = 1.5
# Labels that Prometheus adds to every series, and le of histograms.
COMMON_LABELS = {"job", "instance", "le"}


def read(*parts):
    with open(os.path.join(SOURCE, *parts), encoding="utf-8") as f:
        return f.read()


def metric_table():
    """{name as scraped: label names} from the table in server/metrics.c."""
    rows = re.findall(r'\[METRIC_\w+\]\s*=\s*\{\s*"(\w+)",\s*(?:"(?:[^"\\]|\\.)*"\s*)+,\s*'
                      r'(COUNTER|GAUGE|HISTOGRAM),\s*\{([^}]*)\}', read("server", "metrics.c"))
    series = {}
    for name, kind, labels in rows:
        labels = set(re.findall(r'"(\w+)"', labels))
        for suffix in ("_bucket", "_sum", "_count") if kind == "HISTOGRAM" else ("",):
            series[name + suffix] = labels
    return series, len(rows)


def names_in(expression):
    return re.findall(r"\b(?:jemd|process)_\w+", expression)


def expressions():
    """(where, PromQL) of every alert, panel and dashboard variable."""
    for group in yaml.safe_load(read("config", "prometheus", "alerts.yml"))["groups"]:
        for rule in group["rules"]:
            yield "alert " + rule["alert"], rule["expr"]
    board = json.loads(read("config", "grafana", "jemd.json"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield "panel " + panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        yield "variable " + variable["name"], variable["query"]


def labels_in(expression):
    """Label names in matchers, by(), on() and label_values()."""
    found = set(re.findall(r'[{,]\s*(\w+)\s*(?:=~|!~|!=|=)', expression))
    for inside in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", expression):
        found |= set(re.findall(r"\w+", inside))
    found |= set(re.findall(r"label_values\(.*,\s*(\w+)\)$", expression))
    return found


def unit(name):
    """A unit file as {section: {key: [values]}}; keys may repeat."""
    sections, section = {}, None
    for line in read("systemd", name).splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        else:
            key, value = line.split("=", 1)
            section.setdefault(key, []).append(value)
    return sections


def settings():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(read("config", "jemd.conf"))
    return parser


@unittest.skipUnless(yaml, "PyYAML is not installed")
class Observability(unittest.TestCase):
    def test_the_table_is_read_completely(self):
        series, rows = metric_table()
        self.assertEqual(rows, len(re.findall(r"^\s*\[METRIC_", read("server", "metrics.c"), re.M)))
        self.assertGreater(rows, 25)
        self.assertEqual(series["jemd_http_requests_total"], {"route", "method", "code"})

    def test_alerts_and_dashboard_name_metrics_that_exist(self):
        series, _ = metric_table()
        seen = 0
        for where, expression in expressions():
            for name in names_in(expression):
                seen += 1
                self.assertIn(name, series, where)
        self.assertGreater(seen, 40)

    def test_alerts_and_dashboard_use_labels_that_exist(self):
        series, _ = metric_table()
        for where, expression in expressions():
            known = set(COMMON_LABELS)
            for name in names_in(expression):
                known |= series[name]
            self.assertLessEqual(labels_in(expression), known, where)

    def test_legends_use_labels_of_their_metric(self):
        series, _ = metric_table()
        for panel in json.loads(read("config", "grafana", "jemd.json"))["panels"]:
            for target in panel["targets"]:
                known = set().union(*(series[n] for n in names_in(target["expr"])))
                used = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
                self.assertLessEqual(used, known, panel["title"])

    def test_alerts_say_who_and_how_bad(self):
        for group in yaml.safe_load(read("config", "prometheus", "alerts.yml"))["groups"]:
            for rule in group["rules"]:
                self.assertIn(rule["labels"]["severity"], ("warning", "critical"), rule["alert"])
                self.assertIn("{{ $labels.", rule["annotations"]["summary"], rule["alert"])

    def test_panels_do_not_overlap(self):
        taken = set()
        for panel in json.loads(read("config", "grafana", "jemd.json"))["panels"]:
            p = panel["gridPos"]
            cells = {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
            self.assertLessEqual(p["x"] + p["w"], 24)
            self.assertFalse(cells & taken, panel["title"])
            taken |= cells

    def test_the_scrape_asks_where_the_daemon_listens(self):
        http = settings()["http"]
        scrape = yaml.safe_load(read("config", "prometheus", "scrape.yml"))
        job = scrape["scrape_configs"][0]
        self.assertEqual(job["job_name"], "jemd")
        self.assertEqual(job["static_configs"][0]["targets"], [http["address"] + ":" + http["port"]])
        for name in scrape["rule_files"]:
            self.assertTrue(os.path.exists(os.path.join(SOURCE, "config", "prometheus", name)))


class Systemd(unittest.TestCase):
    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    def test_the_unit_is_hardened(self):
        path = os.path.join(SOURCE, "systemd", "jemd.service")
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", path],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
        found = re.search(r"Overall exposure level for jemd.service: ([0-9.]+)", done.stdout)
        self.assertTrue(found, done.stdout + done.stderr)
        self.assertLessEqual(float(found.group(1)), EXPOSURE_MAX)

    def test_the_socket_is_the_default_address(self):
        http = settings()["http"]
        self.assertEqual(unit("jemd.socket")["Socket"]["ListenStream"], [http["address"] + ":" + http["port"]])
        self.assertEqual(unit("jemd.socket")["Socket"]["Accept"], ["no"])

    def test_the_directories_are_those_of_the_settings(self):
        service, models = unit("jemd.service")["Service"], settings()["models"]
        state = ["/var/lib/" + d for d in service["StateDirectory"][0].split()]
        cache = ["/var/cache/" + d for d in service["CacheDirectory"][0].split()]
        self.assertIn(models["directory"], state)
        self.assertIn(models["cache"], cache)
        made = re.findall(r"^d\s+(\S+)", read("systemd", "jemd.tmpfiles"), re.M)
        self.assertLessEqual(set(state + cache + ["/etc/jemd"]), set(made))

    def test_the_user_is_made(self):
        service = unit("jemd.service")["Service"]
        users = re.findall(r"^u\s+(\S+)", read("systemd", "jemd.sysusers"), re.M)
        self.assertEqual(users, service["User"])
        self.assertEqual(users, service["Group"])

    def test_it_is_started_again_however_often_it_dies(self):
        service = unit("jemd.service")
        self.assertEqual(service["Service"]["Restart"], ["on-failure"])
        self.assertEqual(service["Unit"]["StartLimitIntervalSec"], ["0"])

    def test_stopping_waits_for_the_drain(self):
        stop = int(unit("jemd.service")["Service"]["TimeoutStopSec"][0])
        self.assertGreater(stop * 1000, 2 * int(settings()["shutdown"]["drain_ms"]))

    def test_there_are_files_for_every_connection(self):
        service, http = unit("jemd.service")["Service"], settings()["http"]
        self.assertGreater(int(service["LimitNOFILE"][0]), 2 * int(http["max_connections"]))


if __name__ == "__main__":
    unittest.main()
