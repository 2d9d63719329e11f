from __future__ import annotations

import re

from services.runtime.request_ids import RequestIds


def test_no_id_comes_twice_and_each_is_one_that_a_client_could_send() -> None:
    ids = RequestIds()
    given = [ids.next() for _ in range(20_000)]
    assert len(set(given)) == len(given)
    assert all(re.fullmatch(rb"[0-9a-f]{16}-[0-9a-f]{4,}", one) for one in given)


def test_two_processes_give_different_ones() -> None:
    assert RequestIds().next() != RequestIds().next()
