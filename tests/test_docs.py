"""README and docs: what they link to is there."""

import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = sorted([_ROOT / 'README.md', *_ROOT.glob('docs/**/*.md')])
_LINK = re.compile(r'\]\(([^)\s]+)\)')


def anchors(page):
  """As GitHub makes them of headings."""
  return {re.sub(r'[^\w\- ]', '', line.lstrip('# ').lower()).replace(' ', '-')
          for line in page.read_text().splitlines() if line.startswith('#')}


@pytest.mark.parametrize('page', _PAGES, ids=lambda x: str(x.name))
def test_links_lead_somewhere(page):
  text = page.read_text()
  assert not re.findall(r'@[A-Z0-9]+@', text)  # to be filled in
  for link in _LINK.findall(text):
    if re.match(r'\w+:', link):
      continue
    path, _, anchor = link.partition('#')
    target = page.parent / path if path else page
    assert target.exists(), link
    assert not anchor or anchor in anchors(target), link
