"""What a keygen can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from services.keygen.pool import range_keys_max
from services.runtime import setting_values as values
from services.runtime.settings import DatabaseSettings, check_distinct, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class KeygenSettings(DatabaseSettings):
    service: ClassVar[str] = "keygen"

    port: int = setting("KEYGEN_PORT", values.port, default="8086", help="HTTP port of the keygen")
    key_pepper: str = setting(
        "KEY_PEPPER",
        values.secret,
        required=True,
        secret=True,
        help="API keys are looked up by HMAC under it; the same as the user manager's",
    )
    usermanager_url: str = setting(
        "USERMANAGER_URL",
        values.url,
        default="http://127.0.0.1:8081",
        help="The user manager, which knows API keys",
    )
    range_size: int = setting(
        "RANGE_SIZE",
        values.integer(1, range_keys_max),
        default="1000",
        help="Keys that are reserved at once for a tenant whose first few are used up, or more",
    )
    return_rest_ms: int = setting(
        "RETURN_REST",
        values.duration_ms(0, 7 * 86_400_000),
        default="10m",
        help="How long a returned key is given to nobody, so that its return may be repeated",
    )
    anonymous: bool = setting(
        "KEYGEN_ANONYMOUS",
        values.boolean,
        default="false",
        help="Answer /get-key also without an API key, for the tenant `public`",
    )
    trusted_proxies: tuple[values.Network, ...] | None = setting(
        "TRUSTED_PROXIES",
        values.networks,
        help="Networks of the proxies whose X-Forwarded-For is believed; unset: of none",
    )

    def check(self) -> None:
        check_distinct(
            {
                "KEY_PEPPER": self.key_pepper,
                "CLUSTER_SECRET": self.cluster_secret,
                "EMBEDDED_DB_PASSWORD": self.embedded_db_password,
            }
        )
