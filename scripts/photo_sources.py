"""Photographs inside Debian packages: many to calibrate on, and others to judge on, whose sources no fit has seen.

Get the packages of PACKAGES, for example from deb.debian.org, unpack them into one folder, and write the photos:

    for package in *.deb; do dpkg -x "$package" UNPACKED; done
    python scripts/photo_sources.py UNPACKED PHOTOS

PHOTOS then holds the folders `calibration` and `judged`, with PNG files whose shorter side has at most 512 pixels.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

PACKAGES = {
    "gcompris-qt-data": "1.0-1", "budgie-backgrounds": "3.0-1", "gnome-backgrounds": "3.38.0-1",
    "lomiri-wallpapers-16.04": "20.04.0-2", "mate-backgrounds": "1.26.0-1", "palapeli-data": "20.12.3-1",
    "plasma-workspace-wallpapers": "5.27.5-2",
}  # fmt: skip
"""Names and versions, of Debian 11 to 13."""
ACTIVITIES = ("erase", "explore_farm_animals", "explore_monuments", "explore_world_animals")
"""Archives of gcompris-qt-data with photos to calibrate on."""
JUDGED = {
    "backgrounds/budgie": (
        "beacon-street-sunset", "blue-periwinkle", "canyon-wren", "casa-mila", "extreme-desert-hike", "lake-sherburne",
        "oakland-zoo-otters", "perched-osprey", "roman-colosseum", "singaporean-cityscape", "tea-gardens",
    ),
    "backgrounds/gnome": ("Dark_Ivy", "Icetwigs", "Road", "SeaSunset"),
    "backgrounds": (
        "Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Wine_by_Jakkub_Mede", "aitzgorri_by_Aitzol_Berasategi",
        "free_by_Peter_Nerlich", "friends_by_Aitzol_Berasategi", "greentock_by_Peter_Nerlich",
        "life_by_Aitzol_Berasategi", "picosdeeuropa_by_Aitzol_Berasategi", "seeding_by_Clements_Engelhardt",
        "sunset_by_Aitzol_Berasategi",
    ),
    "backgrounds/mate/nature": (
        "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "Storm", "TwoWings", "Wood",
        "YellowFlower",
    ),
    "palapeli/collection": ("castle-maintenon", "cincinnati-bridge", "citrus-fruits", "panther-chameleon-female"),
    "wallpapers": ("BytheWater", "ColdRipple", "ColorfulCups", "EveningGlow", "FallenLeaf", "OneStandsOut"),
}  # fmt: skip
"""Names of the photographs by their folder in usr/share."""
SHORTER_SIDE = 512  # pixels
SMALLEST = 240  # pixels of the shorter side
FLAT = 20.0  # standard deviation of grey levels; textures and drawings on one colour have less
MAGIC = re.compile(rb"\xff\xd8\xff|RIFF....WEBP", re.DOTALL)  # of a JPEG or WebP file
LARGEST = 2**22  # bytes of a photo inside an archive


def carved(archive: Path) -> Iterator[Image.Image]:
    """Yield the photos in an archive of Qt resources, which holds them uncompressed; each one once."""
    content, seen = archive.read_bytes(), set[bytes]()
    for match in MAGIC.finditer(content):
        try:
            image = Image.open(io.BytesIO(content[match.start() : match.start() + LARGEST]))
            usable = image.mode == "RGB" and min(image.size) >= SMALLEST
            grey = np.asarray(image.convert("L"), dtype=float)
        except (UnidentifiedImageError, OSError, SyntaxError):
            continue  # bytes that only look like a header
        if usable and grey.std() > FLAT and (thumbnail := image.resize((8, 8)).tobytes()) not in seen:
            seen.add(thumbnail)
            yield image


def judged(share: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield the photographs to judge on, with their names."""
    for folder, names in JUDGED.items():
        for name in names:
            files = sorted((share / folder).glob(f"{name}.*")) or sorted((share / folder / name).rglob("2560x*.jpg"))
            if not files:
                raise SystemExit(f"{share / folder} lacks {name}; unpack all packages: {', '.join(PACKAGES)}")
            yield f"{Path(folder).name}-{name}", Image.open(files[-1])


def save(image: Image.Image, path: Path) -> None:
    """Write an image as PNG, made smaller where it is large."""
    image = image.convert("RGB")
    scale = SHORTER_SIDE / min(image.size)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if scale >= 1 else image.resize([round(scale * side) for side in image.size])).save(path)


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path, help="folder of the unpacked packages")
    parser.add_argument("photos", type=Path, help="folder to write to")
    options = parser.parse_args()
    share = options.unpacked / "usr" / "share"
    for activity in ACTIVITIES:
        for number, image in enumerate(carved(share / "gcompris-qt" / "rcc" / f"{activity}.rcc")):
            save(image, options.photos / "calibration" / f"{activity}-{number:02}.png")
    for name, image in judged(share):
        save(image, options.photos / "judged" / f"{name}.png")
    for folder in ("calibration", "judged"):
        print(f"{folder}: {len(list((options.photos / folder).iterdir()))} photos")


if __name__ == "__main__":
    main()
