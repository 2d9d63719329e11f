"""`python -m services.usermanager`: the user manager in this process."""

from services.runtime.service import main
from services.usermanager.app import build_app
from services.usermanager.settings import UserManagerSettings

if __name__ == "__main__":
    main(UserManagerSettings, build_app)
