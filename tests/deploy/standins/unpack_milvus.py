"""Lays the Milvus server of the wheel `milvus` out as Milvus's own image does.

python unpack_milvus.py WHEEL FOLDER
"""

import lzma
import re
import sys
import zipfile
from pathlib import Path

FOLDERS = {
    "local_storage_dir": "/var/lib/milvus/data/",
    "rocksmq_data_dir": "/var/lib/milvus/rdb_data",
    "etcd_data_dir": "/var/lib/milvus/etcd",
}
VARIABLE = re.compile(r"\{\{ *(\w+)(?:\(\w+\))?(?:: *(.*?))? *\}\}")


def unpack(wheel: Path, folder: Path) -> None:
    """Write bin, lib and configs."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".lzma"):
                path = Path(name)
                kind = "bin" if path.stem == "milvus" else "lib"
                write(folder / kind / path.stem, lzma.decompress(archive.read(name)))
        template = archive.read("milvus/data/config.yaml.template").decode()
        glog = archive.read("milvus/data/glog.conf")
    config = VARIABLE.sub(lambda match: FOLDERS.get(match[1], match[2] or '""'), template)
    write(folder / "configs" / "milvus.yaml", config.encode())
    write(folder / "configs" / "glog.conf", glog)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
