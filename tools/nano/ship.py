"""Turn an exported nano into the 8-bit store that the package ships, `localr1/nano`.

python -m tools.nano.ship EXPORT_FOLDER
"""

import argparse
import hashlib
from pathlib import Path

import localr1
from localr1.session import convert
from localr1.weights.store import Origin, Store

TARGET = Path(localr1.__file__).parent / "nano"


def ship(export: Path, target: Path = TARGET) -> Store:
    """Convert `export` and put it in the place of what `target` holds. The revision names the float weights."""
    with (export / "model.safetensors").open("rb") as weights:
        revision = hashlib.file_digest(weights, "sha256").hexdigest()[:40]
    for _ in convert(export, target, Origin("nano", revision)):
        pass
    return Store(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    store = ship(parser.parse_args().export)
    print(f"{store.folder}: {store.nbytes / 1e6:.2f} MB, {store.parameters / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
