"""What the readers of image folders share; no pixel is read here."""

from __future__ import annotations

from pathlib import Path

from mnft.data.folder import list_images


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not looked at")
    return root


def test_list_images(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b.JPG", "a.txt", ".x.png", "c/d/3.png", "b/.t/1.jpg", "Thumbs.db")
    (tmp_path / "c" / "up").symlink_to("..")
    listed = [file.relative_to(tmp_path).as_posix() for file in list_images(tmp_path)]
    assert listed == ["b.JPG", "b/2.jpg", "c/d/3.png"]
