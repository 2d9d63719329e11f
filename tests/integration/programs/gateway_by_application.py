"""A gateway without its fast lane: every request is answered by way of the ASGI application."""

from services.gateway.app import build_app
from services.gateway.settings import GatewaySettings
from services.runtime.service import main

if __name__ == "__main__":
    main(GatewaySettings, build_app)
