"""`python -m services.gateway`: a gateway in this process."""

from services.gateway.app import build_app
from services.gateway.settings import GatewaySettings
from services.runtime.fastlane import FastLane
from services.runtime.service import main

if __name__ == "__main__":
    main(GatewaySettings, build_app, FastLane)
