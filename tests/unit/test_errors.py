"""The error tree: every code travels with its status, and a client can tell what to do."""

from __future__ import annotations

import os

import msgspec
import pytest

from services.core.errors import (
    CATALOGUE,
    ClientError,
    FatalError,
    FixRequest,
    InternalError,
    RestartLater,
    RetryLater,
    UnknownOutcome,
)


def test_every_code_belongs_to_exactly_one_branch_of_the_tree() -> None:
    branches = (FixRequest, RetryLater, UnknownOutcome, InternalError)
    for code, entry in CATALOGUE.items():
        assert entry.code == code
        assert sum(entry.status in branch.statuses for branch in branches) == 1


def test_a_code_cannot_travel_in_the_wrong_branch() -> None:
    with pytest.raises(ValueError, match="no_quorum is a 503, not for FixRequest"):
        FixRequest("no_quorum", "two replicas are away")


def test_an_unknown_code_is_a_bug() -> None:
    with pytest.raises(KeyError):
        FixRequest("no_such_code", "x")


def test_only_errors_after_which_nothing_was_applied_are_retryable() -> None:
    retryable = {code for code, entry in CATALOGUE.items() if entry.retryable}
    assert retryable == {code for code, e in CATALOGUE.items() if e.status in RetryLater.statuses}
    assert "unknown_outcome" not in retryable
    assert "internal" not in retryable


def test_the_problem_document_has_every_member_and_serialises() -> None:
    error = FixRequest("precondition_failed", "The key changed", members={"etag": None})
    assert msgspec.json.decode(msgspec.json.encode(error.problem("r-1"))) == {
        "type": "/docs/errors#precondition_failed",
        "title": "Precondition failed",
        "status": 412,
        "code": "precondition_failed",
        "error": "Precondition failed",
        "detail": "The key changed",
        "request_id": "r-1",
        "etag": None,
    }


def test_retry_later_says_when() -> None:
    error = RetryLater("cluster_forming", "2 nodes are missing", retry_after_s=3)
    assert error.headers["Retry-After"] == "3"
    assert error.retryable


def test_an_unknown_outcome_names_its_operation() -> None:
    problem = UnknownOutcome("No answer within 2 s", operation_id="0a1b").problem("r-1")
    assert (problem["status"], problem["operation_id"]) == (504, "0a1b")
    assert "operation_id" not in UnknownOutcome("No answer").problem("r-1")


def test_an_internal_error_tells_a_client_nothing_of_the_inside() -> None:
    error: ClientError = InternalError()
    assert "log has it" in error.problem("r-1")["detail"]


def test_the_words_old_clients_read_are_kept() -> None:
    assert CATALOGUE["missing_api_key"].title == "Missing X-API-Key header"
    assert CATALOGUE["invalid_api_key"].title == "Invalid API key"
    assert CATALOGUE["invalid_consistency"].title == (
        "Invalid consistency level. Must be 'strong' or 'eventual'"
    )


def test_what_needs_mending_and_what_may_pass_end_a_process_differently() -> None:
    needs_mending, may_pass = FatalError("no secret"), RestartLater("port taken")
    assert needs_mending.exit_code == os.EX_CONFIG
    # Python's own for a bug: both may go better the next time.
    assert may_pass.exit_code == 1
    assert isinstance(may_pass, FatalError)
