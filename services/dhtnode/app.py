"""The wiring of a node: settings, disk, node, metrics and routes. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from starlette.applications import Starlette

from services.dhtnode.figures import add_figures
from services.dhtnode.node import Node
from services.dhtnode.routes import routes
from services.dhtnode.settings import NodeSettings
from services.runtime.disk import SystemDisk
from services.runtime.http import application
from services.runtime.loops import Loops
from services.runtime.probes import Condition, degraded, ready, unready
from services.runtime.service import Service
from services.runtime.signing import Verifier


def build_app(settings: NodeSettings, service: Service) -> Starlette:
    node = Node(settings, service, SystemDisk())
    verifier = Verifier(settings.cluster_secret, service.clock)
    verifier.add_to(service.metrics)
    add_figures(service.metrics, node)
    service.readiness.add("recovery", partial(_recovered, node))
    service.readiness.add("storage", partial(_has_room, node))
    service.readiness.add("cluster", partial(_is_used, node))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(node.close)
            node.open()
            loops = await stack.enter_async_context(Loops(service.fail, service.clock))
            loops.add_to(service.metrics)
            loops.start("start", partial(node.start, loops))
            yield

    return application(
        settings.service,
        routes(node, verifier),
        metrics=service.metrics,
        readiness=service.readiness,
        lifespan=lifespan,
        health=lambda: {"node_id": node.settings.node_id},
        access_log=settings.access_log,
    )


def _recovered(node: Node) -> Condition:
    if node.serving:
        return ready
    progress = node.recovery.progress if node.recovery is not None else None
    if progress is None or not progress.bytes_total:
        return unready("the files of this node are being looked at")
    share = 100 * progress.bytes_done // progress.bytes_total
    records = progress.snapshot_records + progress.log_frames
    return unready(
        f"recovering: {share} % of {progress.bytes_total >> 20} MiB read, {records:,} records"
    )


def _has_room(node: Node) -> Condition:
    full = node.replica.full
    return ready if full is None else degraded(f"puts are refused: {full}")


def _is_used(node: Node) -> Condition:
    """No more than degraded: nodes are started before replicators, and wait for them."""
    return ready if node.trouble is None else degraded(node.trouble)
