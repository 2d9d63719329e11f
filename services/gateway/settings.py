"""What a gateway can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from services.core.plans import free
from services.runtime import setting_values as values
from services.runtime.settings import ServiceSettings, check_distinct, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings(ServiceSettings):
    service: ClassVar[str] = "gateway"

    port: int = setting(
        "GATEWAY_PORT", values.port, default="8080", help="HTTP port of the gateway"
    )
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
    replicator_urls: tuple[str, ...] = setting(
        "REPLICATOR_URLS",
        values.url_list,
        default="http://127.0.0.1:8085",
        help="Replicators, by the URLs of their HTTP ports",
    )
    keygen_url: str = setting(
        "KEYGEN_URL", values.url, default="http://127.0.0.1:8086", help="Where IDs come from"
    )
    public_url: str | None = setting(
        "GATEWAY_PUBLIC_URL", values.url, help="Where clients reach the gateway, as documents say"
    )
    cors_origins: tuple[str, ...] | None = setting(
        "CORS_ORIGINS",
        values.origins,
        help="Origins whose pages may call the API, or *; unset: none",
    )
    trusted_proxies: tuple[values.Network, ...] | None = setting(
        "TRUSTED_PROXIES",
        values.networks,
        help="Networks of the proxies whose X-Forwarded-For is believed; unset: of none",
    )
    requests_per_minute: int = setting(
        "RATE_LIMIT_PER_MINUTE",
        values.integer(1, 2**31 - 1),
        default=str(free.requests_per_minute),
        help="What a tenant of the plan free may ask in a minute; other plans have their own",
    )
    burst: int = setting(
        "RATE_LIMIT_BURST",
        values.integer(1, 2**31 - 1),
        default=str(free.burst),
        help="What such a tenant may ask at once",
    )

    def check(self) -> None:
        check_distinct({"KEY_PEPPER": self.key_pepper, "CLUSTER_SECRET": self.cluster_secret})
