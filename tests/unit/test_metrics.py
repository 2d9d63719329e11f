"""Figures: read when asked, in JSON or in Prometheus text as the Accept header likes."""

from __future__ import annotations

import math
import os
import resource
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from services.runtime.accept import choose
from services.runtime.descriptors import connections_most, connections_within, reserve_max
from services.runtime.histogram import Histogram
from services.runtime.metrics import (
    Metrics,
    add_process_metrics,
    listed_descriptors,
    open_descriptors,
    series_max,
)
from services.runtime.probes import metrics_offers

# What Prometheus 3 and Prometheus 2 send when they scrape.
prometheus_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
prometheus_2 = (
    "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


def shop_metrics() -> tuple[Metrics, Counter[str], Histogram]:
    metrics, sold, waited = Metrics(), Counter[str](), Histogram((1, 10))
    metrics.add("sold", "counter", "Things sold", lambda: sold, labels=("thing",))
    metrics.add("stock", "gauge", "Things left", lambda: 7)
    metrics.add_histogram("wait_ms", "Time in the queue", waited)
    metrics.add_fact("shop_id", lambda: "corner")
    return metrics, sold, waited


def samples(text: bytes) -> dict[str, float]:
    found = {}
    for family in parse_plain(text.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_numbers_are_read_when_asked_not_before() -> None:
    metrics, sold, _ = shop_metrics()
    assert metrics.as_json()["stock"] == 7
    sold["apple"] += 2
    assert metrics.as_json()["sold.apple"] == 2
    sold["apple"] += 1
    assert samples(metrics.as_prometheus())["ydht_sold_total{thing=apple}"] == 3


def test_the_json_form_is_flat_and_has_facts() -> None:
    metrics, sold, waited = shop_metrics()
    sold["pear"] = 1
    waited.observe(5)
    flat = metrics.as_json()
    assert flat == {
        "shop_id": "corner",
        "sold.pear": 1,
        "stock": 7,
        "wait_ms_count": 1,
        "wait_ms_sum": 5.0,
        "wait_ms_p50": 10,
        "wait_ms_p99": 10,
    }


def test_both_prometheus_texts_can_be_parsed_and_agree() -> None:
    metrics, sold, waited = shop_metrics()
    sold['"quoted"\\\n'] = 4
    for value in (0.5, 1, 5, 100):
        waited.observe(value)
    plain = samples(metrics.as_prometheus())
    assert plain['ydht_sold_total{thing="quoted"\\\n}'] == 4
    assert plain["ydht_wait_ms_bucket{le=1.0}"] == 2
    assert plain["ydht_wait_ms_bucket{le=10.0}"] == 3
    assert plain["ydht_wait_ms_bucket{le=+Inf}"] == 4
    assert plain["ydht_wait_ms_sum{}"] == 106.5
    text = metrics.as_openmetrics().decode()
    assert text.endswith("# EOF\n")
    families = parse_openmetrics(text)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} == {"ydht_sold", "ydht_stock", "ydht_wait_ms"}


def test_labels_past_the_limit_are_summed_up_under_other() -> None:
    metrics, sold, _ = shop_metrics()
    sold.update({f"thing-{number}": 1 for number in range(series_max + 50)})
    flat = metrics.as_json()
    assert flat["sold.other"] == 50
    assert sum(1 for name in flat if name.startswith("sold.")) == series_max + 1


def test_a_name_is_taken_once() -> None:
    metrics, _, _ = shop_metrics()
    with pytest.raises(ValueError, match="stock is there already"):
        metrics.add_fact("stock", lambda: 1)


def test_the_process_shows_its_own_figures() -> None:
    metrics = Metrics()
    add_process_metrics(metrics)
    before = metrics.as_json()
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    try:
        after = metrics.as_json()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert int(str(after["process_open_fds"])) == int(str(before["process_open_fds"])) + 10
    assert int(str(after["process_resident_memory_bytes"])) > 2**20
    assert b"process_cpu_seconds_total" in metrics.as_prometheus()


def test_the_number_of_descriptors_is_that_of_those_listed() -> None:
    assert open_descriptors() == listed_descriptors()


@settings(max_examples=100)
@given(st.lists(st.floats(0, 20_000), max_size=60))
def test_a_histogram_counts_like_a_sorted_list(values: list[float]) -> None:
    histogram = Histogram((1, 10, 100, 1000))
    for value in values:
        histogram.observe(value)
    ordered = sorted(values)
    for position, bound in enumerate(histogram.bounds):
        below = sum(value <= bound for value in ordered)
        assert sum(histogram.buckets[: position + 1]) == below
    assert histogram.count == len(values)
    assert math.isclose(histogram.total, sum(values), abs_tol=1e-6)
    if ordered:
        median = ordered[(len(ordered) - 1) // 2]
        expected = next((bound for bound in histogram.bounds if median <= bound), 1000)
        assert histogram.quantile(0.5) == expected


def test_a_histogram_refuses_bounds_that_do_not_ascend() -> None:
    for bounds in ((), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="ascend"):
            Histogram(bounds)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
        ("text/plain", "plain"),
        ("TEXT/PLAIN", "plain"),
        ("text/*", "plain"),
        ("application/openmetrics-text", "openmetrics"),
        (prometheus_3, "openmetrics"),
        (prometheus_2, "plain"),
        ("text/plain;q=0.4, application/json;q=0.5", "json"),
        ("text/plain;q=0.5, application/json;q=0.4", "plain"),
        ("application/json;q=0, text/plain;q=0.001", "plain"),
        ("text/plain;q=0, */*", "json"),
        ("text/plain;q=2", "json"),
        ("text/plain;q=nan", "json"),
        ("image/png", "json"),
        (";;;,,q=1,/", "json"),
    ],
)
def test_the_form_is_the_one_the_client_likes_best(accept: str, expected: str) -> None:
    chosen = choose(accept, metrics_offers).content_type
    forms = {
        "json": "application/json",
        "plain": "text/plain; version=0.0.4; charset=utf-8",
        "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
    }
    assert chosen == forms[expected]


@settings(max_examples=200)
@given(st.text(max_size=300))
def test_no_accept_header_is_an_error(accept: str) -> None:
    assert choose(accept, metrics_offers) in metrics_offers
    assert choose(f"text/plain;version={accept}", metrics_offers) in metrics_offers


def test_connections_fit_between_what_is_open_and_what_memory_bears() -> None:
    assert connections_within(1) == 1
    assert 1 < connections_within(256) < 256
    assert connections_within(20_000) < 20_000 - reserve_max
    for without_end in (1_073_741_816, resource.RLIM_INFINITY, 1 << 63):
        assert connections_within(without_end) == connections_most
