"""Fine-tuning on your own images: hundreds to thousands of samples, prepared by `ditsam_jax.prepare --name=mine`.

  python -m ditsam_jax.train --config=finetune:mine --config.init_from=models/ldit --workdir=runs/mine

`init_from` is a converted model, a run's workdir or a shipped model (`shapes`). It determines sizes, fusion, tokenizer
and vocabulary. The options below list their cost in seconds and GB, measured for L-DIT on ViT-B at 512, f32, per step
of two images on two CPU cores (docs/benchmarks.md). Training everything takes 7.6 s, 3.4 GB of state and 2.6 GB of
temporaries.

- `--config.optimizer.learning_rate`: 3e-5 by default, a third of the release's rate, because a trained model forgets at
  higher rates. Narrow models need more: 1e-3 for `shapes`, which is 96 wide.
- `--config.epochs`: 30 by default. Hundreds of samples need more passes than thousands. The best model on the
  validation split is kept in `best/`, so too many epochs only cost time.
- `--config.freeze=image_encoder`: 5.9 s, 2.3 GB of state. Keeps SAM's features; trains the text projections, BERT and
  the mask decoder. Sufficient for images that look like photographs, but not for drawings, X-rays or satellite images.
- `--config.freeze=text_encoder`: 7.0 s, 2.1 GB of state. Sufficient for everyday English.
- `--config.freeze=image_encoder,text_encoder`: 5.5 s, 1.0 GB of state. Overfits least; for a few dozen samples.
- `--config.data.add_words=from-data`: a row per new word. For small vocabularies; BERT's splits rare words into pieces.
- `--config.remat=block`: less than half the temporaries, a sixth more time. `--config.accumulate=2`: less memory with
  the same batch size. `--config.dtype=bfloat16`: for accelerators.

The recipe uses batches of 16, Adam, cross-entropy plus dice loss, and mild augmentation: half of the samples are
mirrored, with 'left' and 'right' swapped in the sentence. If mirroring changes the meaning in other ways, as with text
or road signs, use `--config.data.augmentation.flip_probability=0`; if colours are subtle, `jitter_probability=0`.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('finetune', data_set)
