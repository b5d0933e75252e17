"""What a page looks like to somebody: words that are cut off, or broken where nobody would break them."""

from collections.abc import Iterable

from playwright.sync_api import Page

WIDTHS = (390, 1300, 1920)  # CSS pixels: a phone, a window, a large screen

_FAULTS = """() => {
  const found = [], words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const node = words.currentNode, holder = node.parentElement;
    if (["SCRIPT", "STYLE", "OPTION"].includes(holder.tagName) || !holder.checkVisibility()) continue;
    let left = 0, right = innerWidth;
    for (let up = holder; up && up !== document.documentElement; up = up.parentElement) {
      if (getComputedStyle(up).overflowX === "visible") continue;
      const box = up.getBoundingClientRect();
      left = Math.max(left, box.left); right = Math.min(right, box.right);
    }
    for (const match of node.data.matchAll(/\\S+/g)) {
      const range = document.createRange();
      range.setStart(node, match.index); range.setEnd(node, match.index + match[0].length);
      const boxes = [...range.getClientRects()].filter((box) => box.width > 0);
      if (boxes.some((box) => box.left < left - 1 || box.right > right + 1)) found.push(`cut off: ${match[0]}`);
      const lines = new Set(boxes.map((box) => Math.round(box.top)));
      if (lines.size > 1 && /^[\\w.,:()%]{1,20}$/.test(match[0])) found.push(`broken: ${match[0]}`);
    }
  }
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) found.push(`the page is ${wide} wide`);
  return found.slice(0, 20);
}"""


def faults(page: Page, widths: Iterable[int] = WIDTHS) -> dict[int, list[str]]:
    """Words that are cut off at an edge, or short and on two lines, by the width of the window; none is the aim."""
    found = {}
    for width in widths:
        page.set_viewport_size({"width": width, "height": 1000})
        if faulty := page.evaluate(_FAULTS):
            found[width] = faulty
    return found
