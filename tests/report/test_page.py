"""The HTML page: its structure, and what a real browser makes of it."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lightning_cil.report import load_runs
from tests.report.browser import run as run_in_browser
from tests.report.hand_made import random_matrix, with_matrix, write_run

METHODS = ("LwF", "ER", "FineTune", "Joint")
FULL_WIDTH_OF_A_PHONE = 390


def make_report(root: Path) -> str:
    """Four methods, three seeds, one unfinished run, one method in two settings; a page as text."""
    for k, method in enumerate(METHODS):
        for seed in range(3):
            matrix: list[list[Any]] = random_matrix(5, 10 * k + seed)
            if method == "Joint":
                matrix[:4] = [[None] * 5] * 4
            write_run(root / "runs" / f"{method}_{seed}", method=method, seed=seed, **with_matrix(matrix))
    other = {"method": {"epochs": 9}, "data": {"batch_size": 32, "split_seed": 0}}
    write_run(root / "runs/other", method="ER", config=other, **with_matrix(random_matrix(5, 99)))
    part = with_matrix([[0.9, *[None] * 4], [0.5, 0.8, *[None] * 3], *[[None] * 5] * 3], method="LwF", tasks_done=2)
    write_run(root / "runs/part", **part)
    (root / "runs/ER_0/config.yaml").write_text("model: <ER> & friends\n", encoding="utf-8")
    return load_runs(root / "runs").write(root / "out").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_report(tmp_path_factory.mktemp("page"))


# ---------------------------------------------------------------------- structure


class Elements(HTMLParser):
    """Start tags with their attributes, and text by tag."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_tags_are_balanced_and_ids_unique(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids)) > 5


def test_nothing_is_referred_to_outside_the_page(page: str) -> None:
    links = [a.get(name) or "" for _, a in Elements(page).found for name in ("src", "href", "srcset") if name in a]
    assert len(links) > 10
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_figures_have_words_and_heads_have_scopes(page: str) -> None:
    found = Elements(page).found
    alts = [a.get("alt") or "" for tag, a in found if tag == "img"]
    assert len(alts) == len(set(alts)) > 10
    assert all(len(alt) > 20 for alt in alts)
    assert all(a.get("scope") in ("col", "row") for tag, a in found if tag == "th")
    assert [a["lang"] for tag, a in found if tag == "html"] == ["en"]


def test_content_of_configs_is_text_not_markup(page: str) -> None:
    assert "model: &lt;ER&gt; &amp; friends" in page


def test_settings_that_differ_are_marked_and_runs_can_be_made_again(page: str) -> None:
    rows = re.findall(r'<tr class="differs"><th scope="row">≠ ([\w.]+)</th>', page)
    assert "method" in rows
    assert "method.epochs" in rows
    assert "data.batch_size" not in rows
    assert re.search(r"lightning-cil fit --config \S+/ER_0/config.yaml", page)
    assert "seed_everything(1); IncrementalTrainer(…).fit(LwF(…), SplitDigits(…))" in page
    assert "torch 2.11.0" in page
    assert "x86_64" in page


def test_twenty_runs_stay_below_five_megabytes(tmp_path: Path) -> None:
    for k in range(20):
        write_run(tmp_path / f"runs/{k}", method=f"Method{k:02d}", **with_matrix(random_matrix(8, k)))
    out = load_runs(tmp_path / "runs").write(tmp_path / "out")
    assert out.stat().st_size < 5e6


# ---------------------------------------------------------------------- in a browser

SEE = """
await new Promise((done) => setTimeout(done, 50));
return {
  problems: window.problems,
  requests: window.performance.getEntriesByType("resource").map((e) => e.name.slice(0, 60)),
  agent: window.navigator.userAgent,
};"""


def test_no_error_and_no_request(page: str) -> None:
    seen = run_in_browser(page, SEE)
    assert "Chrome/" in seen["agent"]
    assert seen["problems"] == []
    assert [name for name in seen["requests"] if not name.startswith("data:")] == []


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ("<script>undefinedName.call()</script>", "error: Uncaught ReferenceError"),
        ("<script>console.error('wrong')</script>", "console: wrong"),
        ('<img src="http://127.0.0.1:9/x.png">', "blocked: http://127.0.0.1:9/x.png"),
    ],
)
def test_the_check_sees_what_is_planted(page: str, planted: str, expected: str) -> None:
    seen = run_in_browser(page.replace("</main>", f"{planted}</main>"), SEE)
    assert any(problem.startswith(expected) for problem in seen["problems"]), seen["problems"]


def test_figures_are_visible(page: str) -> None:
    figures = run_in_browser(
        page,
        """
        return Array.from(document.images).map((image) => {
          const canvas = document.createElement("canvas");
          canvas.width = 200; canvas.height = 150;
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0, 200, 150);
          const pixels = new Uint32Array(context.getImageData(0, 0, 200, 150).data.buffer);
          const box = image.getBoundingClientRect();
          return [image.complete, image.naturalWidth, box.width, box.height, new Set(pixels).size];
        });""",
    )
    assert len(figures) > 10
    for complete, natural, width, height, colours in figures:
        assert complete
        assert natural > 100
        assert width > 200
        assert height > 60
        assert colours > 20


SORT = """
const table = document.getElementById("class_il");
const heads = Array.from(table.tHead.rows[0].cells);
const look = () => ({
  names: Array.from(table.tBodies[0].rows).map((row) => row.cells[0].textContent),
  values: Array.from(table.tBodies[0].rows).map((row) => row.cells[COLUMN].dataset.value || null),
  sorted: heads.map((head) => head.getAttribute("aria-sort")),
});
const found = [look()];
for (let i = 0; i < 2; i++) { heads[COLUMN].querySelector("button").click(); found.push(look()); }
return found;"""


@pytest.mark.parametrize("column", [2, 5])
def test_a_press_on_a_number_sorts_up_and_another_down(page: str, column: int) -> None:
    before, up, down = run_in_browser(page, SORT.replace("COLUMN", str(column)))
    defined = [float(v) for v in before["values"] if v is not None]
    missing = [None] * (len(before["values"]) - len(defined))
    assert len(defined) >= 4
    assert [None if v is None else float(v) for v in up["values"]] == [*sorted(defined), *missing]
    assert [None if v is None else float(v) for v in down["values"]] == [*sorted(defined, reverse=True), *missing]
    assert (up["sorted"][column], down["sorted"][column]) == ("ascending", "descending")
    assert set(up["sorted"]) == {"none", "ascending"}
    assert sorted(up["names"]) == sorted(before["names"])
    assert up["names"] != down["names"]


def test_names_sort_as_text(page: str) -> None:
    _, up, down = run_in_browser(page, SORT.replace("COLUMN", "0"))
    assert up["names"] == sorted(up["names"], key=str.lower)
    assert down["names"] == up["names"][::-1]


NARROW = """
const boxes = Array.from(document.querySelectorAll(".wide"));
for (const details of document.querySelectorAll("details")) details.open = true;
const small = Array.from(document.querySelectorAll("p, li, td, th, figcaption, summary, pre"))
  .filter((e) => e.textContent.trim() && parseFloat(window.getComputedStyle(e).fontSize) < 12);
return {
  page: document.documentElement.scrollWidth,
  window: window.innerWidth,
  scrolling: boxes.filter((box) => box.scrollWidth > box.clientWidth).length,
  outside: boxes.filter((box) => box.getBoundingClientRect().right > window.innerWidth).length,
  small: small.length,
  keys: boxes.every((box) => box.tabIndex === 0),
};"""


def test_a_phone_scrolls_the_tables_not_the_page(page: str) -> None:
    seen = run_in_browser(page, NARROW, width=FULL_WIDTH_OF_A_PHONE)
    assert seen["window"] == FULL_WIDTH_OF_A_PHONE
    assert seen["page"] <= FULL_WIDTH_OF_A_PHONE
    assert (seen["outside"], seen["small"]) == (0, 0)
    assert seen["scrolling"] >= 2
    assert seen["keys"]


def test_the_check_of_the_width_sees_a_wide_line(page: str) -> None:
    wide = page.replace("</main>", '<div style="width: 600px">x</div></main>')
    assert run_in_browser(wide, NARROW, width=FULL_WIDTH_OF_A_PHONE)["page"] > FULL_WIDTH_OF_A_PHONE


CONTRAST = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (c) => {
  const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const back = (e) => {
  for (; e; e = e.parentElement) {
    const colour = rgb(window.getComputedStyle(e).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const found = Array.from(document.querySelectorAll("h1, p, li, td, th, th button, figcaption, summary, caption, pre"))
  .map((e) => {
    const [a, b] = [light(rgb(window.getComputedStyle(e).color)), light(back(e))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  });
return {lowest: Math.min(...found), body: light(back(document.body))};"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_on_light_and_on_dark(page: str, dark: bool) -> None:
    rule = "@media (prefers-color-scheme: dark)"
    assert page.count(rule) == 1
    seen = run_in_browser(page.replace(rule, "@media all") if dark else page, CONTRAST)
    assert (seen["body"] < 0.2) == dark
    assert seen["lowest"] > 4.5


WORDS = """
const broken = [];
for (const th of document.querySelectorAll("#class_il tbody th")) {
  const text = th.firstChild;
  for (const word of text.data.matchAll(/[^\\s-]+/g)) {
    const range = document.createRange();
    range.setStart(text, word.index);
    range.setEnd(text, word.index + word[0].length);
    if (range.getClientRects().length > 1) broken.push(word[0]);
  }
}
return broken;"""


def test_names_of_methods_are_not_broken(page: str) -> None:
    renamed = page.replace("FineTune", "Independent")
    assert run_in_browser(renamed, WORDS, width=FULL_WIDTH_OF_A_PHONE) == []
    longer = page.replace("FineTune", "Independent" * 3)
    assert run_in_browser(longer, WORDS, width=FULL_WIDTH_OF_A_PHONE) == ["Independent" * 3]  # the check sees it
