// Parses Markdown within a block: emphasis, code and links.

const PUNCTUATION = /[\p{P}\p{S}]/u;
const BARE_URL = /^https?:\/\/[^\s<>"`]+/;
/** The HTML entities that models use. Others are not decoded. */
const ENTITIES = {
  amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0', copy: '©', reg: '®', trade: '™', hellip: '…', mdash: '—', ndash: '–',
  lsquo: '‘', rsquo: '’', ldquo: '“', rdquo: '”', laquo: '«', raquo: '»', middot: '·', bull: '•', deg: '°', plusmn: '±', times: '×',
  divide: '÷', frac12: '½', frac14: '¼', frac34: '¾', sup2: '²', sup3: '³', micro: 'µ', euro: '€', pound: '£', yen: '¥', cent: '¢', sect: '§',
  para: '¶', larr: '←', rarr: '→', uarr: '↑', darr: '↓', harr: '↔', le: '≤', ge: '≥', ne: '≠', asymp: '≈', infin: '∞', minus: '−',
  radic: '√', sum: '∑', alpha: 'α', beta: 'β', gamma: 'γ', delta: 'δ', lambda: 'λ', pi: 'π', sigma: 'σ', omega: 'ω',
};
/** The closing delimiter of a TeX formula, by the character after the opening backslash. */
const FORMULA_END = { '(': '\\)', '[': '\\]' };

/** The normalized URL of a link; null for schemes that could run code or leave the web. */
export function safeUrl(text) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const url = new URL(text);
    return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * Parses a text into nodes: strings, { type: 'code', text }, { type: 'break' }, and emphasis,
 * strong, deleted and link with `children`. `isGrowing` means that the end of the text is still
 * missing, so code and emphasis that are not closed yet are treated as closed at the end.
 */
export function parseInline(text, isGrowing = false) {
  const list = new List();
  const brackets = [];
  let plain = '';
  let position = 0;
  const flush = () => {
    if (plain) list.push({ node: plain });
    plain = '';
  };
  const push = (entry) => {
    flush();
    return list.push(entry);
  };
  // Delimiters that are known to have no closing one, so that the search for it is done only once
  // and the parser stays linear.
  const unclosed = new Set();
  while (position < text.length) {
    const char = text[position];
    if (char === '\\' && position + 1 < text.length) {
      const end = FORMULA_END[text[position + 1]];
      const close = !end || unclosed.has(end) ? -1 : text.indexOf(end, position + 2);
      if (end && close < 0) unclosed.add(end);
      // Formulas are kept verbatim, except for escaped brackets as in `\[no link\](…)`.
      if (close >= 0 && !(end === FORMULA_END['['] && text[close + 2] === '(')) {
        plain += text.slice(position, close + 2);
        position = close + 2;
        continue;
      }
      if (text[position + 1] === '\n') push({ node: { type: 'break' } });
      else if (end && isGrowing && close < 0) plain += text.slice(position, position + 2);
      else plain += PUNCTUATION.test(text[position + 1]) ? text[position + 1] : `\\${text[position + 1]}`;
      position += 2;
    } else if (char === '`') {
      const marks = /^`+/.exec(text.slice(position, position + 64))[0];
      const close = unclosed.has(marks.length) ? -1 : findClosingBackticks(text, position + marks.length, marks);
      if (close >= 0 || (isGrowing && marks.length < 3 && position + marks.length < text.length)) {
        const inner = text.slice(position + marks.length, close < 0 ? undefined : close).replaceAll('\n', ' ');
        const code = /^ .* $/.test(inner) && inner.trim() ? inner.slice(1, -1) : inner;
        push({ node: { type: 'code', text: code } });
        position = close < 0 ? text.length : close + marks.length;
      } else {
        unclosed.add(marks.length);
        plain += marks;
        position += marks.length;
      }
    } else if (char === '*' || char === '_' || (char === '~' && text[position + 1] === '~')) {
      let end = position;
      while (text[end] === char) end += 1;
      push(toDelimiter(char, end - position, text[position - 1] ?? ' ', text[end] ?? ' '));
      position = end;
    } else if (char === '[' || (char === '!' && text[position + 1] === '[')) {
      const mark = char === '!' ? '![' : '[';
      brackets.push(push({ node: mark }));
      if (brackets.length > 100) brackets.shift();
      position += mark.length;
    } else if (char === ']') {
      const opener = brackets.pop();
      const target = opener && parseLinkTarget(text, position + 1);
      if (target) {
        flush();
        opener.node = '';
        const children = list.cut(opener);
        emphasize(children, false);
        list.push({ node: toLink(target.url, children.nodes()) });
        // Links can't be nested, so brackets before this link no longer open a link.
        brackets.length = 0;
        position = target.end;
      } else {
        plain += ']';
        position += 1;
      }
    } else if (char === '<') {
      const autolink = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/i.exec(text.slice(position, position + 2048));
      if (autolink) {
        push({ node: toLink(autolink[1], [autolink[1]]) });
        position += autolink[0].length;
      } else {
        plain += '<';
        position += 1;
      }
    } else if (char === 'h' && !/[\w/]/.test(text[position - 1] ?? ' ') && brackets.length === 0) {
      const match = BARE_URL.exec(text.slice(position, position + 2048));
      const url = match && trimUrl(match[0]);
      if (url) {
        push({ node: toLink(url, [url]) });
        position += url.length;
      } else {
        plain += char;
        position += 1;
      }
    } else if (char === '&') {
      const entity = /^&(#\d{1,7}|#x[\da-f]{1,6}|[a-z\d]{2,8});/i.exec(text.slice(position, position + 12));
      const decoded = entity && decodeEntity(entity[1]);
      plain += decoded ?? '&';
      position += decoded ? entity[0].length : 1;
    } else if (char === '\n') {
      const isHardBreak = plain.endsWith('  ');
      plain = plain.trimEnd();
      if (isHardBreak) push({ node: { type: 'break' } });
      else plain += '\n';
      position += 1;
    } else {
      // Plain text up to the next character with a meaning.
      const run = /^[^\\`*_~![\]<h&\n]+/.exec(text.slice(position, position + 4096));
      plain += run ? run[0] : char;
      position += run ? run[0].length : 1;
    }
  }
  flush();
  emphasize(list, isGrowing);
  return list.nodes();
}

/** The character of an HTML entity; null if it is unknown. */
function decodeEntity(name) {
  if (name[0] !== '#') return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : null;
  const code = /^#x/i.test(name) ? parseInt(name.slice(2), 16) : Number(name.slice(1));
  const text = code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : '\ufffd';
  return text.isWellFormed?.() === false ? '\ufffd' : text;
}

/** Index of the next run of exactly these backticks; -1 if there is none. */
function findClosingBackticks(text, from, marks) {
  let position = from;
  while ((position = text.indexOf(marks, position)) >= 0) {
    if (text[position + marks.length] !== '`') return position;
    while (text[position] === '`') position += 1;
  }
  return -1;
}

/** Parses `(url "title")` after the text of a link. */
function parseLinkTarget(text, position) {
  if (text[position] !== '(') return null;
  const match = /^\(\s*(?:<([^<>\n]*)>|((?:[^\s()]|\([^\s()]*\))*))(?:\s+(?:"[^"]*"|'[^']*'|\([^)]*\)))?\s*\)/.exec(
    text.slice(position, position + 4096),
  );
  return match && { url: match[1] ?? match[2], end: position + match[0].length };
}

/** Removes punctuation that belongs to the sentence from a bare URL; null if nothing remains. */
function trimUrl(url) {
  let trimmed = url.replace(/[.,;:!?'"*_~]+$/, '');
  while (trimmed.endsWith(')') && trimmed.split(')').length > trimmed.split('(').length) trimmed = trimmed.slice(0, -1);
  return trimmed.length > 'https://'.length ? trimmed : null;
}

/** A link, or its children without a link if the URL is not safe. */
function toLink(url, children) {
  const href = safeUrl(url);
  return href ? { type: 'link', href, children: children.length ? children : [url] } : { type: 'span', children };
}

/** A run of `*`, `_` or `~~` that can open or close emphasis by CommonMark's flanking rules. */
function toDelimiter(char, count, before, after) {
  const isSpace = (c) => /\s/.test(c);
  const leftFlanking = !isSpace(after) && (!PUNCTUATION.test(after) || isSpace(before) || PUNCTUATION.test(before));
  const rightFlanking = !isSpace(before) && (!PUNCTUATION.test(before) || isSpace(after) || PUNCTUATION.test(after));
  return {
    char,
    count,
    node: char.repeat(count),
    canOpen: leftFlanking && (char !== '_' || !rightFlanking || PUNCTUATION.test(before)),
    canClose: rightFlanking && (char !== '_' || !leftFlanking || PUNCTUATION.test(after)),
  };
}

/**
 * Turns pairs of delimiters into emphasis, from the inside out (CommonMark's `process emphasis`).
 */
function emphasize(list, isGrowing) {
  // For each kind of closer, the entry before which there is no opener. This keeps the search
  // linear.
  const bottoms = new Map();
  let closer = list.head;
  while (closer) {
    if (!closer.char || !closer.canClose || closer.count === 0) {
      closer = closer.next;
      continue;
    }
    const key = closer.char + (closer.canOpen ? '+' : '') + (closer.count % 3);
    const bottom = bottoms.get(key);
    let opener = closer.previous;
    while (opener && opener !== bottom && !(opener.char === closer.char && opener.canOpen && opener.count > 0 && canPair(opener, closer))) {
      opener = opener.previous;
    }
    if (!opener || opener === bottom) {
      bottoms.set(key, closer.previous);
      closer = closer.next;
      continue;
    }
    const used = closer.count >= 2 && opener.count >= 2 ? 2 : 1;
    wrapEmphasis(list, opener, closer, used);
    if (closer.count === 0) {
      const next = closer.next;
      list.remove(closer);
      closer = next;
    }
  }
  if (isGrowing) {
    for (let entry = list.tail; entry; entry = entry.previous) {
      const isUnclosed = entry.char && entry.char !== '_' && entry.canOpen && entry.next;
      if (isUnclosed && (entry.count === 2 || (entry.count === 1 && !entry.canClose))) wrapEmphasis(list, entry, null, entry.count);
    }
  }
}

/** Whether two delimiters match, including CommonMark's rule of three. */
function canPair(opener, closer) {
  if (opener.char === '~') return opener.count === closer.count;
  const isAmbiguous = (opener.canClose || closer.canOpen) && (opener.count + closer.count) % 3 === 0;
  return !isAmbiguous || (opener.count % 3 === 0 && closer.count % 3 === 0);
}

/** Moves the nodes from an opener up to its closer, or up to the end, into an emphasis node. */
function wrapEmphasis(list, opener, closer, used) {
  const type = opener.char === '~' ? 'deleted' : used === 2 ? 'strong' : 'emphasis';
  const children = list.removeBetween(opener, closer);
  const count = opener.char === '~' ? opener.count : used;
  for (const end of [opener, closer]) {
    if (!end) continue;
    end.count -= count;
    end.node = end.char.repeat(end.count);
  }
  list.insertAfter(opener, { node: { type, children } });
  if (opener.count === 0) list.remove(opener);
}

/** A doubly linked list, so that nodes in the middle of a long text are moved in constant time. */
class List {
  head = null;
  tail = null;

  push(entry) {
    return this.insertAfter(this.tail, entry);
  }

  insertAfter(previous, entry) {
    entry.previous = previous;
    entry.next = previous ? previous.next : this.head;
    if (entry.next) entry.next.previous = entry;
    else this.tail = entry;
    if (previous) previous.next = entry;
    else this.head = entry;
    return entry;
  }

  remove(entry) {
    if (entry.previous) entry.previous.next = entry.next;
    else this.head = entry.next;
    if (entry.next) entry.next.previous = entry.previous;
    else this.tail = entry.previous;
  }

  /** Removes and returns everything from this entry on. */
  cut(from) {
    const part = new List();
    part.head = from;
    part.tail = this.tail;
    this.tail = from.previous;
    if (from.previous) from.previous.next = null;
    else this.head = null;
    from.previous = null;
    return part;
  }

  /** Removes and returns the nodes between two entries. */
  removeBetween(from, to) {
    const nodes = [];
    for (let entry = from.next; entry && entry !== to; entry = entry.next) {
      nodes.push(entry.node);
      this.remove(entry);
    }
    return nodes.filter((node) => node !== '');
  }

  /** All nodes, with adjacent strings joined. */
  nodes() {
    const nodes = [];
    for (let entry = this.head; entry; entry = entry.next) {
      if (entry.node === '') continue;
      if (typeof entry.node === 'string' && typeof nodes.at(-1) === 'string') nodes[nodes.length - 1] += entry.node;
      else nodes.push(entry.node);
    }
    return nodes;
  }
}
