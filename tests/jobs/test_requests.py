"""Prompts files: errors name the line, and requests are not kept in memory."""

import json
import tracemalloc

import numpy as np
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.jobs.job import Job
from ditsam_jax.jobs.requests import PromptFile, described
from ditsam_jax.storage.description import read_config


@pytest.fixture(scope='module')
def config():
  return read_config('shapes')


def problem(path, config, *lines):
  path.write_bytes(b'\n'.join(line.encode() if isinstance(line, str) else line for line in lines))
  with pytest.raises(UserError) as caught:
    Job(PromptFile(str(path), config), None)
  return str(caught.value).removeprefix(str(path)).strip()


@pytest.mark.parametrize(
  'line, expected',
  [
    ('{"image": "a", "txet": "b"}', "unknown key 'txet'; did you mean 'text'?"),
    ('{"image": "a", "image-id": 3, "text": "b"}', "unknown key 'image-id'"),
    ('{"image": "a", "-": 3, "text": "b"}', "unknown key '-'; expected image, text, points, labels, box, id"),
    ('{"image": "a\\nb", "x\\nerror: y": 3}', "unknown key 'x\\nerror: y'"),
    ('{"text": "b"}', "no 'image'"),
    ('{"image": 3, "text": "b"}', "'image' is 3"),
    ('{"image": "", "text": "b"}', '\'image\' is ""'),
    ('{"image": "a\\u0000", "text": "b"}', "'image' is"),
    ('{"image": "a"}', 'no prompt'),
    ('{"image": "a", "text": null}', 'no prompt'),
    ('{"image": "a", "text": 5}', "'text' is 5"),
    ('{"image": "a", "text": "  "}', 'nothing to read'),
    ('{"image": "a", "text": "a\\ud800"}', 'not valid Unicode'),
    ('{"image": "a", "points": [1, 2]}', "'points' is [1, 2]: expected a list of [x, y]"),
    ('{"image": "a", "points": [["1", 2]]}', "'points' is"),
    ('{"image": "a", "points": [[true, 2]]}', "'points' is"),
    ('{"image": "a", "points": [[1, 2, 3]]}', 'points have shape (1, 3)'),
    ('{"image": "a", "points": []}', 'points have shape'),
    ('{"image": "a", "points": [[1e999, 2]]}', 'the number 1e999 is too large'),
    ('{"image": "a", "points": [[NaN, 2]]}', 'NaN is not a number'),
    ('{"image": "a", "points": [[1' + '0' * 400 + ', 2]]}', 'points'),
    ('{"image": "a", "labels": [1]}', 'labels without points'),
    ('{"image": "a", "text": "b", "labels": [1]}', 'labels without points'),
    ('{"image": "a", "points": [[1, 2]], "labels": [1, 0]}', 'labels have shape (2,)'),
    ('{"image": "a", "points": [[1, 2]], "labels": [2]}', 'label 2'),
    ('{"image": "a", "box": [1, 2, 3]}', 'box has shape (3,)'),
    ('{"image": "a", "box": {"x": 1}}', "'box' is"),
    ('{"image": "a", "box": [5, 5, 1, 1]}', 'x0 <= x1'),
    ('{"image": "a", "text": "b", "id": 1.5}', "'id' is 1.5"),
    ('{"image": "a", "text": "b", "id": true}', "'id' is true"),
    ('{"image": "a", "text": "b", "id": ""}', '\'id\' is ""'),
    ('{"image": "a", "text": "b", "text": "c"}', "an object has the key 'text' twice"),
    ('{"image": "a\\ud800", "text": "b"}', 'not valid Unicode'),
    ('{"image": "a", "text": "b"', "not JSON (Expecting ',' delimiter: character 27)"),
    ('[{"image": "a", "text": "b"}]', 'expected an object'),
    ('"a"', 'expected an object'),
    ('[' * 100_000, 'nested too deeply'),
    (b'{"image": "\xff", "text": "b"}', 'not UTF-8'),
    ('{"image": "a", "text": "' + 'b' * 2**20 + '"}', 'longer than 1,048,576 bytes'),
  ],
)
def test_errors_name_the_line(tmp_path, config, line, expected):
  valid = '{"image": "a", "text": "b"}'
  message = problem(tmp_path / 'p', config, valid, '', line, valid)
  assert message.startswith('line 3: ') and expected in message
  assert len(message) < 300 and message.isprintable()


def test_a_repeated_id_is_reported_with_both_lines(tmp_path, config):
  lines = [json.dumps({'image': 'a', 'text': 'b', 'id': name}) for name in ('x', 3, 'y', '3')]
  path = tmp_path / 'p'
  path.write_text('\n'.join(lines))
  assert len(Job(PromptFile(str(path), config), None)) == 4  # the number 3 and the text '3' are two ids
  message = problem(path, config, *lines, '', lines[1])
  assert message == 'line 6: id 3 is already used on line 2; use unique ids'


def test_an_empty_file_is_refused(tmp_path, config):
  assert 'empty' in problem(tmp_path / 'p', config, '', ' ')


def test_byte_order_marks_and_windows_line_endings_are_accepted(tmp_path, config):
  (tmp_path / 'p').write_bytes(b'\xef\xbb\xbf{"image": "a", "text": "b"}\r\n\r\n{"image": "c", "box": [1, 2, 3.5, 4]}')
  first, second = PromptFile(str(tmp_path / 'p'), config)
  assert first.image == str(tmp_path / 'a') and described(second.prompt) == {'box': [1, 2, 3.5, 4]}


def test_points_without_labels_are_foreground(tmp_path, config):
  (tmp_path / 'p').write_text('{"image": "/data/a.png", "points": [[1, 2], [3, 4]]}')
  (request,) = PromptFile(str(tmp_path / 'p'), config, images_dir='elsewhere', multimask=True)
  assert request.image == '/data/a.png' and request.prompt.labels.tolist() == [1, 1] and request.prompt.multimask


def test_a_file_changed_during_the_job_is_reported(tmp_path, config):
  path = tmp_path / 'p'
  path.write_text('{"image": "a", "text": "b"}\n{"image": "a", "text": "c"}\n')
  job = Job(PromptFile(str(path), config), None)
  path.write_text('{"image": "a", "text": "b"}\n{"image": "a", "text": "d"}\n')
  requests = job.requests()
  next(requests)
  with pytest.raises(UserError, match='line 2.*changed while this command ran'):
    next(requests)


def test_lines_added_or_removed_during_the_job_are_reported(tmp_path, config):
  path, line = tmp_path / 'p', '{"image": "a", "text": "%s"}\n'
  path.write_text(line % 'b' + line % 'c')
  job = Job(PromptFile(str(path), config), None)
  for content, message in (
    (line % 'b' + line % 'c' + line % 'd', 'line 3: added while this command ran'),
    (line % 'b', 'became shorter while this command ran'),
  ):
    path.write_text(content)
    with pytest.raises(UserError, match=message):
      list(job.requests())


def test_memory_per_request_is_a_few_bytes(tmp_path, config):
  path, count = tmp_path / 'p', 5_000
  with open(path, 'w') as file:
    for i in range(count):
      file.write(json.dumps({'image': f'{i}.jpg', 'text': f'the {i}th of many circles', 'id': i}) + '\n')
  tracemalloc.start()
  try:
    job = Job(PromptFile(str(path), config), None)
    kept, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert len(job) == count and kept < 60 * count and peak < 200 * count
  job.todo[: count - 2] = False
  assert [request.id for request in job.requests()] == [count - 2, count - 1]


def test_hosts_split_the_job_by_image(tmp_path, config):
  rows = [{'image': f'{i // 3}.jpg', 'text': f'{i}'} for i in range(30)]
  (tmp_path / 'p').write_text('\n'.join(map(json.dumps, rows)))
  shares = []
  for host in range(3):
    job = Job(PromptFile(str(tmp_path / 'p'), config), None)
    job.share(host, 3)
    shares.append([(request.number, request.image) for request in job.requests()])
  numbers = [number for share in shares for number, _ in share]
  assert sorted(numbers) == list(range(30)) and max(map(len, shares)) == 12
  images = [{image for _, image in share} for share in shares]
  assert not images[0] & images[1] and not images[1] & images[2] and not images[0] & images[2]
  assert np.all(np.diff([number for number, _ in shares[0]]) > 0)
