"""The first prompts of the task 'interactive': a sentence, a click, a box, or a sentence with one of them."""

import dataclasses
import fractions

from ditsam_jax.errors import UserError
from ditsam_jax.fields import SHARE, Real, check_shares, declared

_KINDS = ('text', 'text_click', 'text_box', 'click', 'box')
_LARGEST_GROUP = 16  # samples


@dataclasses.dataclass(frozen=True)
class FirstPromptConfig:
  """The share of each kind of first prompt; the five shares add up to 1."""

  text: float = declared(0.5, SHARE, 'Share of sentences alone')
  text_click: float = declared(0.125, SHARE, 'Share of sentences with a click')
  text_box: float = declared(0.125, SHARE, 'Share of sentences with a box')
  click: float = declared(0.125, SHARE, 'Share of clicks without a sentence')
  box: float = declared(0.125, SHARE, 'Share of boxes without a sentence')
  box_jitter: float = declared(0.1, Real(0, 0.5), "Each side of a box moves by up to this share of the box's length")

  def __post_init__(self):
    check_shares('first_prompts', {kind: getattr(self, kind) for kind in _KINDS})
    without, group = self.without_text
    if abs(without / group - self.click - self.box) > 1e-6:
      raise UserError(
        f'first_prompts: click and box are {self.click + self.box:g} of all samples; expected a fraction such as 1/4, '
        f'with a denominator of at most {_LARGEST_GROUP}'
      )

  @property
  def without_text(self) -> tuple[int, int]:
    """The share of samples without a sentence as a fraction: (1, 4) for a quarter."""
    share = fractions.Fraction(self.click + self.box).limit_denominator(_LARGEST_GROUP)
    return share.numerator, share.denominator
