// Turns the parts of an answer into the blocks that the page shows.

import { safeUrl } from '../markdown/inline.js';

const MAX_PARTS = 256;
const MAX_NAME_CHARS = 80;
const MAX_TITLE_CHARS = 120;
const MAX_URL_CHARS = 2048;
/** Longer JSON is shown as it is. */
const MAX_FORMATTED_CHARS = 50_000;
/** Deeper levels of JSON are not indented further, so that the size stays linear. */
const MAX_INDENTED_LEVELS = 16;

/**
 * The blocks and sources of an answer. A block is `{ key, kind, text, name, isGrowing }`: `kind` is
 * text, refusal, reasoning or tool_call, `key` is the same for the same block of a longer answer.
 * Text that only sources or parts of other kinds interrupt is one block. A source is
 * `{ href, title, host }`.
 */
export function toBlocks(parts, isStreaming) {
  const blocks = [];
  const sources = [];
  const shownParts = parts.slice(0, MAX_PARTS);
  for (const { index, kind, meta, text } of shownParts) {
    const isLast = index === shownParts.length - 1;
    const isGrowing = isStreaming && isLast;
    const previous = blocks.at(-1);
    if (kind === 'source') {
      const source = toSource(meta);
      if (source) sources.push(source);
    } else if (kind === 'text' && previous?.kind === 'text') {
      Object.assign(previous, { text: previous.text + text, isGrowing });
    } else if (kind === 'tool_call' || (kind === 'reasoning' && isGrowing) || (['text', 'refusal', 'reasoning'].includes(kind) && text !== '')) {
      blocks.push({ key: `${kind} ${index}`, kind, text, name: toLine(meta?.name, MAX_NAME_CHARS), isGrowing });
    }
  }
  return { blocks, sources };
}

/** The source that a link can show; null without a URL of http or https. */
export function toSource(meta) {
  const url = meta?.url;
  if (typeof url !== 'string' || url.length > MAX_URL_CHARS || !/^https?:/i.test(url)) return null;
  const href = safeUrl(url);
  if (!href) return null;
  const { host } = new URL(href);
  return { href, title: toLine(meta.title, MAX_TITLE_CHARS) || host, host };
}

/** A text as one line of at most `maxChars` characters; '' for anything but a text. */
function toLine(text, maxChars) {
  if (typeof text !== 'string') return '';
  // A character is at most two UTF-16 code units.
  const characters = [...text.slice(0, 2 * maxChars + 2).trim().replace(/\s+/g, ' ')];
  return characters.length > maxChars ? `${characters.slice(0, maxChars - 1).join('')}…` : characters.join('');
}

/**
 * Indents JSON without changing its values: numbers keep their digits. Any other text is returned
 * as it is.
 */
export function formatJson(text) {
  if (text.length > MAX_FORMATTED_CHARS) return text;
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g);
  let depth = 0;
  const newLine = () => `\n${'  '.repeat(Math.min(depth, MAX_INDENTED_LEVELS))}`;
  const formatted = tokens.map((token, n) => {
    switch (token) {
      case '{':
      case '[':
        depth += 1;
        return '}]'.includes(tokens[n + 1]) ? token : token + newLine();
      case '}':
      case ']':
        depth -= 1;
        return '{['.includes(tokens[n - 1]) ? token : newLine() + token;
      case ',':
        return token + newLine();
      case ':':
        return ': ';
      default:
        return token;
    }
  });
  return formatted.join('');
}
