// Syntax highlighting by heuristics: comments, strings, numbers, and the keywords that most
// languages share. A wrong guess only results in a wrong colour.

const KEYWORDS = new Set(
  (
    'abstract and as async await begin bool boolean break case catch char class const continue def default defer del ' +
    'delete do done double dyn elif else elsif end enum except export extends false fi final finally float fn for ' +
    'foreach from func function go goto if impl implements import in include instanceof int interface is lambda let ' +
    'local long loop match mod module move mut namespace new nil none not null nullptr of or override package pass ' +
    'private protected pub public raise ref require return self short signed sizeof static string struct super switch ' +
    'template then this throw throws trait true try type typedef typeof union unless unsigned until unsafe use using ' +
    'var virtual void volatile when where while with yield'
  ).split(' '),
);
const SQL_KEYWORDS = new Set(
  (
    'add all alter and as asc begin between by case create delete desc distinct drop else end exists from full group ' +
    'having in inner insert into is join key left like limit not null offset on or order outer primary references right ' +
    'select set table then union unique update using values view when where with'
  ).split(' '),
);
const HASH_COMMENT_LANGUAGES = new Set(['sh', 'bash', 'shell', 'zsh', 'python', 'py', 'ruby', 'rb', 'yaml', 'yml', 'toml', 'ini', 'dockerfile', 'perl', 'r', 'make', 'makefile', 'elixir', 'nix']);
const DASH_COMMENT_LANGUAGES = new Set(['sql', 'lua', 'haskell', 'hs', 'ada', 'elm']);
const PLAIN_LANGUAGES = new Set(['', 'text', 'txt', 'plain', 'plaintext', 'markdown', 'md', 'diff', 'console', 'log', 'csv', 'html', 'xml', 'svg']);
/** Longer code is not highlighted. */
const MAX_LENGTH = 20_000;

const STRING = /"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`/y;
const NUMBER = /\b(?:0[xX][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\b/y;
const IDENTIFIER = /[A-Za-z_$][\w$]*/y;
const OTHER = /[^A-Za-z0-9_$"'`/#-]+|./sy;

/** Splits code into tokens `[kind, text]`; the kind is null, comment, string, number or word. */
export function highlight(code, language) {
  const name = language.toLowerCase();
  if (PLAIN_LANGUAGES.has(name) || code.length > MAX_LENGTH) return [[null, code]];
  const comment = HASH_COMMENT_LANGUAGES.has(name) ? /#[^\n]*/y : DASH_COMMENT_LANGUAGES.has(name) ? /--[^\n]*/y : /\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)/y;
  const isSql = name.includes('sql');
  const tokens = [];
  let position = 0;
  const match = (expression) => {
    expression.lastIndex = position;
    return expression.exec(code)?.[0];
  };
  const push = (kind, text) => {
    const last = tokens.at(-1);
    if (last && last[0] === kind) last[1] += text;
    else tokens.push([kind, text]);
    position += text.length;
  };
  while (position < code.length) {
    let text;
    if ((text = match(comment))) push('comment', text);
    else if ((text = match(STRING))) push('string', text);
    else if ((text = match(NUMBER))) push('number', text);
    else if ((text = match(IDENTIFIER))) push(isKeyword(text, isSql) ? 'word' : null, text);
    else push(null, match(OTHER));
  }
  return tokens;
}

function isKeyword(text, isSql) {
  if (isSql) return SQL_KEYWORDS.has(text.toLowerCase());
  return KEYWORDS.has(/^(?:True|False|None)$/.test(text) ? text.toLowerCase() : text);
}
