"""Write a CIFAR-100 subset, packed as sheets of tiles, in the official on-disk format.

    python benchmarks/cifar100/unpack.py PACK OUT

PACK holds train.zip, test.zip (one lossless WebP sheet of 32x32 tiles, 20 a row, for each class, named
III_NAME_N.webp) and meta.json; OUT gets cifar-100-python/{train,test,meta}. Whoever has the official archive needs
none of this: `SplitCIFAR100` reads it as it is.
"""

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def read_sheets(path: Path) -> tuple[np.ndarray, list[int]]:
    """All tiles as uint8 [N, 32, 32, 3] and their fine labels."""
    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            count = int(Path(name).stem.rsplit("_", 1)[1])
            sheet = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            tiles = sheet.reshape(-1, 32, 20, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
            images.append(tiles[:count])
            labels += [int(name[:3])] * count
    return np.concatenate(images), labels


def main(pack: Path, out: Path) -> None:
    """Convert the pack."""
    meta = json.loads((pack / "meta.json").read_text())
    folder = out / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images, labels = read_sheets(pack / f"{split}.zip")
        content = {
            "data": images.transpose(0, 3, 1, 2).reshape(len(images), 3072).copy(),
            "fine_labels": labels,
            "coarse_labels": [int(meta["fine_to_coarse"][i]) for i in labels],
            "filenames": [f"{split}_{i}.png" for i in range(len(labels))],
        }
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))
        print(f"{split}: {len(images)} images")
    names = {"fine_label_names": meta["fine_names"], "coarse_label_names": meta["coarse_names"]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
