// Markdown within a block: emphasis, code, links. Returns a tree; a string in it is plain text.

const PUNCTUATION = /[\p{P}\p{S}]/u;
const ADDRESS = /^https?:\/\/[^\s<>"`]+/;
/** Those that models write; others stay as they are. */
const ENTITIES = {
  amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0', copy: '©', reg: '®', trade: '™', hellip: '…', mdash: '—', ndash: '–',
  lsquo: '‘', rsquo: '’', ldquo: '“', rdquo: '”', laquo: '«', raquo: '»', middot: '·', bull: '•', deg: '°', plusmn: '±', times: '×',
  divide: '÷', frac12: '½', frac14: '¼', frac34: '¾', sup2: '²', sup3: '³', micro: 'µ', euro: '€', pound: '£', yen: '¥', cent: '¢', sect: '§',
  para: '¶', larr: '←', rarr: '→', uarr: '↑', darr: '↓', harr: '↔', le: '≤', ge: '≥', ne: '≠', asymp: '≈', infin: '∞', minus: '−',
  radic: '√', sum: '∑', alpha: 'α', beta: 'β', gamma: 'γ', delta: 'δ', lambda: 'λ', pi: 'π', sigma: 'σ', omega: 'ω',
};
/** What closes a formula of TeX. */
const FORMULA = { '(': '\\)', '[': '\\]' };

/** Where a link may lead; null for anything that could run or surprise. */
export function safeAddress(text) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const url = new URL(text);
    return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * The tree of a text: strings, { type: 'code', text }, { type: 'break' }, and emphasis, strong,
 * deleted and link with `children`. `growing`: its end is still to come, so what was opened and
 * not closed is shown as if it were.
 */
export function inlinesOf(text, growing = false) {
  const list = new List();
  const brackets = [];
  let plain = '';
  let at = 0;
  const flush = () => {
    if (plain) list.push({ node: plain });
    plain = '';
  };
  const put = (entry) => {
    flush();
    return list.push(entry);
  };
  // Runs of backticks and formulas that nothing closes: looked for once, not once each.
  const unclosed = new Set();
  while (at < text.length) {
    const char = text[at];
    if (char === '\\' && at + 1 < text.length) {
      const end = FORMULA[text[at + 1]];
      const close = !end || unclosed.has(end) ? -1 : text.indexOf(end, at + 2);
      if (end && close < 0) unclosed.add(end);
      // A formula stays as it is written. `\[no link\](…)` is none.
      if (close >= 0 && !(end === FORMULA['['] && text[close + 2] === '(')) {
        plain += text.slice(at, close + 2);
        at = close + 2;
        continue;
      }
      if (text[at + 1] === '\n') put({ node: { type: 'break' } });
      else if (end && growing && close < 0) plain += text.slice(at, at + 2);
      else plain += PUNCTUATION.test(text[at + 1]) ? text[at + 1] : `\\${text[at + 1]}`;
      at += 2;
    } else if (char === '`') {
      const marks = /^`+/.exec(text.slice(at, at + 64))[0];
      const close = unclosed.has(marks.length) ? -1 : closing(text, at + marks.length, marks);
      if (close >= 0 || (growing && marks.length < 3 && at + marks.length < text.length)) {
        const inner = text.slice(at + marks.length, close < 0 ? undefined : close).replaceAll('\n', ' ');
        const code = /^ .* $/.test(inner) && inner.trim() ? inner.slice(1, -1) : inner;
        put({ node: { type: 'code', text: code } });
        at = close < 0 ? text.length : close + marks.length;
      } else {
        unclosed.add(marks.length);
        plain += marks;
        at += marks.length;
      }
    } else if (char === '*' || char === '_' || (char === '~' && text[at + 1] === '~')) {
      let end = at;
      while (text[end] === char) end += 1;
      put(delimiter(char, end - at, text[at - 1] ?? ' ', text[end] ?? ' '));
      at = end;
    } else if (char === '[' || (char === '!' && text[at + 1] === '[')) {
      const mark = char === '!' ? '![' : '[';
      brackets.push(put({ node: mark }));
      if (brackets.length > 100) brackets.shift();
      at += mark.length;
    } else if (char === ']') {
      const opener = brackets.pop();
      const target = opener && targetAt(text, at + 1);
      if (target) {
        flush();
        opener.node = '';
        const children = list.cut(opener);
        emphasize(children, false);
        list.push({ node: linkOf(target, children.nodes()) });
        // Links are not nested.
        brackets.length = 0;
        at = target.end;
      } else {
        plain += ']';
        at += 1;
      }
    } else if (char === '<') {
      const auto = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/i.exec(text.slice(at, at + 2048));
      if (auto) {
        put({ node: linkOf({ address: auto[1] }, [auto[1]]) });
        at += auto[0].length;
      } else {
        plain += '<';
        at += 1;
      }
    } else if (char === 'h' && !/[\w/]/.test(text[at - 1] ?? ' ') && brackets.length === 0) {
      const found = ADDRESS.exec(text.slice(at, at + 2048));
      const address = found && trimAddress(found[0]);
      if (address) {
        put({ node: linkOf({ address }, [address]) });
        at += address.length;
      } else {
        plain += char;
        at += 1;
      }
    } else if (char === '&') {
      const entity = /^&(#\d{1,7}|#x[\da-f]{1,6}|[a-z\d]{2,8});/i.exec(text.slice(at, at + 12));
      const decoded = entity && entityOf(entity[1]);
      plain += decoded ?? '&';
      at += decoded ? entity[0].length : 1;
    } else if (char === '\n') {
      const hard = plain.endsWith('  ');
      plain = plain.trimEnd();
      if (hard) put({ node: { type: 'break' } });
      else plain += '\n';
      at += 1;
    } else {
      // All of it up to the next character that may mean something.
      const rest = /^[^\\`*_~![\]<h&\n]+/.exec(text.slice(at, at + 4096));
      plain += rest ? rest[0] : char;
      at += rest ? rest[0].length : 1;
    }
  }
  flush();
  emphasize(list, growing);
  return list.nodes();
}

/** What `&name;` stands for; null for what is not known. */
function entityOf(name) {
  if (name[0] !== '#') return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : null;
  const code = /^#x/i.test(name) ? parseInt(name.slice(2), 16) : Number(name.slice(1));
  const text = code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : '\ufffd';
  return text.isWellFormed?.() === false ? '\ufffd' : text;
}

function closing(text, from, marks) {
  let at = from;
  while ((at = text.indexOf(marks, at)) >= 0) {
    if (text[at + marks.length] !== '`') return at;
    while (text[at] === '`') at += 1;
  }
  return -1;
}

/** `(address "title")` behind a link's text. */
function targetAt(text, at) {
  if (text[at] !== '(') return null;
  const found = /^\(\s*(?:<([^<>\n]*)>|((?:[^\s()]|\([^\s()]*\))*))(?:\s+(?:"[^"]*"|'[^']*'|\([^)]*\)))?\s*\)/.exec(
    text.slice(at, at + 4096),
  );
  return found && { address: found[1] ?? found[2], end: at + found[0].length };
}

/** Punctuation behind a bare address is the sentence's. */
function trimAddress(address) {
  let end = address.replace(/[.,;:!?'"*_~]+$/, '');
  while (end.endsWith(')') && end.split(')').length > end.split('(').length) end = end.slice(0, -1);
  return end.length > 8 ? end : null;
}

function linkOf({ address }, children) {
  const href = safeAddress(address);
  return href ? { type: 'link', href, children: children.length ? children : [address] } : { type: 'span', children };
}

function delimiter(char, count, before, after) {
  const space = (one) => /\s/.test(one);
  const left = !space(after) && (!PUNCTUATION.test(after) || space(before) || PUNCTUATION.test(before));
  const right = !space(before) && (!PUNCTUATION.test(before) || space(after) || PUNCTUATION.test(after));
  return {
    char,
    count,
    node: char.repeat(count),
    opens: left && (char !== '_' || !right || PUNCTUATION.test(before)),
    closes: right && (char !== '_' || !left || PUNCTUATION.test(after)),
  };
}

/** Turns pairs of delimiters into emphasis, from the inside out. */
function emphasize(list, growing) {
  const bottoms = new Map();
  let closer = list.head;
  while (closer) {
    if (!closer.char || !closer.closes || closer.count === 0) {
      closer = closer.next;
      continue;
    }
    const key = closer.char + (closer.opens ? '+' : '') + (closer.count % 3);
    const bottom = bottoms.get(key);
    let opener = closer.previous;
    while (opener && opener !== bottom && !(opener.char === closer.char && opener.opens && opener.count > 0 && fits(opener, closer))) {
      opener = opener.previous;
    }
    if (!opener || opener === bottom) {
      bottoms.set(key, closer.previous);
      closer = closer.next;
      continue;
    }
    const used = closer.count >= 2 && opener.count >= 2 ? 2 : 1;
    wrap(list, opener, closer, used);
    if (closer.count === 0) {
      const next = closer.next;
      list.remove(closer);
      closer = next;
    }
  }
  if (growing) {
    for (let entry = list.tail; entry; entry = entry.previous) {
      const begun = entry.char && entry.char !== '_' && entry.opens && entry.next;
      if (begun && (entry.count === 2 || (entry.count === 1 && !entry.closes))) wrap(list, entry, null, entry.count);
    }
  }
}

function fits(opener, closer) {
  if (opener.char === '~') return opener.count === closer.count;
  const both = (opener.closes || closer.opens) && (opener.count + closer.count) % 3 === 0;
  return !both || (opener.count % 3 === 0 && closer.count % 3 === 0);
}

function wrap(list, opener, closer, used) {
  const type = opener.char === '~' ? 'deleted' : used === 2 ? 'strong' : 'emphasis';
  const children = list.between(opener, closer);
  const count = opener.char === '~' ? opener.count : used;
  for (const end of [opener, closer]) {
    if (!end) continue;
    end.count -= count;
    end.node = end.char.repeat(end.count);
  }
  list.insertAfter(opener, { node: { type, children } });
  if (opener.count === 0) list.remove(opener);
}

/** A doubly linked list: pairs are cut out of the middle, also of very long texts. */
class List {
  head = null;
  tail = null;

  push(entry) {
    return this.insertAfter(this.tail, entry);
  }

  insertAfter(place, entry) {
    entry.previous = place;
    entry.next = place ? place.next : this.head;
    if (entry.next) entry.next.previous = entry;
    else this.tail = entry;
    if (place) place.next = entry;
    else this.head = entry;
    return entry;
  }

  remove(entry) {
    if (entry.previous) entry.previous.next = entry.next;
    else this.head = entry.next;
    if (entry.next) entry.next.previous = entry.previous;
    else this.tail = entry.previous;
  }

  /** Takes out everything from here on. */
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

  /** Takes out the nodes between two entries. */
  between(from, to) {
    const nodes = [];
    for (let entry = from.next; entry && entry !== to; entry = entry.next) {
      nodes.push(entry.node);
      this.remove(entry);
    }
    return nodes.filter((node) => node !== '');
  }

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
