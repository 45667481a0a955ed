// BERT's lower-casing WordPiece tokenizer, as in Hugging Face's tokenizers.

const SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'];
const LONGEST = 100; // characters of a word, BERT's limit

const CJK = [
  [0x4e00, 0x9fff], [0x3400, 0x4dbf], [0x20000, 0x2a6df], [0x2a700, 0x2b73f], [0x2b740, 0x2b81f], [0x2b920, 0x2ceaf],
  [0xf900, 0xfaff], [0x2f800, 0x2fa1f],
];
const isCjk = (code) => CJK.some(([first, last]) => code >= first && code <= last);
const isSpace = (character) => /[\p{White_Space}]/u.test(character);
const isDropped = (character) => /[\0\ufffd]|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]/u.test(character);
const isPunctuation = (character) => /[!-/:-@[-`{-~]|\p{P}/u.test(character);

export class Tokenizer {
  // `vocabulary` is the text of vocab.txt, one word piece per line.
  constructor(vocabulary, maxTokens) {
    const pieces = vocabulary.split(/\r?\n/);
    while (pieces.length && !pieces[pieces.length - 1]) pieces.pop();
    this.ids = new Map(pieces.map((piece, id) => [piece, id]));
    this.maxTokens = maxTokens;
    const special = SPECIAL.filter((token) => this.ids.has(token)).map((token) => `\\${token.slice(0, -1)}\\]`);
    this.special = new RegExp(`(${special.join('|')})`);
  }

  // Token ids and 0/1 mask of a sentence, padded to the model's number of tokens.
  encode(text) {
    const pieces = this.words(text).flatMap(({ ids }) => ids).slice(0, this.maxTokens - 2);
    const ids = [this.ids.get('[CLS]'), ...pieces, this.ids.get('[SEP]')];
    const padding = new Array(this.maxTokens - ids.length);
    return {
      ids: [...ids, ...padding.fill(this.ids.get('[PAD]'))],
      mask: Array.from({ length: this.maxTokens }, (_, i) => Number(i < ids.length)),
    };
  }

  // The words that the model does not know and the end of the sentence that it does not read, with positions in characters.
  check(text) {
    const characters = Array.from(text);
    const words = this.words(text);
    const unknown = words.filter((word) => this.#isUnknown(word));
    let room = this.maxTokens - 2;
    const first = words.findIndex(({ ids }) => (room -= ids.length) < 0);
    const cut = first >= 0 && words.slice(first).some((word) => !unknown.includes(word));
    const span = ({ start, end }) => characters.slice(start, end).join('');
    return {
      unknown: [...new Set(unknown.map(span))],
      places: unknown.map(({ start, end }) => [start, end]),
      cut: cut ? characters.slice(words[first].start).join('').trim() : '',
    };
  }

  // A word read as [UNK], or letter by letter, carries no meaning.
  #isUnknown({ ids, pieces }) {
    return ids.includes(this.ids.get('[UNK]')) || (ids.length > 1 && pieces.every((piece) => Array.from(piece.replace('##', '')).length === 1));
  }

  // The words of a text: their pieces, ids, and span in characters.
  words(text) {
    let at = 0;
    return text.split(this.special).flatMap((part, i) => {
      const start = at;
      at += Array.from(part).length;
      if (i % 2) return [{ pieces: [part], ids: [this.ids.get(part)], start, end: at }];
      return split(normalised(part, start)).map((word) => this.#pieces(word));
    });
  }

  // The longest known piece at each position; [UNK] if there is none.
  #pieces({ characters, start, end }) {
    const pieces = [];
    for (let from = 0, to; from < characters.length; from = to) {
      const prefix = from ? '##' : '';
      for (to = characters.length; to > from && !this.ids.has(prefix + characters.slice(from, to).join('')); ) to -= 1;
      if (to === from || characters.length > LONGEST) return { pieces: ['[UNK]'], ids: [this.ids.get('[UNK]')], start, end };
      pieces.push(prefix + characters.slice(from, to).join(''));
    }
    return { pieces, ids: pieces.map((piece) => this.ids.get(piece)), start, end };
  }
}

// Lower-cases and drops accents and control characters; each character knows its position in the text.
function normalised(text, start) {
  return Array.from(text).flatMap((original, i) => {
    if (isDropped(original)) return [];
    const place = start + i;
    const plain = Array.from(original.normalize('NFD')).filter((character) => !/\p{Mn}/u.test(character));
    return plain.flatMap((character) => Array.from(character.toLowerCase()).map((lower) => ({ character: lower, place })));
  });
}

// Splits at spaces, around punctuation and around Chinese characters.
function split(characters) {
  const words = [];
  let open = false;
  for (const { character, place } of characters) {
    const alone = isPunctuation(character) || isCjk(character.codePointAt(0));
    if (isSpace(character)) open = false;
    else if (open && !alone) {
      const word = words[words.length - 1];
      word.characters.push(character);
      word.end = place + 1;
    } else {
      words.push({ characters: [character], start: place, end: place + 1 });
      open = !alone;
    }
  }
  return words;
}
