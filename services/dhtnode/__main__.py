"""`python -m services.dhtnode`: one node in this process."""

from services.dhtnode.app import build_app
from services.dhtnode.settings import NodeSettings
from services.runtime.service import main

if __name__ == "__main__":
    main(NodeSettings, build_app)
