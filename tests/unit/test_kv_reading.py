"""Lines of an import, however the bytes come; and figures of `ydht top` out of what is told."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from services.cli.kv_reading import Line, Splitter
from services.cli.top_figures import quantile, rows_of
from services.cli.top_looks import Seen, read_metrics
from services.runtime.histogram import Histogram
from services.runtime.metrics import Metrics


def split(chunks: list[bytes], bytes_max: int) -> list[Line]:
    splitter = Splitter(bytes_max)
    found = [line for chunk in chunks for line in splitter.feed(chunk)]
    return [*found, *splitter.end()]


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\n", b"a\n\nb", b"\r\n"])))
def test_lines_are_the_same_however_they_are_cut(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    texts = whole.split(b"\n")
    if not texts[-1]:
        texts.pop()
    expected = [
        Line(
            number,
            None
            if len(text) > 8
            else (text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text).strip(),
        )
        for number, text in enumerate(texts, start=1)
    ]
    assert split(chunks, 8) == expected
    assert split([whole[place : place + 1] for place in range(len(whole))], 8) == expected


def test_a_line_without_end_takes_no_memory() -> None:
    splitter = Splitter(100)
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 99)) == []
        assert sum(map(len, splitter._parts)) <= 100
    assert list(splitter.feed(b"\nb\n")) == [Line(1, None), Line(2, b"b")]


@given(st.lists(st.floats(0, 20_000)), st.lists(st.floats(0, 20_000), min_size=1))
def test_latencies_are_of_what_came_between_two_looks(old: list[float], new: list[float]) -> None:
    histogram, alone = Histogram(), Histogram()
    metrics = Metrics()
    metrics.add_histogram("took_ms", "Time", histogram)

    def look() -> list[tuple[float, float]]:
        return read_metrics(metrics.as_prometheus().decode())[1]["took_ms"]

    for value in old:
        histogram.observe(value)
    before = look()
    assert quantile(before, before, 0.5) is None
    for value in new:
        histogram.observe(value)
        alone.observe(value)
    for share in (0.01, 0.5, 0.99, 1.0):
        assert quantile(before, look(), share) == alone.quantile(share)


def test_a_process_that_was_started_anew_has_no_rates_yet() -> None:
    def seen(at_s: float, started: float, requests: float) -> Seen:
        numbers = {"process_start_time_seconds": started, "http_requests_total": requests}
        return Seen("gateway", "gateway", "http://g", at_s, "ready", numbers=numbers)

    [same] = rows_of({"http://g": seen(1, 7, 100)}, [seen(3, 7, 150)])
    assert same.figures["per_s"] == 25
    [anew] = rows_of({"http://g": seen(1, 7, 100)}, [seen(3, 8, 5)])
    assert anew.figures["per_s"] is None
    [first] = rows_of({}, [seen(3, 8, 5)])
    assert first.figures["per_s"] is None


def test_labels_are_summed_up_and_failures_counted_apart() -> None:
    metrics = Metrics()
    statuses = {"200": 7, "503": 2, "504": 1}
    metrics.add("http_requests", "counter", "Requests", lambda: statuses, labels=("status",))
    numbers, buckets = read_metrics(metrics.as_prometheus().decode())
    assert (numbers["http_requests_total"], numbers["http_requests_total_5xx"]) == (10, 3)
    assert buckets == {}
    assert not any(math.isnan(number) for number in numbers.values())
