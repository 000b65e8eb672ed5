// Colours for code: comments, strings, numbers and the words that most languages share. It guesses;
// a wrong guess is a colour too many and nothing else.

const WORDS = new Set(
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
const SQL = new Set(
  (
    'add all alter and as asc begin between by case create delete desc distinct drop else end exists from full group ' +
    'having in inner insert into is join key left like limit not null offset on or order outer primary references right ' +
    'select set table then union unique update using values view when where with'
  ).split(' '),
);
const HASHES = new Set(['sh', 'bash', 'shell', 'zsh', 'python', 'py', 'ruby', 'rb', 'yaml', 'yml', 'toml', 'ini', 'dockerfile', 'perl', 'r', 'make', 'makefile', 'elixir', 'nix']);
const DASHES = new Set(['sql', 'lua', 'haskell', 'hs', 'ada', 'elm']);
const PLAIN = new Set(['', 'text', 'txt', 'plain', 'plaintext', 'markdown', 'md', 'diff', 'console', 'log', 'csv', 'html', 'xml', 'svg']);
/** Longer code stays black and white. */
const MOST = 20_000;

const STRINGS = /"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`/y;
const NUMBER = /\b(?:0[xX][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\b/y;
const WORD = /[A-Za-z_$][\w$]*/y;
const OTHER = /[^A-Za-z0-9_$"'`/#-]+|./sy;

/** Pieces of a code: `[kind, text]`; kind is null, comment, string, number or word. */
export function piecesOf(code, language) {
  const name = language.toLowerCase();
  if (PLAIN.has(name) || code.length > MOST) return [[null, code]];
  const comment = HASHES.has(name) ? /#[^\n]*/y : DASHES.has(name) ? /--[^\n]*/y : /\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)/y;
  const sql = name.includes('sql');
  const pieces = [];
  let at = 0;
  const take = (expression) => {
    expression.lastIndex = at;
    return expression.exec(code)?.[0];
  };
  const put = (kind, text) => {
    const last = pieces.at(-1);
    if (last && last[0] === kind) last[1] += text;
    else pieces.push([kind, text]);
    at += text.length;
  };
  while (at < code.length) {
    let text;
    if ((text = take(comment))) put('comment', text);
    else if ((text = take(STRINGS))) put('string', text);
    else if ((text = take(NUMBER))) put('number', text);
    else if ((text = take(WORD))) put(isWord(text, sql) ? 'word' : null, text);
    else put(null, take(OTHER));
  }
  return pieces;
}

function isWord(text, sql) {
  if (sql) return SQL.has(text.toLowerCase());
  return WORDS.has(/^(?:True|False|None)$/.test(text) ? text.toLowerCase() : text);
}
