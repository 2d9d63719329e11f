"""What a page may load, be framed by, send to and tell others: headers of every page.

Nothing stands inline: no script and no style, so that text which becomes markup by a mistake of
ours still runs nothing. Scripts may ask this service, and the gateway where clients reach it.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.runtime.setting_values import origin

# Browsers keep to https for a year.
hsts_s_max = 365 * 86_400


def content_policy(gateway_url: str) -> str:
    directives = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "font-src": "'self'",
        "connect-src": f"'self' {origin(gateway_url)}",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def security_headers(gateway_url: str, *, is_https: bool) -> Mapping[str, str]:
    headers = {
        "Content-Security-Policy": content_policy(gateway_url),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # Under `no-referrer` a browser would not say either which page a form was sent from.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    }
    if is_https:
        headers["Strict-Transport-Security"] = f"max-age={hsts_s_max}"
    return headers
