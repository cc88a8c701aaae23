"""Dashboard, alerts and their papers, against what a running server exports."""

import re
import subprocess

import pytest
import yaml
from stack import (
    DASHBOARD,
    DOCUMENTS,
    MONITORING as FOLDER,
    ROOT,
    Prometheus,
    expressions,
    get,
    rerank,
    servers,
    wait_until,
    which,
)

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
OPERATING = (ROOT / "docs" / "operating.md").read_text()
NAME = re.compile(r"\brerankd_[a-z0-9_]+\b")


def parts(name: str) -> str:
    """The metric that `name` is a part of."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.fixture(scope="module")
def server():
    """An instance that has answered something of every kind a counter waits for."""
    with servers(1) as (instance,):
        assert rerank(instance.url, DOCUMENTS)[0] == 200
        # A thousand documents in a millisecond: refused, which is the first of its kind.
        assert rerank(instance.url, DOCUMENTS * 300, headers={"x-request-timeout-ms": "1"})[0] == 429
        yield instance


@pytest.fixture(scope="module")
def exported(server):
    """Every metric's name, as `/metrics` tells them."""
    names = re.findall(r"^# TYPE (\S+) ", get(f"{server.url}/metrics")[1], re.MULTILINE)
    assert len(names) > 10
    return {name for name in names if name.startswith("rerankd_")}


@pytest.mark.parametrize(
    "file",
    [
        "deploy/monitoring/dashboard.json",
        "deploy/monitoring/rules.yaml",
        "deploy/monitoring/rules.test.yaml",
        "deploy/kubernetes/horizontalpodautoscaler.yaml",
        "docs/operating.md",
        "README.md",
    ],
)
def test_names_are_exported(exported, file):
    named = {parts(name) for name in NAME.findall((ROOT / file).read_text())}
    assert named and named <= exported, named - exported


def test_every_metric_is_explained(exported):
    explained = set(re.findall(r"^\| `(rerankd_[a-z_]+)`", OPERATING, re.MULTILINE))
    assert explained == exported


def test_every_alert_is_tested_and_has_a_runbook():
    tests = (FOLDER / "rules.test.yaml").read_text()
    assert RULES
    for rule in RULES:
        name = rule["alert"]
        assert tests.count(f"alertname: {name}\n") >= 2, name
        assert rule["annotations"]["runbook"] == f"docs/operating.md#{name.lower()}"
        assert re.search(rf"^#+ {name}$", OPERATING, re.MULTILINE), name


@pytest.mark.skipif(which("promtool") is None, reason="NOT RUN: promtool is not installed (apt-get install prometheus)")
@pytest.mark.parametrize("command", [("check", "rules", "rules.yaml"), ("test", "rules", "rules.test.yaml")])
def test_rules(command):
    done = subprocess.run([which("promtool"), *command], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_panel_is_a_question_with_advice():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"].endswith("?"), panel["title"]
        assert len(panel["description"]) > 40, panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    if which("prometheus") is None:
        pytest.skip("NOT RUN: prometheus is not installed (apt-get install prometheus)")
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), [server.address])
    try:
        # Rates need two samples that differ.
        wait_until(lambda: running.query("rerankd_queue_tokens"), 60, "the first scrape")
        rerank(server.url, DOCUMENTS)
        more = 'increase(rerankd_requests_total{route="/rerank"}[1m]) > 0'
        wait_until(lambda: running.query(more), 60, "the next scrapes")
        yield running
    finally:
        running.close()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_shows_something(prometheus, panel):
    for expression, _ in expressions(panel, "1m"):
        assert prometheus.query(expression), expression


def test_routes_that_rank_are_told_from_others():
    patterns = {found for file in ("dashboard.json", "rules.yaml") for found in re.findall(r'\.\*/?\([a-z|/.+-]+\)\??', (FOLDER / file).read_text())}
    (pattern,) = patterns
    # What the router has, as its own test holds; what else takes a body.
    paths = yaml.safe_load((ROOT / "openapi.yaml").read_text())["paths"]
    others = {"/tokenize", "/decode"}
    ranking = {path for path, methods in paths.items() if "post" in methods} - others
    assert len(ranking) > 10
    assert {path for path in paths if re.fullmatch(pattern, path)} == ranking
    assert not re.fullmatch(pattern, "other")


def test_shares_have_the_same_routes_on_both_sides():
    shares = [rule for rule in RULES if "/ sum by (job) (rate(rerankd_requests_total" in rule["expr"]]
    assert len(shares) >= 4
    for rule in shares:
        selected = re.findall(r"rerankd_requests_total\{([^}]*\}?[^}]*)\}\[", rule["expr"])
        routes = {found for one in selected for found in re.findall(r'route[^",]*"[^"]*"', one) or ["every route"]}
        assert len(routes) == 1 and all(route.startswith('route=~') for route in routes), rule["alert"]


def test_what_alerts_count_is_there_before_it_happens():
    with servers(1) as (fresh,):
        lines = re.findall(r'^rerankd_requests_total\{route="([^"]+)",status="(\d+)"\} 0$', get(f"{fresh.url}/metrics")[1], re.MULTILINE)
    expected = {status for rule in RULES for _, found in re.findall(r'status=(~?)"([^"]+)"', rule["expr"]) for status in found.split("|")}
    assert {"429", "424", "5.."} <= expected
    (pattern,) = {found for rule in RULES for found in re.findall(r'route=~"([^"]+)"', rule["expr"])}
    ranking = {route for route, _ in lines if re.fullmatch(pattern, route)}
    assert len(ranking) > 10
    for route in ranking:
        statuses = [status for counted, status in lines if counted == route]
        missing = [wanted for wanted in expected if not any(re.fullmatch(wanted, status) for status in statuses)]
        assert not missing, (route, missing)


def test_links_lead_somewhere():
    headings = re.findall(r"^#+ (.+)$", OPERATING, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", OPERATING)
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        assert (ROOT / "docs" / file).exists() if file else anchor in anchors, link


@pytest.mark.skipif(which("haproxy") is None, reason="NOT RUN: haproxy is not installed (apt-get install haproxy)")
def test_haproxy_takes_the_configuration_of_the_papers(tmp_path):
    (backend,) = re.findall(r"```\n(backend .*?)```", OPERATING, re.DOTALL)
    around = (
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f"frontend search\n bind unix@{tmp_path}/search.sock\n default_backend rerankd\n"
    )
    config = tmp_path / "haproxy.cfg"
    config.write_text(around + backend)
    done = subprocess.run([which("haproxy"), "-c", "-f", str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
