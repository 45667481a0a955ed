"""docs/verified.md is up to date with the tests."""

from pathlib import Path

from tests.verified import claims, page

PAGE = Path(__file__).parents[1] / 'docs' / 'verified.md'


def test_the_page_is_up_to_date():
  assert PAGE.read_text() == page(), 'run python -m tests.verified > docs/verified.md'


def test_the_page_lists_every_marked_test(request):
  marked = {(item.path, item.originalname) for item in request.session.items if item.get_closest_marker('verifies')}
  assert marked <= {(Path(__file__).parent / claim.file, claim.test) for claim in claims()}
