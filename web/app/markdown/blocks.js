// Parses Markdown into a tree of blocks, line by line. HTML is not supported: tags are plain text.

/** Deeper lists and quotes are plain text, so that a hostile answer can't exhaust the stack. */
const MAX_DEPTH = 10;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}>/;
const LIST_ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: (.*)|$)/;
const SETEXT_UNDERLINE = /^ {0,3}(=+|-+)\s*$/;
const TABLE_DELIMITERS = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

const isBlank = (line) => line.trim() === '';
const indentOf = (line) => line.length - line.trimStart().length;

/** Splits a text into lines; a tab in the indentation becomes four spaces. */
export function splitLines(text) {
  return text.split('\n').map((line) => line.replace(/\r$/, '').replace(/^[ \t]+/, (head) => head.replaceAll('\t', '    ')));
}

/**
 * Parses lines into blocks. Each block has the indexes of its first line and of the line after it.
 */
export function parseBlocks(lines, depth = 0) {
  const blocks = [];
  let start = 0;
  while (start < lines.length) {
    if (isBlank(lines[start])) {
      start += 1;
      continue;
    }
    const [block, next] = parseBlock(lines, start, depth);
    blocks.push({ ...block, first: start, next });
    start = next;
  }
  return blocks;
}

/** Parses the block at a line. This and the functions below return `[block, next line]`. */
function parseBlock(lines, start, depth) {
  const line = lines[start];
  const fence = FENCE.exec(line);
  if (fence) return parseCode(lines, start, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: 'heading', level: heading[1].length, text: heading[2] ?? '' }, start + 1];
  if (RULE.test(line)) return [{ type: 'rule' }, start + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return parseQuote(lines, start, depth);
  if (depth < MAX_DEPTH && LIST_ITEM.test(line)) return parseList(lines, start, depth);
  if (isTable(lines, start)) return parseTable(lines, start);
  return parseParagraph(lines, start, depth);
}

function parseCode(lines, start, [line, marks, info]) {
  const indent = indentOf(line);
  const text = [];
  let next = start + 1;
  let closed = false;
  for (; next < lines.length; next += 1) {
    const fence = FENCE.exec(lines[next]);
    if (fence && fence[2].trim() === '' && fence[1].startsWith(marks)) {
      closed = true;
      next += 1;
      break;
    }
    text.push(lines[next].slice(Math.min(indent, indentOf(lines[next]))));
  }
  return [{ type: 'code', language: info.trim().split(/\s+/)[0] ?? '', text: text.join('\n'), closed }, next];
}

function parseQuote(lines, start, depth) {
  const inner = [];
  let next = start;
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    if (QUOTE.test(line)) inner.push(line.replace(/^ {0,3}> ?/, ''));
    else if (isBlank(line) || isBlank(inner.at(-1) ?? '') || interruptsParagraph(lines, next, depth)) break;
    else inner.push(line);
  }
  return [{ type: 'quote', blocks: parseBlocks(inner, depth + 1) }, next];
}

function parseList(lines, start, depth) {
  const isOrdered = (item) => /\d/.test(item[2]);
  const first = LIST_ITEM.exec(lines[start]);
  const list = { type: 'list', ordered: isOrdered(first), start: Number.parseInt(first[2], 10) || 0, loose: false, items: [] };
  const indent = first[1].length;
  let next = start;
  let inner = null;
  /** Number of columns by which the content of the current item is indented. */
  let contentIndent = 0;
  let afterBlankLine = false;
  const closeItem = () => {
    if (!inner) return;
    while (inner.length > 1 && isBlank(inner.at(-1))) inner.pop();
    const task = /^\[([ xX])\] /.exec(inner[0]);
    if (task) inner[0] = inner[0].slice(4);
    if (inner.some((line, n) => isBlank(line) && n > 0 && !isBlank(inner[n + 1] ?? ''))) list.loose ||= !hasFence(inner);
    list.items.push({ task: task ? task[1] !== ' ' : null, blocks: parseBlocks(inner, depth + 1) });
  };
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    if (isBlank(line)) {
      afterBlankLine = true;
      inner.push('');
      continue;
    }
    const item = LIST_ITEM.exec(line);
    const lineIndent = indentOf(line);
    if (inner && lineIndent >= contentIndent) {
      inner.push(line.slice(contentIndent));
    } else if (item && lineIndent < indent + 2 && lineIndent >= indent - 1) {
      // Another item of this list, or the first one of another list.
      if (isOrdered(item) !== list.ordered || RULE.test(line)) break;
      if (afterBlankLine && inner) list.loose = true;
      closeItem();
      const spaces = (item[3] ?? '').length - (item[3] ?? '').trimStart().length;
      // Four spaces or more belong to the text.
      const text = spaces < 4 ? (item[3] ?? '').trimStart() : item[3];
      contentIndent = item[1].length + item[2].length + 1 + (spaces < 4 ? spaces : 0);
      inner = [text];
    } else if (item && lineIndent >= indent + 2) {
      // Models often indent a nested list less than CommonMark requires.
      inner.push(line.slice(indent + 2));
    } else if (afterBlankLine || interruptsParagraph(lines, next, depth)) {
      break;
    } else {
      inner.push(line.trimStart());
    }
    afterBlankLine = false;
  }
  // Blank lines after the last item do not make the list loose.
  closeItem();
  return [list, next];
}

function hasFence(lines) {
  return lines.some((line) => FENCE.test(line));
}

function isTable(lines, start) {
  const head = lines[start];
  const delimiters = lines[start + 1];
  return (
    delimiters !== undefined && head.includes('|') && delimiters.includes('-') && delimiters.includes('|') && TABLE_DELIMITERS.test(delimiters) &&
    splitCells(head).length === splitCells(delimiters).length
  );
}

function splitCells(line) {
  const inner = line.trim().replace(/^\|/, '').replace(/(?<!\\)\|$/, '');
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
}

function parseTable(lines, start) {
  const align = splitCells(lines[start + 1]).map((cell) => {
    if (cell.endsWith(':')) return cell.startsWith(':') ? 'center' : 'right';
    return 'left';
  });
  const head = splitCells(lines[start]);
  const rows = [];
  let next = start + 2;
  for (; next < lines.length && !isBlank(lines[next]) && lines[next].includes('|'); next += 1) {
    const row = splitCells(lines[next]).slice(0, head.length);
    while (row.length < head.length) row.push('');
    rows.push(row);
  }
  return [{ type: 'table', align, head, rows }, next];
}

/** Whether a line can start a block directly after a paragraph. */
function interruptsParagraph(lines, start, depth) {
  const line = lines[start];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(line)) return true;
    const item = LIST_ITEM.exec(line);
    if (item?.[3] && (!/\d/.test(item[2]) || Number.parseInt(item[2], 10) === 1)) return true;
  }
  return isTable(lines, start);
}

function parseParagraph(lines, start, depth) {
  const text = [lines[start].trimStart()];
  let next = start + 1;
  for (; next < lines.length && !isBlank(lines[next]); next += 1) {
    const underline = SETEXT_UNDERLINE.exec(lines[next]);
    if (underline) {
      const level = underline[1].startsWith('=') ? 1 : 2;
      return [{ type: 'heading', level, text: text.join('\n') }, next + 1];
    }
    if (interruptsParagraph(lines, next, depth)) break;
    text.push(lines[next].trimStart());
  }
  return [{ type: 'paragraph', text: text.join('\n') }, next];
}
