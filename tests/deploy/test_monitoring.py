"""Alerts and dashboards ask for figures that services really have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.applications import Starlette

from services.dhtnode.app import build_app as build_node
from services.gateway.app import build_app as build_gateway
from services.keygen.app import build_app as build_keygen
from services.replicator.app import build_app as build_replicator
from services.runtime.clock import SystemClock
from services.runtime.env_file import generate_env
from services.runtime.service import Service
from services.runtime.settings import load
from services.usermanager.app import build_app as build_usermanager
from tests.deploy.compose_file import containers
from tests.deploy.started import port_of, services
from tests.tidy.tree import root

builders: dict[str, Callable[[Any, Service], Starlette]] = {
    "dhtnode": build_node,
    "gateway": build_gateway,
    "keygen": build_keygen,
    "replicator": build_replicator,
    "usermanager": build_usermanager,
}
# What Prometheus makes itself of each that it asks, and the labels that it adds.
made_by_prometheus = {"up"}
labels_of_prometheus = {"job", "instance", "le"}
# Words of its language that stand where a name could.
words = {"by", "on", "or", "and", "vector", "ignoring", "group_left", "without"}


def figures(data_dir: Path) -> tuple[dict[str, set[str]], set[str]]:
    """By service the names of all series it has when wired as its process wires it; all labels."""
    names: dict[str, set[str]] = {}
    labels: set[str] = set()
    environ = {
        **generate_env(),
        "DATA_DIR": str(data_dir),
        "DATABASE_URL": "postgresql://ydht:password@localhost/ydht",
    }
    for name, build in builders.items():
        service = Service(name, SystemClock())
        build(load(services[name], environ), service)
        for family in service.metrics.collect():
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            found = {family.name + ending for ending in endings.get(family.type, [""])}
            names.setdefault(name, set()).update(found)
            labels |= set(getattr(family, "_labelnames", ()))
    return names, labels


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, set[str]], set[str]]:
    return figures(tmp_path_factory.mktemp("figures"))


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((root / "deploy/prometheus/alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboards() -> list[dict[str, Any]]:
    found = sorted((root / "deploy/grafana/dashboards").glob("*.json"))
    return [json.loads(path.read_text()) for path in found]


def expressions() -> dict[str, str]:
    found = {f"alert {rule['alert']}": rule["expr"] for rule in rules()}
    for dashboard in dashboards():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return found


def names_in(expression: str) -> set[str]:
    """The series that an expression asks for."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|without) \([^)]*\)", " ", expression)
    return set(re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", bare)) - words


def labels_in(expression: str) -> set[str]:
    grouped = re.findall(r"\b(?:by|on|without) \(([^)]*)\)", expression)
    matched = re.findall(r"([a-z_]+)\s*(?:=~|!=|!~|=)\s*\"", expression)
    return {name.strip() for each in grouped for name in each.split(",") if name.strip()} | set(
        matched
    )


def jobs_in(expression: str) -> set[str]:
    named = re.findall(r"job=~?\"([^\"]*)\"", expression)
    return {job for each in named for job in each.split("|")}


@pytest.mark.parametrize(("where", "expression"), expressions().items())
def test_it_asks_for_what_services_have(
    where: str, expression: str, known: tuple[dict[str, set[str]], set[str]]
) -> None:
    names, labels = known
    asked = names_in(expression)
    assert asked, where
    assert asked <= set().union(*names.values()) | made_by_prometheus
    assert labels_in(expression) <= labels | labels_of_prometheus
    assert jobs_in(expression) <= names.keys()
    # Of a service that does not have it there would never be anything to see.
    for metric, selector in re.findall(r"\b([a-z_]+)(\{[^}]*\})", expression):
        if metric not in made_by_prometheus:
            for job in jobs_in(selector.replace('job!="', 'not="')):
                assert metric in names[job], f"{where}: {metric} of {job}"


def test_a_figure_that_nobody_has_is_found(known: tuple[dict[str, set[str]], set[str]]) -> None:
    names, _ = known
    asked = names_in('sum by (job) (rate(ydht_key_counts_total{job="dhtnode"}[5m])) > on () up')
    assert asked == {"ydht_key_counts_total", "up"}
    assert not asked <= set().union(*names.values()) | made_by_prometheus


def test_every_alert_says_what_is_wrong_and_how_much_it_matters() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_labels_that_texts_show_are_those_that_their_series_have(
    known: tuple[dict[str, set[str]], set[str]],
) -> None:
    _, labels = known
    for rule in rules():
        shown = set(re.findall(r"\$labels\.([a-z_]+)", str(rule["annotations"])))
        assert shown <= labels | labels_of_prometheus
        summed = re.search(r"sum by \(([^)]*)\)", rule["expr"])
        if summed is not None and "histogram" not in rule["expr"]:
            assert shown <= set(summed[1].split(", "))


def test_prometheus_asks_every_service_where_it_listens() -> None:
    document = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in document["scrape_configs"]}
    assert jobs.keys() == services.keys()
    for name, job in jobs.items():
        port = port_of(services[name])
        for found in job.get("dns_sd_configs", []):
            assert (found["type"], found["port"]) == ("A", port)
            assert set(found["names"]) <= containers().keys()
        for group in job.get("static_configs", []):
            for target in group["targets"]:
                host, _, told = target.partition(":")
                assert host in containers()
                assert int(told) == port
    for file in document["rule_files"]:
        assert (root / "deploy/prometheus" / file).is_file()


def test_dashboards_ask_the_source_that_is_provisioned() -> None:
    folder = root / "deploy/grafana/provisioning"
    sources = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    (source,) = sources
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "dashboards/ydht.yml").read_text())["providers"]
    mounts = containers()["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    for dashboard in dashboards():
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                assert target["datasource"]["uid"] == source["uid"]
