"""The import rules of DESIGN: what each room may load, seen in sys.modules of a fresh process."""

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "recbole_vlm2rec"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*(name.partition('.')[0] for name in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def modules(room: str) -> list[str]:
    """`prepare` -> all modules of the room; `objectives` -> that module."""
    if (PACKAGE / f"{room}.py").is_file():
        return [f"recbole_vlm2rec.{room}"]
    return [f"recbole_vlm2rec.{room}.{file.stem}" for file in sorted((PACKAGE / room).glob("*.py")) if file.stem != "__init__"]


def test_the_package_alone_loads_neither_torch_nor_recbole_nor_numpy():
    assert not {"torch", "recbole", "numpy", "transformers", "yaml"} & loaded_by("import recbole_vlm2rec")


@pytest.mark.parametrize(
    ("rooms", "forbidden"),
    [
        (["prepare"], {"recbole", "torch", "transformers", "pandas"}),
        (["data.candidates", "data.catalog", "metrics", "arguments"], {"recbole", "torch", "transformers", "pandas"}),
        (["objectives"], {"recbole", "transformers"}),
        (["embeddings"], {"recbole", "transformers"}),
        (["vlm", "trained", "export", "retrieval", "recommend"], {"recbole", "faiss"}),
        (["analysis", "benchmark"], {"recbole"}),
        (["report"], {"recbole", "torch", "transformers"}),
    ],
)
def test_a_room_does_not_load_what_it_must_not(rooms, forbidden):
    names = [name for room in rooms for name in ([f"recbole_vlm2rec.{room}"] if "." in room else modules(room))]
    assert names
    assert not forbidden & loaded_by(f"import {', '.join(names)}")


def test_nothing_loads_recboles_quick_start():
    code = "import recbole_vlm2rec.quick_start, sys; print('recbole.quick_start' in sys.modules, 'ray' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.split() == ["False", "False"]


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    import recbole_vlm2rec

    with pytest.raises(AttributeError, match="'rnu'; it exports .*run"):
        print(recbole_vlm2rec.rnu)
    assert {"run", "VLMEncoder", "Catalog", "__version__"} <= set(dir(recbole_vlm2rec))
