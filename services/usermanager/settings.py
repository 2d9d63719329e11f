"""What a user manager can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from services.runtime import setting_values as values
from services.runtime.settings import DatabaseSettings, check_distinct, setting

# A token that lives for less is over before a page has loaded; one that lives for more than a
# day is what refresh tokens are for, and can be taken back.
expiration_ms_min: Final = 60 * 1000
expiration_ms_max: Final = 24 * 3_600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class UserManagerSettings(DatabaseSettings):
    service: ClassVar[str] = "usermanager"

    port: int = setting(
        "USERMANAGER_PORT", values.port, default="8081", help="HTTP port of the user manager"
    )
    jwt_secret: str = setting(
        "JWT_SECRET",
        values.secret,
        required=True,
        secret=True,
        help="Signs the access tokens of those who have logged in",
    )
    jwt_expiration_ms: int = setting(
        "JWT_EXPIRATION",
        values.duration_ms(expiration_ms_min, expiration_ms_max),
        default="1h",
        help="How long an access token is good for",
    )
    key_pepper: str = setting(
        "KEY_PEPPER",
        values.secret,
        required=True,
        secret=True,
        help="API keys are stored as HMAC under it; a new one makes all of them worthless",
    )
    public_url: str | None = setting(
        "PUBLIC_URL",
        values.url,
        help="Where people reach the user manager, as documents say",
    )
    gateway_public_url: str | None = setting(
        "GATEWAY_PUBLIC_URL", values.url, help="Where clients reach the gateway, as documents say"
    )
    trusted_proxies: tuple[values.Network, ...] | None = setting(
        "TRUSTED_PROXIES",
        values.networks,
        help="Networks of the proxies whose X-Forwarded-For is believed; unset: of none",
    )
    replicator_urls: tuple[str, ...] = setting(
        "REPLICATOR_URLS",
        values.url_list,
        default="http://127.0.0.1:8085",
        help="Replicators, by the URLs of their HTTP ports",
    )

    def check(self) -> None:
        check_distinct(
            {
                "JWT_SECRET": self.jwt_secret,
                "KEY_PEPPER": self.key_pepper,
                "CLUSTER_SECRET": self.cluster_secret,
                "EMBEDDED_DB_PASSWORD": self.embedded_db_password,
            }
        )
