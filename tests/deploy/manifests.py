"""The manifests for Kubernetes, and what the containers of their pods are started with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tests.deploy.started import Started
from tests.tidy.tree import root

folder = root / "deploy" / "kubernetes"
# What stands in for a pod's own name and address.
fields = {"metadata.name": "-0", "status.podIP": "10.0.0.1"}


def resources() -> list[dict[str, Any]]:
    return [
        document
        for path in sorted(folder.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [each for each in resources() if each["kind"] in kinds]


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Everything that makes pods, with the specification of these."""
    for resource in of_kind("StatefulSet", "Deployment", "Job"):
        yield resource, resource["spec"]["template"]["spec"]


def started_by(resource: dict[str, Any], container: dict[str, Any]) -> Started:
    name = resource["metadata"]["name"]
    environ: dict[str, str] = {}
    for each in container["env"]:
        if "value" in each:
            value = each["value"]
            for earlier, known in environ.items():
                value = value.replace(f"$({earlier})", known)
        else:
            path = each["valueFrom"]["fieldRef"]["fieldPath"]
            value = name + fields[path] if path == "metadata.name" else fields[path]
        environ[each["name"]] = value
    # deploy/image/entry.sh tells each process the name of its container.
    shared: dict[str, str] = {"ADVERTISE_HOST": f"{name}-0", **of_kind("ConfigMap")[0]["data"]}
    return Started(f"kubernetes: {name}", tuple(container["args"]), environ, shared)
