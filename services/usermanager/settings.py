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
    gateway_url: str = setting(
        "GATEWAY_URL",
        values.url,
        default="http://127.0.0.1:8080",
        help="The gateway, which pages ask for data",
    )
    keygen_url: str = setting(
        "KEYGEN_URL", values.url, default="http://127.0.0.1:8086", help="Where IDs come from"
    )
    demo_shown: bool = setting(
        "SHOW_DEMO",
        values.boolean,
        default="false",
        help="Show browsers on this machine the API key of DATA_DIR/demo.json, as `ydht up` does",
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

    @property
    def clients_gateway_url(self) -> str:
        """Where clients reach the gateway, as far as anybody has said."""
        return self.gateway_public_url or self.gateway_url

    @property
    def is_https(self) -> bool:
        """Whether people reach the pages by https."""
        return self.public_url is not None and self.public_url.lower().startswith("https:")

    def check(self) -> None:
        check_distinct(
            {
                "JWT_SECRET": self.jwt_secret,
                "KEY_PEPPER": self.key_pepper,
                "CLUSTER_SECRET": self.cluster_secret,
                "EMBEDDED_DB_PASSWORD": self.embedded_db_password,
            }
        )
