import assert from 'node:assert/strict';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { test } from 'node:test';

import * as client from '../chatmesh.js';

const read = (name) => readFileSync(new URL(`../${name}`, import.meta.url), 'utf8');
const types = read('chatmesh.d.ts');

test('type declarations match the exports and their members', () => {
  const declared = [...types.matchAll(/export declare (?:class|const) (\w+)/g)].map(([, name]) => name);
  // Only the client creates answers, so the types declare an interface.
  assert.deepEqual(declared.sort(), Object.keys(client).filter((name) => name !== 'Answer').sort());
  for (const [name, kind] of [['ChatMesh', 'class'], ['Answer', 'interface']]) {
    const body = new RegExp(`${kind} ${name}[^{]*\\{(.*?)\\n\\}`, 's').exec(types)[1];
    const members = [...body.matchAll(/^ {2}(?:readonly )?(\w+)[(<:?]/gm)].map(([, member]) => member);
    const prototype = Object.getOwnPropertyNames(client[name].prototype);
    const own = name === 'Answer' ? Object.keys(new client.Answer(null, {})) : [];
    for (const member of members) assert.ok(prototype.includes(member) || own.includes(member), `${name}.${member}`);
    for (const method of prototype.filter((name) => name !== 'constructor')) assert.ok(members.includes(method), `${name}.${method} has no type`);
  }
});

test('all files of the manifest exist', () => {
  const manifest = JSON.parse(read('package.json'));
  const { types, default: main } = manifest.exports['.'];
  for (const file of [...manifest.files, manifest.main, manifest.types, types, main]) {
    assert.ok(statSync(new URL(`../${file}`, import.meta.url)).size > 0, file);
  }
  assert.equal(manifest.license, 'Apache-2.0');
  assert.ok(!/\bimport\b.*\bfrom\b/.test(read('chatmesh.js')), 'the client has no dependencies');
});

const cargo = new URL('../../Cargo.toml', import.meta.url);
test('version matches Cargo.toml', { skip: !existsSync(cargo) && 'Cargo.toml is not in this copy of the folder' }, () => {
  const version = /^version = "(.*)"$/m.exec(readFileSync(cargo, 'utf8'))[1];
  assert.equal(JSON.parse(read('package.json')).version, version);
});
