"""What to do about each error code: the text of its entry on the docs page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

advice: Final[Mapping[str, str]] = {
    "invalid_consistency": "Send X-Consistency: eventual or strong, or leave it out for eventual. "
    "Listings are always eventual, and so is everything in a cache.",
    "invalid_ttl": "Write a duration as 90s, 1h30m, 7d, or in seconds: more than none, at most ten "
    "years. PATCH takes 0 to remove an expiry.",
    "invalid_key": "A key is 1 to 1024 bytes of UTF-8, percent-encoded in a URL.",
    "invalid_namespace": "A namespace is 1 to 255 bytes of UTF-8 without control characters.",
    "invalid_header": "The detail names the header. Send each at most once, in the form it says.",
    "invalid_cursor": "Send back the cursor of the answer before, with every other parameter and "
    "header as it was; or none, to begin anew.",
    "invalid_query": "What stands behind the ? of the URL is wrong. The detail names each "
    "parameter and what would be right.",
    "invalid_body": "The detail names each member that is wrong and what would be right.",
    "invalid_json": "The body is not JSON, or not in UTF-8.",
    "missing_api_key": "Send an API key as X-API-Key or as Authorization: Bearer.",
    "invalid_api_key": "The API key is unknown, was revoked, or has expired. Make a new one.",
    "unauthorized": "Log in again, for a new access token.",
    "invalid_credentials": "The email address or the password is wrong; or, if the detail "
    "says so, the account is disabled.",
    "insufficient_scope": "Use an API key that has the scope that the detail names.",
    "key_not_allowed": "This API key is limited to keys with a prefix. Use another one, or stay "
    "inside of it.",
    "csrf": "Load the page again and send the form from there.",
    "key_not_found": "There is no such key in this namespace: it was never put, was deleted, or "
    "has expired.",
    "not_found": "Nothing has this path or name.",
    "method_not_allowed": "The header Allow lists the methods that are possible here.",
    "request_timeout": "The request took too long to arrive. Send it again on a better line.",
    "already_exists": "Somebody, or something, has this name already.",
    "limit_reached": "An account has as many of these as it may. The detail says which, and how to "
    "make room; waiting alone changes nothing.",
    "not_an_integer": "Only decimal integers of 64 bits can be incremented, and stay such.",
    "precondition_failed": "The value is not what If-Match or If-None-Match says. Read it again "
    "and decide anew; etag is what it has now.",
    "value_too_large": "A value is at most 1 MiB. Split it.",
    "metadata_too_large": "Names and values of X-Metadata-* are at most 1 KiB together.",
    "body_too_large": "The detail says how large a body may be here.",
    "response_too_large": "The answer of this batch is full. Ask for this key again, alone or with "
    "fewer others.",
    "key_too_long": "A key is at most 1024 bytes. Hash it, or keep what is long in the value.",
    "unsupported_media_type": "Send JSON in UTF-8 with Content-Type: application/json, and a value "
    "without Content-Encoding.",
    "rate_limited": "Wait for as long as Retry-After says. RateLimit tells what is left.",
    "quota_exhausted": "The IDs of this day are used up; the next ones come at midnight UTC.",
    "headers_too_large": "All headers together are at most 16 KiB.",
    "internal": "A bug on our side, logged under its request id. Tell us that.",
    "no_quorum": "Too few replicas of this key can be reached; nothing was done. Send it again in "
    "a moment.",
    "no_replicator": "Nobody can coordinate writes just now; nothing was done. Eventual reads go "
    "on. Send it again in a moment.",
    "overloaded": "There is too much to do; nothing was done. Send it again in a moment, and less "
    "at once.",
    "auth_unavailable": "An API key that is not known here cannot be checked just now. It may be "
    "good: keep it, and try again.",
    "database_unavailable": "The database cannot be reached just now; nothing was done.",
    "gateway_unavailable": "The console cannot reach the gateway; nothing was changed. Try again.",
    "keygen_unavailable": "The ID service cannot be reached just now. Keys and values are not "
    "concerned.",
    "clock_skew": "The clock of a machine of ours is wrong; nothing is written until it is right.",
    "cluster_forming": "The cluster is starting. Try again in a moment.",
    "shutting_down": "This process ends. Send it again: another one answers.",
    "unknown_outcome": "The write may or may not have been done. Read before you repeat it, or "
    "make it conditional; the logs have it by operation_id.",
    "storage_full": "There is no room for more. Delete something, or tell who runs this.",
}
