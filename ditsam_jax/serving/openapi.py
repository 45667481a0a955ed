"""OpenAPI 3.1 description of the API, and its script-free page at /docs."""

import html
from typing import Any

from ditsam_jax.serving.limits import Limits

_NUMBERS = {'type': 'array', 'items': {'type': 'number'}}


def document(name: str, limits: Limits) -> dict[str, Any]:
  """Returns the OpenAPI document for a model."""
  prompts = {
    'oneOf': [_ref('Prompt'), {'type': 'array', 'items': _ref('Prompt'), 'minItems': 1, 'maxItems': limits.prompts}]
  }
  answers = {'oneOf': [_ref('Answer'), {'type': 'array', 'items': _ref('Answer')}]}
  answer = _answer(
    'The masks as JSON with COCO run lengths. With `Accept: image/png`, the best mask as a PNG file of 0 and 255, with '
    'its score in `X-Score`.',
    answers,
    png=True,
  )
  image_id = {'name': 'id', 'in': 'path', 'required': True, 'schema': {'type': 'string'}}
  candidate = {
    'name': 'candidate',
    'in': 'query',
    'description': 'With `Accept: image/png` and `multimask`: which of the three masks. Default: the best.',
    'schema': {'type': 'integer', 'minimum': 0, 'maximum': 2},
  }
  image_file = {'schema': {'type': 'string', 'format': 'binary'}}
  form = {'type': 'object', 'properties': {'image': image_file['schema']}, 'required': ['image']}
  one_shot = {
    'type': 'object',
    'properties': {'image': image_file['schema'], 'prompt': {'type': 'string', 'description': 'JSON, as `Prompt`'}},
    'required': ['image', 'prompt'],
  }
  megabytes, pixels = limits.upload_bytes // 2**20, limits.pixels
  paths = {
    '/api/images': {
      'post': {
        'summary': 'Upload an image',
        'description': (
          f'The bytes of an image file, at most {megabytes} MiB and {pixels:,} pixels, or a form with a file `image`. '
          'The answer sets a session cookie, which is required to use the image. The image expires after '
          f'{limits.kept_seconds:g} seconds without use, or when other images need the memory.'
        ),
        'requestBody': {'required': True, 'content': {'image/*': image_file, 'multipart/form-data': {'schema': form}}},
        'responses': {'201': _answer('The image is stored.', _ref('Image')), **_refusals(400, 401, 408, 413, 503, 504)},
      }
    },
    '/api/images/{id}': {
      'delete': {
        'summary': 'Delete an image',
        'parameters': [image_id],
        'responses': {'204': {'description': 'The image is deleted.'}, **_refusals(401, 404)},
      }
    },
    '/api/images/{id}/prompts': {
      'post': {
        'summary': 'Segment an uploaded image',
        'description': f'One prompt, or a list of up to {limits.prompts}, which returns a list.',
        'parameters': [image_id, candidate],
        'requestBody': {'required': True, 'content': {'application/json': {'schema': prompts}}},
        'responses': {'200': answer, **_refusals(400, 401, 404, 408, 413, 429, 503, 504)},
      }
    },
    '/api/images/{id}/everything': {
      'post': {
        'summary': 'Segment everything in an uploaded image, or everything that a phrase refers to',
        'description': 'Takes as long as a hundred prompts; only a few images may wait at a time.',
        'parameters': [image_id],
        'requestBody': {'required': True, 'content': {'application/json': {'schema': _ref('Phrase')}}},
        'responses': {'200': _answer('All masks.', _ref('Everything')), **_refusals(400, 401, 404, 408, 413, 503, 504)},
      }
    },
    '/api/segment': {
      'post': {
        'summary': 'Segment an image without storing it',
        'parameters': [candidate],
        'requestBody': {'required': True, 'content': {'multipart/form-data': {'schema': one_shot}}},
        'responses': {'200': answer, **_refusals(400, 401, 408, 413, 415, 429, 503, 504)},
      }
    },
    '/api/words': {
      'post': {
        'summary': 'Find words of a sentence that the model does not know',
        'requestBody': {'required': True, 'content': {'application/json': {'schema': _ref('Prompt')}}},
        'responses': {'200': _answer('The words.', _ref('Words')), **_refusals(400, 401, 408, 413)},
      }
    },
    '/api/model': {
      'get': {
        'summary': 'The model and the limits',
        'responses': {'200': _answer('The model.', _ref('Model')), **_refusals(401)},
      }
    },
    '/metrics': {
      'get': {
        'summary': 'Metrics for Prometheus',
        'responses': {'200': {'description': 'Text.', 'content': {'text/plain': {}}}, **_refusals(401)},
      }
    },
    '/healthz': {'get': {'summary': 'Whether the process is alive', 'responses': {'200': {'description': 'Alive.'}}}},
    '/readyz': {
      'get': {
        'summary': 'Whether all programs are compiled',
        'responses': {'200': {'description': 'Ready.'}, **_refusals(503)},
      }
    },
  }
  return {
    'openapi': '3.1.0',
    'info': {'title': f'ditsam_jax: {name}', 'version': '1'},
    'paths': paths,
    'components': {
      'schemas': _schemas(limits),
      'securitySchemes': {'token': {'type': 'http', 'scheme': 'bearer', 'description': 'If started with `--token`.'}},
    },
  }


def page(document: dict[str, Any]) -> str:
  """Returns the document as HTML."""
  parts = [
    f'<h1>{_text(document["info"]["title"])}</h1>',
    '<p><a href="/">The page</a> · <a href="/openapi.json">openapi.json</a></p>',
  ]
  for path, methods in document['paths'].items():
    for method, item in methods.items():
      parts.append(f'<section><h2><code>{method.upper()} {_text(path)}</code></h2><p>{_text(item["summary"])}.')
      parts.append(f' {_marked(item.get("description", ""))}</p>')
      rows = [(p['name'], p['in'], p.get('description', '')) for p in item.get('parameters', [])]
      body = item.get('requestBody', {}).get('content', {})
      rows += [(media, 'body', _described(content.get('schema', {}))) for media, content in body.items()]
      if rows:
        parts.append(_table(('Send', 'As', 'Meaning'), rows))
      answers = [
        (status, ', '.join(answer.get('content', {})), answer['description'])
        for status, answer in item['responses'].items()
      ]
      parts.append(_table(('Status', 'Type', 'Meaning'), answers) + '</section>')
  for name, schema in document['components']['schemas'].items():
    rows = [
      (field, _described(value), value.get('description', '')) for field, value in schema.get('properties', {}).items()
    ]
    parts.append(f'<section id="{name}"><h2>{name}</h2>{_table(("Field", "Type", "Meaning"), rows)}</section>')
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
    f'content="width=device-width"><title>API of {_text(document["info"]["title"])}</title>'
    '<link rel="icon" href="/icon.svg"><link rel="stylesheet" href="/docs.css"></head>'
    f'<body><main>{"".join(parts)}</main></body></html>'
  )


def _schemas(limits: Limits) -> dict[str, Any]:
  rle = {
    'type': 'object',
    'description': "COCO's compressed run lengths, for `pycocotools.mask.decode`.",
    'properties': {'size': {'type': 'array', 'items': {'type': 'integer'}}, 'counts': {'type': 'string'}},
    'required': ['size', 'counts'],
  }
  mask = {
    'score': {'type': 'number', 'description': 'The predicted IoU.'},
    'area': {'type': 'integer', 'description': 'Pixels.'},
    'box': {
      'type': ['array', 'null'],
      'items': {'type': 'integer'},
      'description': '[x0, y0, x1, y1], x1 and y1 exclusive; null for an empty mask.',
    },
    'rle': _ref('RunLengths'),
    'low_res': {
      'type': 'string',
      'description': 'If requested: low-resolution logits as base64 of little-endian float32, to send as `mask`.',
    },
  }
  return {
    'Prompt': _object(
      {
        'text': {'type': 'string', 'description': f'A sentence of at most {limits.text_bytes:,} bytes.'},
        'points': {
          'type': 'array',
          'items': _NUMBERS,
          'maxItems': limits.points,
          'description': '(x, y) each, in pixels of the image.',
        },
        'labels': {**_NUMBERS, 'description': 'For each point: 1 on the object, 0 off it. Default: all 1.'},
        'box': {**_NUMBERS, 'description': '[x0, y0, x1, y1] in pixels of the image.'},
        'mask': {'type': ['string', 'array'], 'description': "A mask's `low_res`, or its numbers as nested lists."},
        'multimask': {'type': 'boolean', 'description': 'Return three masks instead of one.'},
        'low_res': {'type': 'boolean', 'description': "Return each mask's `low_res`."},
      },
      [],
    ),
    'Answer': _object(
      {
        'masks': {'type': 'array', 'items': _ref('Mask'), 'description': 'One, or three with `multimask`.'},
        'best': {'type': 'integer', 'description': 'Index of the mask with the highest score.'},
        'unknown': {'type': 'array', 'items': {'type': 'string'}, 'description': 'Words the model does not know.'},
        'cut': {'type': 'string', 'description': 'The end of the sentence that the model does not read.'},
        'width': {'type': 'integer'},
        'height': {'type': 'integer'},
        'model': {'type': 'string'},
        'seconds': {'type': 'number', 'description': 'Time on the server, including waiting.'},
      }
    ),
    'Mask': _object(mask, ['score', 'area', 'box', 'rle']),
    'RunLengths': rle,
    'Phrase': _object({'text': {'type': 'string', 'description': 'What to segment. Default: everything.'}}, []),
    'Everything': _object(
      {
        'masks': {'type': 'array', 'items': _ref('Mask'), 'description': 'Highest score first.'},
        'width': {'type': 'integer'},
        'height': {'type': 'integer'},
        'model': {'type': 'string'},
      }
    ),
    'Image': _object(
      {
        'id': {'type': 'string'},
        'width': {'type': 'integer'},
        'height': {'type': 'integer'},
        'kept_seconds': {'type': 'number', 'description': 'Seconds until it expires without use.'},
      }
    ),
    'Words': _object(
      {
        'unknown': {'type': 'array', 'items': {'type': 'string'}, 'description': 'Words the model does not know.'},
        'places': {
          'type': 'array',
          'items': {'type': 'array', 'items': {'type': 'integer'}},
          'description': 'Start and end of each word in the sentence, in characters.',
        },
        'cut': {'type': 'string', 'description': 'The end of the sentence that the model does not read.'},
      }
    ),
    'Model': _object(
      {
        'model': {'type': 'string'},
        'text': {'type': 'boolean', 'description': 'Whether the model takes text.'},
        'image_size': {'type': 'integer'},
        'mask_prompt_side': {'type': 'integer'},
        'ready': {'type': 'boolean'},
        'limits': {'type': 'object'},
      }
    ),
    'Error': _object({'error': {'type': 'string', 'description': 'One line.'}}),
  }


_MEANINGS = {
  400: 'Not an image, or not a valid prompt.',
  401: 'The token is missing or wrong.',
  404: 'No such image in this session.',
  408: 'The body took too long.',
  413: 'The body or the image is too large.',
  415: 'Not a form.',
  429: 'Too many of your prompts are waiting; see Retry-After.',
  503: 'Busy, stopping or not ready; see Retry-After.',
  504: 'It took too long.',
}


def _refusals(*statuses: int) -> dict[str, Any]:
  return {str(status): _answer(_MEANINGS[status], _ref('Error')) for status in statuses}


def _answer(description: str, schema: dict[str, Any], png: bool = False) -> dict[str, Any]:
  content: dict[str, Any] = {'application/json': {'schema': schema}}
  if png:
    content['image/png'] = {}
  return {'description': description, 'content': content}


def _ref(name: str) -> dict[str, Any]:
  return {'$ref': f'#/components/schemas/{name}'}


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
  return {
    'type': 'object',
    'properties': properties,
    'required': list(properties) if required is None else required,
    'additionalProperties': False,
  }


def _described(schema: dict[str, Any]) -> str:
  if '$ref' in schema:
    return schema['$ref'].rpartition('/')[2]
  if 'oneOf' in schema:
    return ' or '.join(map(_described, schema['oneOf']))
  kind = schema.get('type', 'any')
  if kind == 'array':
    return f'list of {_described(schema.get("items", {}))}'
  if kind == 'object' and 'properties' in schema:
    return f'fields {", ".join(schema["properties"])}'
  return ' or '.join(kind) if isinstance(kind, list) else 'file' if schema.get('format') == 'binary' else kind


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  cells = ''.join(
    f'<tr><td><code>{_text(row[0])}</code></td>' + ''.join(f'<td>{_marked(cell)}</td>' for cell in row[1:]) + '</tr>'
    for row in rows
  )
  return f'<table><thead><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr></thead><tbody>{cells}</tbody></table>'


def _marked(text: str) -> str:
  """Converts text with `code` to HTML."""
  parts = text.split('`')
  return ''.join(f'<code>{_text(part)}</code>' if number % 2 else _text(part) for number, part in enumerate(parts))


def _text(text: str) -> str:
  return html.escape(str(text))
