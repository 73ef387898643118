// Runs one piece of user code and tells its return value or its error.
//
// Started by sandmesh-executor inside the jail. Descriptor 4 holds the request: ten lines, then the
// code, then the event. Descriptor 3 takes the answer: "R" and the return value as JSON, or "E"
// and a JSON object with type, message and traceback. The standard streams belong to the user's code.
'use strict';

const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const vm = require('node:vm');

const RESULT = 3;
const REQUEST = 4;
const CODE = '<code>';
// The lines before the code; `env` is JSON or nothing, `entry` is nothing for a script.
const HEAD = ['executionId', 'sessionId', 'entry', 'codeBytes', 'eventBytes', 'resultBytes', 'memoryMb', 'timeoutMs', 'now', 'env'];
const ESM_URL = pathToFileURL(path.join(process.cwd(), '[code].mjs')).href;

class UserError extends Error {
  constructor(type, message) {
    super(message);
    this.type = type;
  }
}

let answered = false;

function send(tag, text) {
  answered = true;
  let data = Buffer.from(tag + text);
  while (data.length > 0) {
    try {
      data = data.subarray(fs.writeSync(RESULT, data));
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
}

function readRequest() {
  const bytes = fs.readFileSync(REQUEST);
  fs.closeSync(REQUEST);
  const head = {};
  let start = 0;
  for (const name of HEAD) {
    const end = bytes.indexOf(10, start);
    head[name] = bytes.toString('utf8', start, end);
    start = end + 1;
  }
  const event = start + Number(head.codeBytes);
  return { head, code: bytes.toString('utf8', start, event), event: bytes.toString('utf8', event) };
}

// What this execution has besides what every one has, for a process that was started before.
function takeEnvironment(env) {
  for (const [name, value] of env) process.env[name] = value;
}

// What a handler is told about its execution; the names are those of AWS Lambda.
function makeContext(head) {
  const deadline = Number(head.now) * 1000 + Number(head.timeoutMs) - Date.now() + performance.now();
  return {
    executionId: head.executionId,
    awsRequestId: head.executionId,
    sessionId: head.sessionId,
    functionName: head.entry,
    functionVersion: '$LATEST',
    memoryLimitInMB: Number(head.memoryMb),
    getRemainingTimeInMillis: () => Math.max(0, Math.trunc(deadline - performance.now())),
  };
}

// Loads the code as CommonJS, or as an ES module if that is what it is. The name is looked up among
// the top-level declarations and the exports.
async function load(code, entry) {
  const filename = path.join(process.cwd(), 'main.js');
  const module = new Module(filename, null);
  module.filename = filename;
  module.paths = Module._nodeModulePaths(process.cwd());
  const require = Module.createRequire(filename);
  require.main = module;
  const importModuleDynamically = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER;
  const value = entry === '' ? 'undefined' : `typeof ${entry} === 'undefined' ? undefined : ${entry}`;
  let wrapper;
  try {
    const names = ['exports', 'require', 'module', '__filename', '__dirname'];
    wrapper = vm.compileFunction(`${code}\nreturn ${value};`, names, { filename: CODE, importModuleDynamically });
    if (importModuleDynamically === undefined) {
      // Before node 20.10 only a module's own compilation lets the code import().
      wrapper = () => (module._compile(`${code}\nmodule.declared = ${value};`, filename), module.declared);
    }
  } catch (error) {
    if (!(error instanceof SyntaxError) || !isModuleSyntax(error)) throw error;
    const namespace = await importSource(code);
    return namespace[entry] ?? namespace.default?.[entry];
  }
  const declared = wrapper.call(module.exports, module.exports, require, module, filename, process.cwd());
  const exported = module.exports;
  return exported[entry] ?? declared ?? (typeof exported === 'function' ? exported : undefined);
}

function isModuleSyntax(error) {
  return [
    'Cannot use import statement outside a module',
    "Unexpected token 'export'",
    "Cannot use 'import.meta' outside a module",
    'await is only valid in async functions and the top level bodies of modules',
  ].some((message) => error.message.startsWith(message));
}

// Imports the source as if it were a file in the workspace, so that its own imports are found there.
async function importSource(source) {
  const hooks = {
    resolve: (name, context, next) => (name === ESM_URL ? { url: name, format: 'module', shortCircuit: true } : next(name, context)),
    load: (url, context, next) => (url === ESM_URL ? { format: 'module', source, shortCircuit: true } : next(url, context)),
  };
  if (Module.registerHooks) {
    Module.registerHooks(hooks);
    return import(ESM_URL);
  }
  if (!Module.register) {
    // Without hooks its relative imports are not found.
    const file = path.join('/tmp', `code-${process.pid}.mjs`);
    fs.writeFileSync(file, source);
    return import(pathToFileURL(file).href);
  }
  const text = `const source = ${JSON.stringify(source)}, ESM_URL = ${JSON.stringify(ESM_URL)};
    export const resolve = ${hooks.resolve};
    export const load = ${hooks.load};`;
  Module.register(`data:text/javascript,${encodeURIComponent(text)}`);
  return import(ESM_URL);
}

function encode(value, limit) {
  let text;
  try {
    text = JSON.stringify(value === undefined ? null : value);
  } catch (error) {
    const [where, what] = culprit(value, '$', []) ?? ['$', error.message];
    throw new UserError('ReturnValueNotSerializable', `the return value at ${where} ${what}`);
  }
  if (text === undefined) {
    throw new UserError('ReturnValueNotSerializable', `the return value at $ is of type ${typeof value}, which is not JSON`);
  }
  // Lone surrogates, which no UTF-8 text can hold; JSON.stringify writes only those as escapes.
  text = text.replace(/(\\\\)|\\ud[89a-f][0-9a-f]{2}/g, (all, backslash) => backslash ?? '\ufffd');
  const bytes = Buffer.byteLength(text);
  if (bytes > limit) {
    throw new UserError('ReturnValueTooLarge', `the return value has ${bytes} bytes of JSON; at most ${limit} can be returned`);
  }
  return text;
}

// The first part of a value that JSON has no word for, and why.
function culprit(value, where, parents) {
  if (typeof value === 'bigint') return [where, 'is of type bigint, which is not JSON'];
  if (value === null || typeof value !== 'object') return null;
  if (parents.includes(value)) return [where, 'contains itself'];
  if (typeof value.toJSON === 'function') return null;
  for (const [key, item] of Object.entries(value)) {
    const found = culprit(item, Array.isArray(value) ? `${where}[${key}]` : `${where}.${key}`, [...parents, value]);
    if (found) return found;
  }
  return null;
}

// Shows an uncaught error as node does, without the runner's own frames.
function report(error) {
  let [type, message, traceback] = ['Error', String(error), ''];
  if (error instanceof UserError) {
    [type, message] = [error.type, error.message];
    process.stderr.write(`${type}: ${message}\n`);
  } else if (error && typeof error === 'object') {
    type = error.constructor?.name || error.name || 'Error';
    message = String(error.message ?? error);
    const lines = String(error.stack ?? message).split('\n');
    traceback = lines.filter((line) => !/^\s+at .*(\(node:|at node:)/.test(line) && !line.includes(__filename)).join('\n');
    process.stderr.write(`${traceback}\n`);
  } else {
    process.stderr.write(`Uncaught ${message}\n`);
  }
  if (!answered) {
    send('E', JSON.stringify({ type, message: message.slice(0, 16384), traceback: traceback.slice(0, 65536) }));
  }
}

function die(error) {
  report(error);
  process.exit(1);
}

// What is written to the standard streams is written when that returns, as it is to files: an exit does not
// wait for what is on its way.
function writeAtOnce(name) {
  const property = Object.getOwnPropertyDescriptor(process, name);
  let stream;
  const get = () => {
    if (!stream) {
      stream = property.get.call(process);
      stream._handle?.setBlocking?.(true);
    }
    return stream;
  };
  Object.defineProperty(process, name, { ...property, get });
}

// An addon for what takes long without it; see executor/native/node.rs.
function loadNative() {
  const addon = { exports: {} };
  try {
    process.dlopen(addon, path.join(__dirname, 'sandmesh.node'));
  } catch {
    // An interpreter that takes no addons ends as it always did.
  }
  return addon.exports;
}

// Has a success end as an interpreter does, but for taking itself apart piece by piece. Where something is to be done
// or told after everybody heard of the exit, it ends as it always did.
function endAtOnce(exit) {
  const { emit, reallyExit } = process;
  const value = function (name, ...args) {
    const heard = emit.call(this, name, ...args);
    const isSuccess = name === 'exit' && process._exiting && !Number(process.exitCode ?? args[0]);
    if (isSuccess && process.emit === value && process.reallyExit === reallyExit) exit();
    return heard;
  };
  Object.defineProperty(process, 'emit', { value, writable: true, configurable: true });
}

async function main() {
  if (process.argv[2] === 'keeper') {
    const native = loadNative();
    native.keep?.();
    if (native.exit) endAtOnce(native.exit);
  }
  const { head, code, event } = readRequest();
  ['stdout', 'stderr'].forEach(writeAtOnce);
  if (head.env) takeEnvironment(JSON.parse(head.env));
  process.argv = [process.argv[0], path.join(process.cwd(), 'main.js')];
  process.on('uncaughtException', die);
  const handler = await load(code, head.entry);
  if (head.entry === '') return;
  if (typeof handler !== 'function') {
    throw new UserError(
      'HandlerNotFound',
      `the code defines no function \`${head.entry}\`: declare or export \`function ${head.entry}(event)\`, or run the code in script mode`,
    );
  }
  let leaving = false;
  const exit = process.exit;
  process.exit = (...status) => {
    leaving = true;
    return exit.apply(process, status);
  };
  process.once('exit', (status) => {
    if (status !== 0 || answered || leaving) return;
    report(new UserError('HandlerNotSettled', 'the promise of the handler was never settled'));
    process.exitCode = 1;
  });
  send('R', encode(await handler(JSON.parse(event), makeContext(head)), Number(head.resultBytes)));
  process.exit();
}

main().catch(die);
