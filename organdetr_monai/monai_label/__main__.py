"""``python -m organdetr_monai.monai_label APP_FOLDER``: put the bundle into an app of MONAI Label."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from organdetr_monai.errors import InputError
from organdetr_monai.monai_label.install import CLICK_NAME, DEFAULT_NAME, install


def main() -> int:
    """Run the command; 0 done, 2 nothing done."""
    parser = argparse.ArgumentParser(
        prog="python -m organdetr_monai.monai_label",
        description="Put the bundle into a monaibundle app of MONAI Label, with its own tasks.",
    )
    parser.add_argument("app", type=Path, help="folder of a monaibundle app")
    parser.add_argument("--bundle", type=Path, help="a bundle's root; default: the one this package is part of")
    parser.add_argument("--name", help=f"of the model in MONAI Label; default: {DEFAULT_NAME} or {CLICK_NAME}")
    parser.add_argument("--replace_models", action="store_true", help="replace a model that was installed before")
    options = parser.parse_args()
    chosen = {"bundle": options.bundle} if options.bundle else {}
    try:
        target = install(options.app, name=options.name, replace_models=options.replace_models, **chosen)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"installed in {target}; start the server with")
    print(f"  monailabel start_server --app {options.app} --studies STUDIES --conf models {target.name} \\")
    print("    --conf zoo_source local --conf sam2 false --host 127.0.0.1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
