// Markdown to a tree of blocks, line by line. Nothing in it is ever HTML: tags are plain text.

/** Deeper lists and quotes are plain text: a hostile answer must not exhaust the stack. */
const DEEPEST = 10;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: (.*)|$)/;
const UNDERLINE = /^ {0,3}(=+|-+)\s*$/;
const DELIMITERS = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

const blank = (line) => line.trim() === '';
const indent = (line) => line.length - line.trimStart().length;

/** Lines of a text; a tab at the beginning counts as four blanks. */
export function linesOf(text) {
  return text.split('\n').map((line) => line.replace(/\r$/, '').replace(/^[ \t]+/, (head) => head.replaceAll('\t', '    ')));
}

/** The blocks of these lines, each with the numbers of its first line and of the one after it. */
export function blocksOf(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) {
      at += 1;
      continue;
    }
    const first = at;
    const [block, next] = blockAt(lines, at, depth);
    blocks.push({ ...block, first, next });
    at = next;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return codeAt(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: 'heading', level: heading[1].length, text: heading[2] ?? '' }, at + 1];
  if (RULE.test(line)) return [{ type: 'rule' }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quoteAt(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return listAt(lines, at, depth);
  if (isTable(lines, at)) return tableAt(lines, at);
  return paragraphAt(lines, at, depth);
}

function codeAt(lines, at, [line, marks, info]) {
  const left = indent(line);
  const text = [];
  let next = at + 1;
  let closed = false;
  for (; next < lines.length; next += 1) {
    const fence = FENCE.exec(lines[next]);
    if (fence && fence[2].trim() === '' && fence[1].startsWith(marks)) {
      closed = true;
      next += 1;
      break;
    }
    text.push(lines[next].slice(Math.min(left, indent(lines[next]))));
  }
  return [{ type: 'code', language: info.trim().split(/\s+/)[0] ?? '', text: text.join('\n'), closed }, next];
}

function quoteAt(lines, at, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    if (QUOTE.test(line)) inner.push(line.replace(/^ {0,3}> ?/, ''));
    else if (blank(line) || blank(inner.at(-1) ?? '') || begins(lines, next, depth)) break;
    else inner.push(line);
  }
  return [{ type: 'quote', blocks: blocksOf(inner, depth + 1) }, next];
}

function listAt(lines, at, depth) {
  const ordered = (item) => /\d/.test(item[2]);
  const begin = ITEM.exec(lines[at]);
  const list = { type: 'list', ordered: ordered(begin), start: Number.parseInt(begin[2], 10) || 0, loose: false, items: [] };
  const left = begin[1].length;
  let next = at;
  let inner = null;
  let width = 0;
  let gap = false;
  const close = () => {
    if (!inner) return;
    while (inner.length > 1 && blank(inner.at(-1))) inner.pop();
    const task = /^\[([ xX])\] /.exec(inner[0]);
    if (task) inner[0] = inner[0].slice(4);
    if (inner.some((line, n) => blank(line) && n > 0 && !blank(inner[n + 1] ?? ''))) list.loose ||= !hasFence(inner);
    list.items.push({ task: task ? task[1] !== ' ' : null, blocks: blocksOf(inner, depth + 1) });
  };
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    if (blank(line)) {
      gap = true;
      inner.push('');
      continue;
    }
    const item = ITEM.exec(line);
    const deep = indent(line);
    if (inner && deep >= width) {
      inner.push(line.slice(width));
    } else if (item && deep < left + 2 && deep >= left - 1) {
      // Another item of this list, or of another one.
      if (ordered(item) !== list.ordered || RULE.test(line)) break;
      if (gap && inner) list.loose = true;
      close();
      const blanks = (item[3] ?? '').length - (item[3] ?? '').trimStart().length;
      // More blanks than that are the text's own.
      const text = blanks < 4 ? (item[3] ?? '').trimStart() : item[3];
      width = item[1].length + item[2].length + 1 + (blanks < 4 ? blanks : 0);
      inner = [text];
    } else if (item && deep >= left + 2) {
      // Models often indent a nested list less than its parent's text.
      inner.push(line.slice(left + 2));
    } else if (gap || begins(lines, next, depth)) {
      break;
    } else {
      inner.push(line.trimStart());
    }
    gap = false;
  }
  // Blank lines behind it are nobody's.
  close();
  return [list, next];
}

function hasFence(lines) {
  return lines.some((line) => FENCE.test(line));
}

function isTable(lines, at) {
  const head = lines[at];
  const under = lines[at + 1];
  return (
    under !== undefined && head.includes('|') && under.includes('-') && under.includes('|') && DELIMITERS.test(under) &&
    cells(head).length === cells(under).length
  );
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, '').replace(/(?<!\\)\|$/, '');
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
}

function tableAt(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => {
    if (cell.endsWith(':')) return cell.startsWith(':') ? 'center' : 'right';
    return 'left';
  });
  const head = cells(lines[at]);
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && !blank(lines[next]) && lines[next].includes('|'); next += 1) {
    const row = cells(lines[next]).slice(0, head.length);
    while (row.length < head.length) row.push('');
    rows.push(row);
  }
  return [{ type: 'table', align, head, rows }, next];
}

/** Whether a line ends the paragraph before it. */
function begins(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (depth < DEEPEST) {
    if (QUOTE.test(line)) return true;
    const item = ITEM.exec(line);
    if (item?.[3] && (!/\d/.test(item[2]) || Number.parseInt(item[2], 10) === 1)) return true;
  }
  return isTable(lines, at);
}

function paragraphAt(lines, at, depth) {
  const text = [lines[at].trimStart()];
  let next = at + 1;
  for (; next < lines.length && !blank(lines[next]); next += 1) {
    const under = UNDERLINE.exec(lines[next]);
    if (under) {
      const level = under[1].startsWith('=') ? 1 : 2;
      return [{ type: 'heading', level, text: text.join('\n') }, next + 1];
    }
    if (begins(lines, next, depth)) break;
    text.push(lines[next].trimStart());
  }
  return [{ type: 'paragraph', text: text.join('\n') }, next];
}
