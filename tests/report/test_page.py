"""The report page, made from real runs on a small shop and opened in a headless Chromium."""

import json
import re
import shutil

import pytest

from recbole_vlm2rec import cli
from recbole_vlm2rec.prepare.minishop import generate
from recbole_vlm2rec.report.explorer import thumbnail
from recbole_vlm2rec.report.page import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A small shop with a finished run each of BPR, VLMVanilla and VLMSFT, and a search over BPR."""
    root = tmp_path_factory.mktemp("report")
    generate(root / "data", "shop", seed=3, users=100, items=120)
    (root / "BPR.hyper").write_text("learning_rate choice [0.001, 0.01]\n")
    common = [f"--data_path={root / 'data'}", "--dataset=shop", "--eval_negatives=10", f"--checkpoint_dir={root / 'saved'}"]
    common += ["--show_progress=False", "--epochs=1", "--seed=1"]
    for more in (
        ["--model=BPR,VLMVanilla,VLMSFT", "--backbone=tiny", "--row_settings={VLMSFT: {gradient_alignment_every: 1}}"],
        ["--model=BPR", f"--tune={root / 'BPR.hyper'}"],
        ["--model=BPR", f"--tune={root / 'BPR.hyper'}", "--tune_algo=each"],
    ):
        assert cli.main(["run", *common, *more]) == 0
    return root


@pytest.fixture(scope="module")
def page(shop):
    return report([shop / "saved"], shop / "report.html", users=5, buckets=(0, 5, 10))


def embedded(page, name):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_needs_no_network(page):
    # Only outside the library's own code, which names addresses in comments and error messages.
    text = re.sub(r"<script>.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", text) and "@import" not in text and "url(" not in text


def test_each_figure_has_its_own_data(page):
    text = page.read_text(encoding="utf-8")
    names = re.findall(r'data-figure="(.*?)"', text)
    assert len(names) == len(set(names)) == 8
    headings = re.findall(r"Sensitivity: [\w-]+", text)
    assert {"Sensitivity: BPR-shop-seed1-each", "Sensitivity: BPR-shop-seed1-exhaustive"} <= set(headings)


def test_the_explorer_can_be_left_out(shop, tmp_path):
    text = report([shop / "saved"], tmp_path / "report.html", users=0).read_text(encoding="utf-8")
    assert 'id="explorer"' not in text
    with pytest.raises(ValueError, match="users is -1"):
        report([shop / "saved"], tmp_path / "report.html", users=-1)


def test_the_explorer_holds_the_true_next_item_and_what_each_model_would_recommend(page, shop):
    data = embedded(page, "explorer-data")["shop"]
    assert [model["row"] for model in data["models"]] == ["BPR", "VLMSFT", "VLMVanilla"] and len(data["users"]) == 5
    rows = [line.split("\t") for line in (shop / "data" / "shop" / "shop.inter").read_text().splitlines()[1:]]
    titles = dict(line.split("\t")[:2] for line in (shop / "data" / "shop" / "shop.item").read_text().splitlines()[1:])
    for number, person in enumerate(data["users"]):
        bought = [row[1] for row in sorted((row for row in rows if row[0] == person["user"]), key=lambda row: float(row[2]))]
        shown = [data["items"][place]["title"] for place in [*person["history"], person["target"]]]
        assert shown == [titles[item] for item in bought[-11:]] and person["earlier"] == max(0, len(bought) - 11)
        for model in data["models"]:
            for side, lists in model["lists"].items():
                assert len(set(lists[number])) == 10 and not set(lists[number]) & set(person["history"])
                assert 1 <= model["ranks"][side][number] <= 11
    assert [list(model["lists"]) for model in data["models"]] == [[""], ["", "t2f", "v2f"], ["", "t2f", "v2f"]]
    assert all(item["image"].startswith("data:image/webp;base64,") for item in data["items"])


def test_a_title_cannot_end_the_script_it_stands_in(shop, tmp_path):
    shutil.copytree(shop / "data", tmp_path / "data")
    file = tmp_path / "data" / "shop" / "shop.item"
    lines = file.read_text().splitlines()
    lines[1:] = [line.replace(line.split("\t")[1], "</script><script>alert(1)</script>") for line in lines[1:]]
    file.write_text("\n".join(lines) + "\n")
    page = report([shop / "saved"], tmp_path / "report.html", tmp_path / "data", users=5)
    assert "<script>alert" not in page.read_text(encoding="utf-8")
    assert {item["title"] for item in embedded(page, "explorer-data")["shop"]["items"]} == {"</script><script>alert(1)</script>"}


def test_without_the_data_the_rest_is_there_and_the_page_says_what_is_left_out(shop, tmp_path):
    text = report([shop / "saved"], tmp_path / "report.html", tmp_path / "nowhere").read_text(encoding="utf-8")
    assert "No explorer for shop" in text and "No cold start for shop" in text
    assert "Learning curves: shop" in text and 'id="explorer"' not in text


def test_a_picture_that_is_none_leaves_its_place_empty(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert thumbnail(tmp_path / "a.png") == "" and thumbnail(tmp_path / "missing.png") == ""


def test_the_command_writes_the_page_and_refuses_folders_without_runs(shop, tmp_path, capsys):
    assert cli.main(["report", f"--runs={shop / 'saved'}", f"--out={tmp_path / 'r' / 'report.html'}"]) == 0
    assert "one file, no network needed" in capsys.readouterr().out and (tmp_path / "r" / "report.html").is_file()
    assert cli.main(["report", f"--runs={tmp_path / 'r'}"]) == 2
    assert "no finished run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(
    params=[{}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}], ids=["light", "dark", "phone"]
)
def opened(request, browser, page):
    """The page in a tab that lets nothing out; `said` collects what the console says and what it wanted from outside."""
    context = browser.new_context(**request.param)
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda call: None if call.url.startswith(("file:", "data:", "blob:")) else said.append(call.url))
    tab.goto(page.as_uri())
    yield tab, said
    context.close()


def test_it_loads_without_a_word_on_the_console_and_every_chart_draws(opened):
    tab, said = opened
    charts = tab.locator(".plot")
    # Results, learning curves, dropout, alignment, separability, cold start, two searches.
    assert charts.count() == 8
    for number in range(charts.count()):
        charts.nth(number).scroll_into_view_if_needed()
        charts.nth(number).locator("svg.main-svg").first.wait_for()
        assert charts.nth(number).locator(".scatterlayer .trace, .barlayer .trace").count() > 0
    assert said == []
    # Nothing but what scrolls by itself is wider than the screen.
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_choosing_a_user_changes_the_pictures(opened):
    tab, said = opened

    def seen():
        pictures = tab.locator("#history img").evaluate_all("found => found.map(image => image.src)")
        return pictures, tab.locator("#view h3").first.inner_text()

    first, heading = seen()
    assert first and tab.locator("#history img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    tab.get_by_role("combobox", name="User").select_option(index=1)
    second, other = seen()
    assert second != first and other != heading
    # By keyboard alone: back to the user before.
    tab.get_by_role("button", name="Previous user").focus()
    tab.keyboard.press("Enter")
    assert seen() == (first, heading)
    assert said == []


def test_models_stand_side_by_side_and_tell_what_each_modality_would_have_recommended(opened):
    tab, _ = opened
    assert tab.locator("article.model h4").all_inner_texts() == ["VLMSFT", "VLMVanilla"]
    tab.get_by_role("checkbox", name="BPR").check()
    assert tab.locator("article.model h4").all_inner_texts() == ["BPR", "VLMSFT", "VLMVanilla"]
    article = tab.locator("article.model").nth(1)
    assert re.search(r"rank \d+ among 11 candidates", article.inner_text())
    article.get_by_text("What titles alone would have recommended").click()
    assert article.locator('details[data-side="t2f"] li').first.is_visible()
    assert article.locator('details[data-side="t2f"] li').count() == 10


def test_what_is_to_be_used_has_a_name(opened):
    tab, _ = opened
    nameless = tab.evaluate(
        """() => [...document.querySelectorAll('select, input, button')]
              .filter(element => !(element.labels?.length || element.innerText.trim() || element.ariaLabel)).length"""
    )
    assert nameless == 0 and tab.locator("html").get_attribute("lang") == "en"
    levels = tab.evaluate("() => [...document.querySelectorAll('h1,h2,h3,h4')].map(heading => Number(heading.tagName[1]))")
    assert levels[0] == 1 and all(later - earlier <= 1 for earlier, later in zip(levels, levels[1:]))
