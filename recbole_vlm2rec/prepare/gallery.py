"""All pictures of a data set: fetched or read, made plain, kept in a cache, placed into the data set's folder.

May import fetch, pictures and settings, tqdm and the standard library. The cache holds whole pictures only, under names made from
URLs or contents, so that it can be shared, left at any moment and gone on from.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import stat
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from recbole_vlm2rec.prepare.fetch import Fetcher, FetchError
from recbole_vlm2rec.prepare.pictures import PictureError, image_name, normalise
from recbole_vlm2rec.prepare.settings import Settings


@dataclass
class Gallery:
    """`files`: item token -> plain picture in the cache. `failed`: item token -> reason."""

    files: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def collect(pictures: Mapping[str, str | Path], settings: Settings, fetcher: Callable[[Settings], Fetcher] = Fetcher) -> Gallery:
    """Brings every item's picture (a URL, or a Path of a file) into the cache; one that is there already is not fetched.

    Each distinct source is worked on once, at most `settings.concurrency` at a time. Raises ValueError as soon as more than
    `settings.max_failed_pictures` of the sources must fail, and OSError where the cache cannot be written. Interrupted or
    killed, the same call goes on with what is missing; what failed is tried again.
    """
    sources: dict[str | Path, list[str]] = {}
    for token, source in pictures.items():
        sources.setdefault(source, []).append(token)
    gallery = Gallery()
    with warnings.catch_warnings(), tqdm(total=len(sources), desc="Pictures", unit="picture", mininterval=0.5) as bar:
        warnings.simplefilter("ignore")  # Pillow's, about sizes and damaged EXIF: pictures.normalise judges by itself
        work = _Work(sources, gallery, settings, bar)
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            asyncio.run(work.all(fetcher(settings), threads))
    # In the order asked for: what came first must not decide on anything that is written.
    gallery.files = {token: gallery.files[token] for token in pictures if token in gallery.files}
    gallery.failed = {token: gallery.failed[token] for token in pictures if token in gallery.failed}
    return gallery


class _Work:
    def __init__(self, sources: dict[str | Path, list[str]], gallery: Gallery, settings: Settings, bar: tqdm):
        self.sources, self.gallery, self.settings, self.bar = sources, gallery, settings, bar
        self.reasons: Counter[str] = Counter()

    async def all(self, fetcher: Fetcher, threads: ThreadPoolExecutor) -> None:
        left = iter(self.sources)
        async with fetcher:
            workers = [asyncio.create_task(self._worker(left, fetcher, threads)) for _ in range(self.settings.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _worker(self, left: Iterator[str | Path], fetcher: Fetcher, threads: ThreadPoolExecutor) -> None:
        """Takes one source after the other: as many are under way as there are workers, however many there are in all."""
        loop = asyncio.get_running_loop()
        for source in left:
            try:
                if isinstance(source, Path):
                    file = await loop.run_in_executor(threads, self._from_file, source)
                elif not (file := self._place(source.encode("utf-8", "surrogatepass"))).is_file():
                    data = await fetcher.get(source)
                    await loop.run_in_executor(threads, self._keep, data, file)
            except (FetchError, PictureError) as error:
                self._fail(source, error.reason)
            else:
                self.gallery.files.update(dict.fromkeys(self.sources[source], file))
            self.bar.update()

    def _from_file(self, source: Path) -> Path:
        try:
            about = source.stat()
            if not stat.S_ISREG(about.st_mode):  # a pipe would never end
                raise PictureError("no file but a folder, pipe or device")
            if about.st_size > self.settings.max_bytes:
                raise PictureError(f"more than {self.settings.max_bytes} bytes")
            data = source.read_bytes()
        except PictureError:
            raise
        except OSError as error:
            raise PictureError("no such file" if error.errno == errno.ENOENT else str(error.strerror)) from error
        except ValueError as error:  # a null byte in its name
            raise PictureError("no such file") from error
        file = self._place(data)
        if not file.is_file():
            self._keep(data, file)
        return file

    def _place(self, key: bytes) -> Path:
        digest = hashlib.sha256(key).hexdigest()
        name = f"{digest}-{self.settings.longest_side}-{self.settings.min_side}.jpg"
        return self.settings.picture_cache / digest[:2] / name

    def _keep(self, data: bytes, file: Path) -> None:
        plain = normalise(data, self.settings)
        draft = file.with_name(f".{uuid.uuid4().hex}.draft")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                draft.write_bytes(plain)
                os.replace(draft, file)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OSError(error.errno, f"pictures cannot be kept in {self.settings.picture_cache}: {error.strerror}") from error

    def _fail(self, source: str | Path, reason: str) -> None:
        self.reasons[reason] += 1
        self.gallery.failed.update(dict.fromkeys(self.sources[source], reason))
        failed, total = sum(self.reasons.values()), len(self.sources)
        self.bar.set_postfix(failed=failed, refresh=False)
        if failed > self.settings.max_failed_pictures * total:
            commonest = ", ".join(f"{reason} ({count})" for reason, count in self.reasons.most_common(3))
            raise ValueError(
                f"{failed} of {total} pictures failed already, more than "
                f"--max_failed_pictures={self.settings.max_failed_pictures:g} allows; the commonest reasons: {commonest}. "
                f"What was fetched is kept: run the same command again, or raise the share"
            )


def place(files: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Item token -> image_path `images/<name>` in `folder`; each picture is linked from the cache where that is possible."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    paths = {}
    for token, file in files.items():
        paths[token] = f"images/{image_name(token)}"
        target = folder / paths[token]
        target.unlink(missing_ok=True)  # copied over, it would change the picture in the cache that it is linked to
        try:
            os.link(file, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, target)
    return paths


def write_failed(path: Path, failed: Mapping[str, str], pictures: Mapping[str, str | Path]) -> None:
    """images_failed.tsv: item_id, picture (URL or path), reason; in the order given."""
    lines = ["item_id\tpicture\treason"]
    lines += ["\t".join(_one_line(str(cell)) for cell in (token, pictures[token], failed[token])) for token in failed]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
