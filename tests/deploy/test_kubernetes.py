"""The manifests are what Kubernetes takes, and hold together."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest

from services.runtime.settings import link_port_offset
from tests.deploy.compose_file import our_image, ours
from tests.deploy.manifests import of_kind, pods, resources, started_by
from tests.deploy.started import port_of, services

kubernetes_version = "1.30"


def called(resource: dict[str, Any]) -> str:
    return f"{resource['kind']}-{resource['metadata']['name']}"


def matches(resource: dict[str, Any], labels: dict[str, str]) -> bool:
    selector = resource["spec"]["selector"]
    wanted: dict[str, str] = selector.get("matchLabels", selector)
    return wanted.items() <= labels.items()


long_running = of_kind("StatefulSet", "Deployment")


@pytest.mark.parametrize("resource", resources(), ids=called)
def test_kubernetes_takes_it(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, kubernetes_version, strict=True)


def test_a_member_that_kubernetes_does_not_know_is_found() -> None:
    wrong = copy.deepcopy(long_running[0])
    wrong["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, kubernetes_version, strict=True)


def test_nodes_and_replicators_keep_their_names_and_all_else_does_not() -> None:
    kinds = {each["metadata"]["name"]: each["kind"] for each in long_running}
    assert kinds == {
        "dhtnode": "StatefulSet",
        "replicator": "StatefulSet",
        "gateway": "Deployment",
        "keygen": "Deployment",
        "usermanager": "Deployment",
    }


@pytest.mark.parametrize("resource", long_running, ids=called)
def test_it_is_reached_probed_and_not_taken_down_as_a_whole(resource: dict[str, Any]) -> None:
    labels = resource["spec"]["template"]["metadata"]["labels"]
    assert matches(resource, labels)
    (service,) = [each for each in of_kind("Service") if matches(each, labels)]
    (budget,) = [each for each in of_kind("PodDisruptionBudget") if matches(each, labels)]
    assert budget["spec"]["maxUnavailable"] == 1
    assert resource["spec"]["replicas"] > 1
    (container,) = resource["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == port_of(services[resource["metadata"]["name"]])
    assert ports["link"] == ports["http"] + link_port_offset
    assert service["spec"]["ports"][0]["port"] == ports["http"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    if resource["kind"] == "StatefulSet":
        assert resource["spec"]["serviceName"] == service["metadata"]["name"]
        assert service["spec"]["clusterIP"] == "None"
        # Before a cluster has formed nobody is ready, and all have to find each other.
        assert service["spec"]["publishNotReadyAddresses"]
        assert resource["spec"]["podManagementPolicy"] == "Parallel"


@pytest.mark.parametrize(("resource", "pod"), list(pods()), ids=lambda each: str(len(each)))
def test_a_pod_can_do_no_more_than_it_needs(resource: dict[str, Any], pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    # Else a Service called gateway would set GATEWAY_PORT to something like tcp://10.0.0.1:8080.
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert container["image"] == ours()["gateway"]["image"]
    assert container["image"].startswith(our_image)
    assert "limits" in container["resources"]


@pytest.mark.parametrize(("resource", "pod"), list(pods()), ids=lambda each: str(len(each)))
def test_a_pod_is_shown_the_secrets_that_it_reads_and_no_other(
    resource: dict[str, Any], pod: dict[str, Any]
) -> None:
    (container,) = pod["containers"]
    environ = started_by(resource, container).environ
    read = {value for name, value in environ.items() if name.endswith("_FILE")}
    (secret,) = [each["secret"] for each in pod["volumes"] if "secret" in each]
    assert secret["secretName"] == "ydht"
    assert {f"/secrets/{item['path']}" for item in secret["items"]} == read
    assert of_kind("Secret") == []


def test_the_cluster_forms_of_as_many_nodes_as_are_started() -> None:
    told = of_kind("ConfigMap")[0]["data"]
    replicas = {each["metadata"]["name"]: each["spec"]["replicas"] for each in long_running}
    assert int(told["CLUSTER_SIZE"]) == replicas["dhtnode"]
    assert told["REPLICATOR_URLS"].split(",") == [
        f"http://replicator-{number}.replicator:8085" for number in range(replicas["replicator"])
    ]
