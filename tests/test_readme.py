"""The two READMEs say the same in the same order, and what they say of the repository is so."""

import json
import re
from pathlib import Path

import nbformat
import pytest

import optbook

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def structure(text):
    """What does not depend on the language: the outline, code but for its comments, addresses, numbers, names."""
    fences = re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "§", text, flags=re.MULTILINE | re.DOTALL)
    kinds = {"#": "heading", "|": "row", "-": "item", "§": "code", "!": "picture"}
    sections = [
        [kinds.get(line[0], "text") for line in section.splitlines() if line and line[0] in kinds]
        for section in text.split("\n## ")
    ]
    return {
        "sections": sections,
        "code": [re.sub(r" +# .*", "", fence) for fence in fences],
        "links": sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh-CN.md"}),
        "table numbers": [re.findall(r"\d[\d,.]*", line) for line in text.splitlines() if line.startswith("| `opt")],
        "names": sorted(set(re.findall(r"`([^`\n]+)`", text))),
    }


@pytest.mark.parametrize("part", structure(ENGLISH))
def test_the_chinese_readme_is_in_step_with_the_english_one(part):
    assert structure(CHINESE)[part] == structure(ENGLISH)[part]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_every_chapter_has_its_row_and_every_file_is_there(text):
    chapters = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert re.findall(r"^\| \[\d.*?\]\(notebooks/(.*?)\)", text, flags=re.MULTILINE) == chapters
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name, minutes", re.findall(r"\(notebooks/(.*?)\) \| (\d+) \|", ENGLISH))
def test_minutes_are_those_of_the_chapter(name, minutes):
    first = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells[0].source
    assert f"{minutes} minutes" in first


def test_presets_are_counted_right():
    counted = {one["name"]: one for one in optbook.preset_table()}
    rows = re.findall(r"^\| `(\S+?)`.*?\| (\d+) × (\d+) \| ([\d,]+) \|", ENGLISH, flags=re.MULTILINE)
    assert len(rows) == 7
    for name, layers, width, parameters in rows:
        one = counted.get(name)
        if one is None:  # one of the embedded presets
            config = optbook.presets.preset_config(name)
            one = {**config, "parameters": optbook.presets.parameter_count(**config)}
        assert (int(layers), int(width)) == (one["num_layers"], one["hidden_dim"])
        assert int(parameters.replace(",", "")) == one["parameters"]


def test_every_target_that_it_names_is_in_the_makefile():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", ENGLISH, flags=re.MULTILINE) + re.findall(r"`(bench-[a-z]+)`", ENGLISH)
    assert set(named) <= set(targets) and len(named) > 5


@pytest.mark.parametrize("text, cells", [(ENGLISH, r"(\d+) cells"), (CHINESE, r"(\d+) 个单元的")])
def test_the_number_of_compared_cells_is_true(text, cells):
    counts = json.loads((ROOT / "tests" / "compared_cells.json").read_text())
    assert re.findall(cells, text) == [str(sum(counts.values()))]
