"""`python -m services.keygen`: a keygen in this process."""

from services.keygen.app import build_app
from services.keygen.settings import KeygenSettings
from services.runtime.fastlane import FastLane
from services.runtime.service import main

if __name__ == "__main__":
    main(KeygenSettings, build_app, FastLane)
