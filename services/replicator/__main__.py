"""`python -m services.replicator`: one replicator in this process."""

from services.replicator.app import build_app
from services.replicator.settings import ReplicatorSettings
from services.runtime.service import main

if __name__ == "__main__":
    main(ReplicatorSettings, build_app)
