"""The HTTP API returns the library's results, and refuses bad requests with one line."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ditsam_jax.geometry.masks import bounding_box
from ditsam_jax.inference.framing import frame
from ditsam_jax.inference.mask_generator import SamAutomaticMaskGenerator
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving.everything import Everything
from ditsam_jax.serving.limits import Limits
from ditsam_jax.serving.refusals import Refused
from ditsam_jax.storage import saved_model
from tests.fuzz.seeds import picture
from tests.serving.running import form, png
from tests.small_models import random_model

ROOT = Path(__file__).parents[2]
PROMPTS = [
  {'text': 'the red circle'},
  {'points': [[3, 4], [30, 20]], 'labels': [1, 0]},
  {'text': 'the blue square', 'box': [2, 3, 40, 30], 'multimask': True},
]


@pytest.fixture
def image(client):
  return client.upload(picture())


def arguments(prompt):
  given = {name: value for name, value in prompt.items() if name not in ('low_res', 'mask')}
  return given | ({'mask': np.array(prompt['mask'])} if 'mask' in prompt else {})


@pytest.mark.slow
@pytest.mark.parametrize('prompt', PROMPTS)
def test_answers_equal_the_library_results(client, image, segmenter, prompt):
  answer = client.post(f'{image}/prompts', prompt).json
  wanted = segmenter(picture(), **arguments(prompt))
  assert (answer['width'], answer['height'], answer['best']) == (56, 40, wanted.best)
  masks = [coco_mask.decode(mask['rle']).astype(bool) for mask in answer['masks']]
  assert np.array_equal(masks, wanted.masks)
  assert [mask['score'] for mask in answer['masks']] == [float(score) for score in wanted.scores]
  assert [(mask['area'], mask['box']) for mask in answer['masks']] == list(zip(wanted.areas, wanted.boxes))


def test_a_list_of_prompts_returns_a_list_in_order(client, image):
  together = client.post(f'{image}/prompts', PROMPTS).json
  alone = [client.post(f'{image}/prompts', prompt).json for prompt in PROMPTS]
  assert [each['masks'] for each in together] == [each['masks'] for each in alone]


def test_image_and_prompt_in_one_request(client, image):
  body, kind = form(image=png(picture()), prompt=json.dumps(PROMPTS[0]))
  answer = client.post('/api/segment', body, Content_Type=kind)
  assert answer.status == 200 and answer.json['masks'] == client.post(f'{image}/prompts', PROMPTS[0]).json['masks']


def test_a_form_uploads_like_plain_bytes(client, image):
  body, kind = form(image=png(picture()))
  answer = client.post('/api/images', body, Content_Type=kind)
  assert (answer.status, answer.json['width'], answer.json['height']) == (201, 56, 40)


def test_a_mask_as_png(client, image):
  for prompt in PROMPTS:
    wanted = client.post(f'{image}/prompts', prompt).json
    answer = client.post(f'{image}/prompts', prompt, Accept='image/png')
    best = wanted['masks'][wanted['best']]
    pixels = np.asarray(Image.open(io.BytesIO(answer.body)))
    assert np.array_equal(pixels, 255 * coco_mask.decode(best['rle']))
    assert float(answer.headers['X-Score']) == pytest.approx(best['score'], abs=1e-6)
  second = client.post(f'{image}/prompts?candidate=1', PROMPTS[2], Accept='image/png')
  assert float(second.headers['X-Score']) == pytest.approx(wanted['masks'][1]['score'], abs=1e-6)


@pytest.mark.slow
def test_a_mask_refines_the_next_prompt(client, image, segmenter):
  first = client.post(f'{image}/prompts', {'text': 'the red circle', 'low_res': True}).json
  found = segmenter(picture(), 'the red circle')
  sent = first['masks'][0]['low_res']
  assert np.array_equal(np.frombuffer(base64.b64decode(sent), '<f4').reshape(16, 16), found.low_res_logits[0])
  point = {'points': [[20, 20]]}
  as_text = client.post(f'{image}/prompts', {**point, 'mask': sent}).json
  as_numbers = client.post(f'{image}/prompts', {**point, 'mask': found.low_res_logits[0].tolist()}).json
  wanted = segmenter(picture(), points=[[20, 20]], mask=found.low_res_logits[0])
  assert as_text['masks'] == as_numbers['masks']
  assert as_text['masks'][0]['score'] == float(wanted.scores[0])


def test_unknown_words_are_reported(client, image):
  text = 'the zebra on the red Qzx'
  answer = client.post('/api/words', {'text': text}).json
  assert answer['unknown'] == client.post(f'{image}/prompts', {'text': text}).json['unknown']
  assert [text[start:end] for start, end in answer['places']] == ['zebra', 'Qzx']
  assert answer['cut'] == 'red Qzx'


def test_an_image_belongs_to_its_session(live, client, image):
  other = live.client()
  unknown = other.post('/api/images/nothing/prompts', PROMPTS[0])
  other.upload(picture())  # starts its own session
  for stranger in (live.client(), other):
    for method, path, body in (('POST', f'{image}/prompts', PROMPTS[0]), ('DELETE', image, None)):
      answer = stranger.request(method, path, body)
      assert (answer.status, answer.json) == (404, unknown.json)  # does not reveal that it exists
  assert client.post(f'{image}/prompts', PROMPTS[0]).status == 200
  ids = {client.upload(picture()) for _ in range(20)}
  assert len(ids) == 20 and all(len(id.rpartition('/')[2]) == 32 for id in ids)


def test_a_deleted_image_is_gone(client, image):
  assert client.request('DELETE', image).status == 204
  assert client.post(f'{image}/prompts', PROMPTS[0]).status == 404


@pytest.mark.slow
@pytest.mark.parametrize('text', [None, 'the red circles'])
def test_everything(live, client, image, segmenter, monkeypatch, text):
  settings = {'points_per_side': 2, 'pred_iou_thresh': 0, 'stability_score_thresh': 0}
  monkeypatch.setattr(
    live.service.everything, '_generator', SamAutomaticMaskGenerator(segmenter, output_mode='coco_rle', **settings)
  )
  found = client.post(f'{image}/everything', {'text': text} if text else {}).json['masks']
  wanted = SamAutomaticMaskGenerator(segmenter, **settings).generate(picture(), text)
  assert len(found) == len(wanted) > 0
  for mask, record in zip(found, wanted):
    assert np.array_equal(coco_mask.decode(mask['rle']), record['segmentation'])
    assert (mask['score'], mask['area']) == (record['predicted_iou'], record['area'])
    assert tuple(mask['box']) == bounding_box(record['segmentation'])


def test_bad_requests_for_everything_are_refused(client, image):
  for body, told in (
    ([], 'a phrase'),
    ({'points': [[1, 2]]}, 'a phrase'),
    ({'text': ''}, 'nothing to read'),
    ({'text': 3}, 'int'),
  ):
    answer = client.post(f'{image}/everything', body)
    assert answer.status == 400 and told in answer.json['error'], answer
  strip = client.upload(np.zeros((1, 2**16 + 1, 3), np.uint8))  # ten million pixels of it would take 4 GB
  answer = client.post(f'{strip}/everything', {})
  assert answer.status == 400 and '65,537 x 1 pixels' in answer.json['error']


def test_everything_is_refused_by_a_model_trained_with_sentences_only(segmenter, tmp_path):
  words = segmenter.tokenizer.vocabulary_file
  saved_model.save(tmp_path / 'text', random_model(segmenter.config), vocabulary=words, notes={'task': 'text'})
  everything = Everything(Segmenter(tmp_path / 'text'), Limits())
  everything.compile()  # nothing
  with pytest.raises(Refused, match='text was trained with sentences only'):
    everything.submit(None, 'the red circle')
  everything.close()


def test_the_service_may_keep_more_masks_than_metas_thresholds(segmenter):
  image = frame(picture(), segmenter.config)
  counts = []
  for settings in ({}, {'points_per_side': 8, 'pred_iou_thresh': -10.0, 'stability_score_thresh': 0.0}):
    everything = Everything(segmenter, Limits(), settings)
    everything.compile()
    counts.append(len(everything.submit(image, None).result()['masks']))
    everything.close()
  assert counts[0] < counts[1]


BAD_PROMPTS = [
  ([], 'prompts'),
  ([PROMPTS[0]] * 17, '17 prompts'),
  ([PROMPTS[0], {'text': ''}], 'prompt 2'),
  ({}, 'empty prompt'),
  ('"text"', 'of type str'),
  ({'txt': 'a'}, 'txt is unknown'),
  ({'text': 'x' * 1001}, '1,001 bytes'),
  ({'text': 3}, 'of type int'),
  ({'points': [[1, 2]] * 31}, '31 points'),
  ({'points': [[1]]}, 'shape'),
  ({'points': [[1, 10**400]]}, 'points'),
  ({'points': [[[[1]]]] * 3}, 'points'),
  ({'labels': [1] * 10**5, 'points': [[1, 2]]}, 'labels'),
  ({'box': [5, 5, 1, 1]}, 'box'),
  ({'box': '12'}, 'box'),
  ({'mask': 'AAAA'}, '3 bytes'),
  ({'mask': '*'}, 'base64'),
  ({'mask': [[0.5]]}, 'mask'),
  ({'text': 'a', 'multimask': 1}, 'multimask'),
  ({'text': 'a', 'low_res': 'yes'}, 'low_res'),
  ('{"text": NaN}', 'NaN is not a number'),
  ('{"points": [[1e999, 2]]}', 'the number 1e999 is too large'),
  ('{"text": "a", "text": "b"}', "the body is not valid JSON: an object has the key 'text' twice"),
  ('{"text": "\\ud800"}', 'Unicode'),
  ('[' * 100_000, 'nested'),
  ('{', 'not JSON'),
  (b'\xff\xfe', 'not UTF-8'),
]


@pytest.mark.parametrize('body, message', BAD_PROMPTS, ids=[str(body)[:24] for body, _ in BAD_PROMPTS])
def test_bad_prompts_are_refused_in_one_line(client, image, body, message):
  answer = client.post(f'{image}/prompts', body)
  assert answer.status == 400 and message in answer.json['error'] and answer.json['error'].isprintable()


def test_bad_uploads_are_refused(client):
  cases = [
    (b'', 'empty'),
    (b'not an image', 'not an image'),
    (png(picture())[:60], 'the image'),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not an image'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'not an image'),
  ]
  for body, told in cases:
    answer = client.post('/api/images', body)
    assert answer.status == 400 and told in answer.json['error'] and '/tmp' not in answer.json['error'], answer
  for parts, told in (
    ({}, 'no file named image'),
    ({'image': 'text'}, 'no file named image'),
    ({'image': b''}, 'empty'),
    ({'image': png(picture()), 'url': 'http://localhost/'}, 'url is unknown'),
    ({'image': png(picture()), 'prompt': '{}'}, 'a prompt with an upload'),
  ):
    body, kind = form(**parts)
    answer = client.post('/api/images', body, Content_Type=kind)
    assert answer.status == 400 and told in answer.json['error'], (parts, answer)
  for parts, told in (
    ({'image': png(picture())}, 'no field prompt'),
    ({'image': b'x', 'prompt': '{}'}, 'empty prompt'),
    ({'image': b'x', 'prompt': '{'}, 'the field prompt is damaged or not JSON'),
    ({'image': b'x', 'prompt': '{"text": "a", "text": "b"}'}, "an object has the key 'text' twice"),
  ):
    body, kind = form(**parts)
    answer = client.post('/api/segment', body, Content_Type=kind)
    assert answer.status == 400 and told in answer.json['error'], (parts, answer)
  assert client.post('/api/segment', b'x').status == 415


def test_other_paths_are_refused(client):
  for path in (
    '/../serve.py', '/%2e%2e/serve.py', '/samples/../../app.py', '//etc/passwd', '/page/index.html', '/index.html',
    '/main.js/', '/samples', '/samples/', '/main.js%00.png', '/api', '/api/images/..%2f..%2f/prompts',
    '/static/main.js', '/\\..\\app.py',
  ):  # fmt: skip
    answer = client.get(path)
    assert answer.status in (404, 405) and answer.json['error'], (path, answer)
  assert client.request('PUT', '/api/images').status == 405


def test_every_answer_has_strict_security_headers(client):
  for path in ('/', '/main.js', '/docs', '/openapi.json', '/healthz', '/api/model', '/nothing', '/metrics'):
    answer = client.get(path)
    policy = answer.headers['Content-Security-Policy']
    assert "default-src 'none'" in policy and 'unsafe' not in policy and "script-src 'self'" in policy
    assert answer.headers['X-Content-Type-Options'] == 'nosniff'
  page = client.get('/').body.decode()
  assert not re.search(r'<script(?![^>]*\bsrc=)|\son\w+=|style=|https?://', page)


def test_unchanged_files_are_not_sent_again(client):
  first = client.get('/main.js')
  assert first.headers['Content-Type'] == 'text/javascript; charset=utf-8'
  assert client.get('/main.js', **{'If-None-Match': first.headers['ETag']}).status == 304


def test_the_openapi_document_lists_every_route(live, client):
  document = client.get('/openapi.json').json
  routes = {
    (route.path, method.lower())
    for route in live.http.config.app._app.router.routes
    for method in route.methods - {'HEAD'}
    if route.path.startswith(('/api/', '/healthz', '/readyz', '/metrics'))
  }
  assert routes == {(path, method) for path, methods in document['paths'].items() for method in methods}
  page = client.get('/docs').body.decode()
  assert all(f'{path}</code>' in page for path, _ in routes)


def test_answers_match_the_openapi_schemas(client, image):
  schemas = client.get('/openapi.json').json['components']['schemas']

  def check(value, schema, where):
    if '$ref' in schema:
      schema = schemas[schema['$ref'].rpartition('/')[2]]
    kinds = schema.get('type', [])
    names = {
      dict: 'object',
      list: 'array',
      str: 'string',
      bool: 'boolean',
      int: 'integer',
      float: 'number',
      type(None): 'null',
    }
    kind = names[type(value)]
    allowed = [kinds] if isinstance(kinds, str) else kinds
    assert kind in allowed or kind == 'integer' and 'number' in allowed, (where, value, schema)
    if kind == 'object' and 'properties' in schema:
      assert set(schema.get('required', ())) <= set(value) <= set(schema['properties']), where
      for name, each in value.items():
        check(each, schema['properties'][name], f'{where}.{name}')
    if kind == 'array':
      for each in value:
        check(each, schema.get('items', {}), f'{where}[]')

  check(client.post(f'{image}/prompts', {**PROMPTS[2], 'low_res': True}).json, schemas['Answer'], 'answer')
  check(client.post('/api/words', {'text': 'a zebra'}).json, schemas['Words'], 'words')
  check(client.post('/api/images', png(picture())).json, schemas['Image'], 'image')
  check(client.get('/api/model').json, schemas['Model'], 'model')
  check(client.get('/nothing').json, schemas['Error'], 'error')


def test_metrics_count_requests_batches_and_images(live):
  client = live.client()
  numbers = lambda: dict(
    line.rsplit(' ', 1) for line in client.get('/metrics').body.decode().splitlines() if line[0] != '#'
  )
  before = numbers()
  image = client.upload(picture())
  client.post(f'{image}/prompts', PROMPTS)
  client.get('/no/such/path')
  after = numbers()
  grown = lambda name: float(after[name]) - float(before.get(name, 0))
  assert grown('ditsam_requests_total{method="POST",route="/api/images",status="201"}') == 1
  assert grown('ditsam_requests_total{method="POST",route="/api/images/{id}/prompts",status="200"}') == 1
  assert grown('ditsam_requests_total{method="GET",route="none",status="404"}') == 1
  assert grown('ditsam_batch_prompts_sum') == 3 and grown('ditsam_images') == 1
  assert float(after['ditsam_queue_prompts']) == 0 and float(after['ditsam_images_bytes']) > 0


def test_a_service_can_be_alive_but_not_ready(live, client, image):
  live.service.state.ready = False
  try:
    assert (client.get('/healthz').status, client.get('/readyz').status) == (200, 503)
    answer = client.post(f'{image}/prompts', PROMPTS[0])
    assert answer.status == 503 and int(answer.headers['Retry-After']) > 0
  finally:
    live.service.state.ready = True
  assert client.get('/readyz').status == 200


def test_the_client_in_the_documentation_works(live, monkeypatch, capsys):
  monkeypatch.chdir(ROOT / 'docs')
  block = re.search(r'```python\n(.*?)```', (ROOT / 'docs/serving.md').read_text(), re.DOTALL)[1]
  assert len([line for line in block.splitlines() if line]) <= 10
  exec(block.replace('127.0.0.1:8000', f'127.0.0.1:{live.port}'), {})
  score, *_, area = capsys.readouterr().out.split()
  found = live.service.segmenter('scene.png', 'the large red circle')
  assert (float(score), int(area)) == (found.score, found.area)
