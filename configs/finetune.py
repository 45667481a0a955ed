"""Fine-tuning on your own pictures: hundreds to thousands of samples, prepared by `ditsam_jax.prepare --name=mine`.

  python -m ditsam_jax.train --config=finetune:mine --config.init_from=models/ldit --workdir=runs/mine

`init_from` is a converted model, a run's workdir or a shipped model (`shapes`). Sizes, fusion, tokenizer and vocabulary are
its own. What can be chosen, and what it costs; seconds and GB are of L-DIT on ViT-B at 512, f32, per step of two images on
two CPU cores (docs/benchmarks.md), where everything trained takes 7.6 s, 3.4 GB of state and 2.6 GB of temporaries:

- `--config.optimizer.learning_rate`: 3e-5 is a third of the release's rate, because a trained model forgets at a higher one.
  A narrow model needs more: 1e-3 for `shapes`, which is 96 wide.
- `--config.epochs`: 30. Hundreds of samples need more passes than thousands; the best model on the validation split is
  kept in `best/`, so too many cost time only.
- `--config.freeze=image_encoder`: 5.9 s, 2.3 GB of state. SAM's features stay; projections of the text, BERT and the mask
  decoder are trained. Enough where the pictures look like photographs, too little for drawings, X-rays, satellites.
- `--config.freeze=text_encoder`: 7.0 s, 2.1 GB of state. Enough where the words are everyday English.
- `--config.freeze=image_encoder,text_encoder`: 5.5 s, 1.0 GB of state. The least to overfit with: some dozens of samples.
- `--config.data.add_words=from-data`: a row per new word. For small vocabularies; BERT's reads rare words in pieces.
- `--config.remat=block`: less than half the temporaries, a sixth more time. `--config.accumulate=2`: less memory, the
  same batch. `--config.dtype=bfloat16`: for accelerators.

Batches of 16, Adam, dice loss besides cross-entropy, and mild augmentation: half of the samples are mirrored, with 'left'
and 'right' swapped in the sentence. Where a side matters in another way, for text or road signs say, use
`--config.data.augmentation.flip_probability=0`; where colours are subtle, `jitter_probability=0`.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('finetune', data_set)
