"""Ways to harm a file, and which file of a folder to harm."""


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def garbage(path):
    path.write_bytes(bytes(range(256)) * 3)


def removed(path):
    path.unlink()


def folder_instead(path):
    path.unlink()
    path.mkdir()


DAMAGES = [truncated, emptied, flipped, garbage, removed, folder_instead]


def largest(folder):
    """The largest file below a folder."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
