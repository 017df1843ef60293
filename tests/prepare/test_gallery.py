"""All pictures of a data set: through a cache that can be left at any moment, shared, and gone on from."""

import errno
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from recbole_vlm2rec.prepare import gallery
from recbole_vlm2rec.prepare.fetch import FetchError
from recbole_vlm2rec.prepare.gallery import collect, place, write_failed
from recbole_vlm2rec.prepare.settings import Settings


def jpeg(shade, size=(30, 20)):
    out = io.BytesIO()
    Image.new("RGB", size, (shade, 99, 200 - shade)).save(out, "JPEG")
    return out.getvalue()


class Web:
    """Stands in for a Fetcher: answers by URL, and remembers what was asked."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def __call__(self, settings):
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def get(self, url):
        self.asked.append(url)
        answer = self.answers[url.rpartition("/")[2]]
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def settings(tmp_path):
    return Settings(picture_cache=tmp_path / "cache", max_failed_pictures=0.5, longest_side=40)


def test_urls_and_files_become_plain_pictures(settings, tmp_path):
    (tmp_path / "local.bin").write_bytes(jpeg(50, (80, 40)))
    web = Web(a=jpeg(1), b=jpeg(2))
    found = collect({"A": "http://h/a", "B": "http://h/b", "C": tmp_path / "local.bin"}, settings, web)
    assert list(found.files) == ["A", "B", "C"] and not found.failed
    assert found.files["A"].read_bytes() == jpeg(1)
    assert Image.open(found.files["C"]).size == (40, 20)


def test_what_is_there_is_not_fetched_and_each_source_once(settings):
    web = Web(a=jpeg(1), b=jpeg(2))
    collect({"A": "http://h/a"}, settings, web)
    found = collect({"A": "http://h/a", "A2": "http://h/a", "B": "http://h/b", "B2": "http://h/b"}, settings, web)
    assert sorted(web.asked) == ["http://h/a", "http://h/b"]
    assert found.files["A"] == found.files["A2"] and len(found.files) == 4


def test_another_size_is_another_picture(settings):
    web = Web(a=jpeg(1, (90, 90)))
    small = collect({"A": "http://h/a"}, settings, web).files["A"]
    large = collect({"A": "http://h/a"}, replace(settings, longest_side=80), web).files["A"]
    assert (Image.open(small).size, Image.open(large).size) == ((40, 40), (80, 80))


def test_failures_have_reasons_and_are_tried_again(settings, tmp_path):
    web = Web(a=jpeg(1), b=FetchError("404"), c=b"<html>", d=jpeg(4), e=jpeg(5))
    wanted = {token.upper(): f"http://h/{token}" for token in "abde"} | {"C": "http://h/c", "F": tmp_path / "none"}
    found = collect(wanted, settings, web)
    assert found.failed == {"B": "404", "C": "HTML or XML, not a picture", "F": "no such file"}
    assert list(found.files) == ["A", "D", "E"]
    web.answers["b"] = jpeg(2)
    assert list(collect(wanted, settings, web).files) == ["A", "B", "D", "E"]


def test_a_pipe_is_no_picture(settings, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = collect({"A": tmp_path / "pipe", "B": tmp_path}, replace(settings, max_failed_pictures=1.0), Web())
    assert found.failed == dict.fromkeys("AB", "no file but a folder, pipe or device")
    (tmp_path / "large").write_bytes(bytes(100))
    chosen = replace(settings, max_failed_pictures=1.0, max_bytes=99)
    assert collect({"A": tmp_path / "large"}, chosen, Web()).failed == {"A": "more than 99 bytes"}


def test_too_many_failures_are_an_error_that_keeps_what_was_fetched(settings):
    web = Web(a=jpeg(1), b=FetchError("404"), c=FetchError("404"), d=b"")
    wanted = {token: f"http://h/{token}" for token in "abcd"}
    with pytest.raises(ValueError) as error:
        collect(wanted, replace(settings, concurrency=1), web)
    assert "3 of 4 pictures failed already, more than --max_failed_pictures=0.5 allows" in str(error.value)
    assert "404 (2), empty file (1)" in str(error.value) and "run the same command again" in str(error.value)
    web.asked.clear()
    found = collect(wanted, replace(settings, max_failed_pictures=1.0), web)
    assert "http://h/a" not in web.asked and list(found.files) == ["a"]


def test_a_full_disk_is_one_clear_error_and_leaves_no_half_picture(settings, monkeypatch):
    write = Path.write_bytes

    def full(path, data):
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="pictures cannot be kept in .*cache: No space left on device") as error:
        collect({"A": "http://h/a", "B": "http://h/b"}, settings, Web(a=jpeg(1), b=jpeg(2)))
    assert error.value.errno == errno.ENOSPC
    assert not [file for file in settings.picture_cache.rglob("*") if file.is_file()]


def test_many_more_pictures_than_workers(settings):
    web = Web(**{f"n{number}": jpeg(number % 200) for number in range(300)})
    found = collect({f"T{number}": f"http://h/n{number}" for number in range(300)}, replace(settings, concurrency=4), web)
    assert list(found.files) == [f"T{number}" for number in range(300)]
    for number in (0, 123, 299):
        assert found.files[f"T{number}"].read_bytes() == jpeg(number % 200)


WORKER = """
import io, os, signal, sys
from pathlib import Path
from PIL import Image
from recbole_vlm2rec.prepare import gallery
from recbole_vlm2rec.prepare.settings import Settings

folder, die_at = Path(sys.argv[1]), int(sys.argv[2])
replaced, names = os.replace, []


def dying(draft, file):
    names.append(file)
    if len(names) == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    replaced(draft, file)


os.replace = dying
pictures = {str(n): folder / f"{n}.png" for n in range(40)}
found = gallery.collect(pictures, Settings(picture_cache=folder / "cache"))
print(len(found.files), len(names))
"""


def worker(folder, die_at=0):
    return subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(die_at)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def forty(tmp_path):
    for number in range(40):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_killed_in_the_middle_it_goes_on(forty):
    killed = worker(forty, die_at=17)
    killed.communicate()
    assert killed.returncode == -9
    whole = [file for file in (forty / "cache").rglob("*.jpg") if not file.name.startswith(".")]
    for file in whole:
        Image.open(file).load()
    found, written = map(int, worker(forty).communicate()[0].split())
    assert found == 40 and written == 40 - len(whole) and 10 <= len(whole) <= 17


def test_two_at_once_do_not_disturb_each_other(forty):
    both = [worker(forty) for _ in range(2)]
    assert [process.communicate()[0].split()[0] for process in both] == ["40", "40"]
    assert [process.returncode for process in both] == [0, 0]
    assert len(list((forty / "cache").rglob("*.jpg"))) == 40


def test_placed_pictures_and_their_paths(settings, tmp_path, monkeypatch):
    files = collect({"B0": "http://h/a", "../x": "http://h/b"}, settings, Web(a=jpeg(1), b=jpeg(2))).files
    paths = place(files, tmp_path / "one")
    assert paths["B0"] == "images/B0.jpg" and paths["../x"].startswith("images/x-")

    def no_links(*_):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(gallery.os, "link", no_links)
    assert place(files, tmp_path / "two") == paths
    for folder in ("one", "two"):
        assert (tmp_path / folder / paths["B0"]).read_bytes() == jpeg(1)
        assert (tmp_path / folder / paths["../x"]).read_bytes() == jpeg(2)


def test_placing_again_leaves_the_cache_alone(settings, tmp_path):
    web = Web(a=jpeg(1), b=jpeg(2))
    first, second = (collect({"A": f"http://h/{name}"}, settings, web).files for name in "ab")
    for files, shade in ((first, 1), (first, 1), (second, 2)):
        place(files, tmp_path)
        assert (tmp_path / "images/A.jpg").read_bytes() == jpeg(shade)
    assert first["A"].read_bytes() == jpeg(1) and second["A"].read_bytes() == jpeg(2)


def test_failed_pictures_are_listed_one_a_line(tmp_path):
    write_failed(
        tmp_path / "f.tsv", {"A": "404", "B": "no such file"}, {"A": "http://h/a\tb\nc\ud83d", "B": Path("/x"), "C": "x"}
    )
    assert (tmp_path / "f.tsv").read_text(encoding="utf-8") == (
        "item_id\tpicture\treason\nA\thttp://h/a b c \t404\nB\t/x\tno such file\n"
    )
