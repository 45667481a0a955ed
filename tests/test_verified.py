"""docs/verified.md is what the tests say."""

from pathlib import Path

from tests.verified import claims, page

PAGE = Path(__file__).parents[1] / 'docs' / 'verified.md'


def test_the_page_is_fresh():
  assert PAGE.read_text() == page(), 'run python -m tests.verified > docs/verified.md'


def test_no_claim_is_written_in_a_way_that_the_page_misses(request):
  marked = {(item.path, item.originalname) for item in request.session.items if item.get_closest_marker('verifies')}
  assert marked <= {(Path(__file__).parent / claim.file, claim.test) for claim in claims()}
