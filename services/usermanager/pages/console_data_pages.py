"""All pages about what a tenant has stored: the wiring of the nouns that they are of.

console_data             the keys of a namespace          console_data_listing
console_data_key         one key, and one to be           console_data_changes, …_curl
console_data_values      the bytes of a value
console_data_replicas    which nodes hold a key
console_data_many        count, delete, send in           console_data_export    take out
console_data_namespaces  the namespaces themselves
"""

from __future__ import annotations

from services.runtime.clock import Clock
from services.usermanager.cluster_looks import ClusterLooks
from services.usermanager.pages.console_data import DataPages
from services.usermanager.pages.console_data_export import ExportPages
from services.usermanager.pages.console_data_key import DataKeyPages
from services.usermanager.pages.console_data_many import ManyPages
from services.usermanager.pages.console_data_namespaces import NamespacePages
from services.usermanager.pages.console_data_replicas import ReplicaPages
from services.usermanager.pages.console_data_values import ValuePages
from services.usermanager.pages.gateway_calls import PlatformCalls
from services.usermanager.pages.page import Page


def data_pages(
    calls: PlatformCalls, clock: Clock, *, gateway_url: str, cluster: ClusterLooks
) -> list[Page]:
    """`gateway_url` is where clients reach the gateway, for the lines that a page shows."""
    return [
        *DataPages(calls, gateway_url).pages(),
        *DataKeyPages(calls, gateway_url).pages(),
        *ValuePages(calls, clock).pages(),
        *ReplicaPages(calls, cluster).pages(),
        *ManyPages(calls, clock).pages(),
        *ExportPages(calls).pages(),
        *NamespacePages(calls, gateway_url).pages(),
    ]
