// A fake of Folio's server for browser tests: the wire contract of /api, and faults on demand.
//   node tests/e2e/fake/server.mjs [port]
//   POST /__fake {"reset": {...options}} starts a new world; {"faults": {...}} plays faults.
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';
import { answerAccount } from './accounts.mjs';
import { makeMessage, startRun, stopRun, streamRun } from './runs.mjs';
import { HANDBOOK, makeSources, POLICY_TEXT, World } from './world.mjs';

const PORT = Number(process.argv[2] ?? 8310);
const DIST = new URL('../../../dist/', import.meta.url).pathname;
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.woff2': 'font/woff2', '.wasm': 'application/wasm' };
const CSP =
  "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; " +
  "font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
let world = new World();

const send = (response, status, body, headers = {}) => {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(body === null ? '' : JSON.stringify(body));
};
const fail = (response, status, code, message, retryAfterS = null) =>
  send(response, status, { error: { code, message, retry_after_s: retryAfterS } });
const listed = ({ messages, ...chat }) => chat;
const detailed = (document) => (({ content_hash, ...shown }) => shown)(document);
const startStream = (response) => {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  response.write(': hello\n\n');
};

const ROUTES = [
  ['GET', /^status$/, ({ response }) => send(response, 200, world.status())],
  ['POST', /^index\/(rebuild|switch|rollback)$/, ({ response, match }) => {
    world.options.index = { rebuild: 'building', switch: 'switched', rollback: 'unfit' }[match[1]];
    send(response, 200, world.indexes());
  }],
  ['DELETE', /^index\/(build|previous)$/, ({ response, match }) => {
    world.options.index = match[1] === 'build' ? 'unfit' : '';
    send(response, 204, null);
  }],
  ['GET', /^index$/, ({ response }) => send(response, 200, world.indexes())],
  ['GET', /^collections$/, ({ response }) => {
    const count = (id) => world.documents.filter((item) => item.collection_id === id).length;
    send(response, 200, world.collections.map((item) => ({ ...item, num_documents: count(item.id) })));
  }],
  ['POST', /^collections$/, ({ response, body }) => {
    if (world.collections.some((item) => item.name === body.name)) return fail(response, 409, 'conflict', `there is a collection ${body.name} already`);
    world.collections.push({ id: world.id('base'), name: body.name, num_documents: 0, created_at: new Date().toISOString(), access: 'owner' });
    return send(response, 201, world.collections.at(-1));
  }],
  ['DELETE', /^collections\/(\w+)$/, ({ response, match }) => {
    world.collections = world.collections.filter((item) => item.id !== match[1]);
    world.documents = world.documents.filter((item) => item.collection_id !== match[1]);
    send(response, 204, null);
  }],
  ['GET', /^documents$/, listDocuments],
  ['POST', /^documents$/, upload],
  ['GET', /^documents\/events$/, libraryEvents],
  ['GET', /^documents\/(\w+)\/file$/, documentFile],
  ['GET', /^documents\/(\w+)\/text$/, documentText],
  ['GET', /^documents\/(\w+)\/chunks\/(\w+)$/, ({ response, match }) =>
    match[2] === 'c2' ? send(response, 200, makeSources()[1]) : fail(response, 404, 'not_found', `no chunk ${match[2]}`)],
  ['GET', /^documents\/(\w+)$/, withDocument(({ response, document }) => send(response, 200, detailed(document)))],
  ['PATCH', /^documents\/(\w+)$/, withDocument(({ response, document, body }) => {
    if (Object.keys(body.metadata).some((key) => key.startsWith('folio.'))) {
      return fail(response, 422, 'invalid_input', "metadata: keys that begin with folio. are Folio's own");
    }
    world.update(document, { metadata: body.metadata });
    return send(response, 200, detailed(document));
  })],
  ['POST', /^documents\/(\w+)\/reindex$/, withDocument(({ response, document }) => {
    world.documents = world.documents.filter((item) => item !== document);
    const again = world.ingest(document.name, document.num_bytes);
    again.id = document.id;
    send(response, 202, detailed(again));
  })],
  ['POST', /^documents\/(\w+)\/pause$/, withDocument(({ response, document }) => {
    world.update(document, { status: 'queued', stage: 'paused', progress: 0 });
    send(response, 200, detailed(document));
  })],
  ['POST', /^documents\/(\w+)\/cancel$/, withDocument(({ response, document }) => {
    world.update(document, { status: 'failed', stage: 'cancelled', error: 'cancelled before it was finished: retry it when it is wanted' });
    send(response, 200, detailed(document));
  })],
  ['GET', /^evals$/, ({ response }) => send(response, 200, world.evals.map(({ questions, ...item }) => item))],
  ['POST', /^evals$/, ({ response, body }) => {
    const id = world.id('eval');
    const questions = body.questions.map((item) => ({ question: item.question, is_answerable: item.answerable, is_refusal: body.name.includes('strict') && item.question.startsWith('How'), exact_match: null, f1: null, holds_answer: item.answers.length ? 1 : null, citation_precision: 1, citation_recall: item.documents.length ? 1 : null, confidence: null, first_token_s: 0.1, seconds: 0.4 }));
    const isStrict = body.name.includes('strict');
    const figures = { holds_answer: isStrict ? 0.5 : 1, citation_precision: 1, answered: 1, refused_unanswerable: 0, median_s: isStrict ? 0.2 : 0.4 };
    const item = { id, name: body.name, generator: 'fake', state: 'done', num_questions: questions.length, num_done: questions.length, figures, error: null, created_at: new Date().toISOString(), finished_at: null, questions };
    world.evals.unshift(item);
    send(response, 202, item);
  }],
  ['GET', /^evals\/(\w+)$/, ({ response, match }) => {
    const found = world.evals.find((item) => item.id === match[1]);
    return found ? send(response, 200, found) : fail(response, 404, 'not_found', `no evaluation ${match[1]}`);
  }],
  ['DELETE', /^evals\/(\w+)$/, ({ response, match }) => {
    world.evals = world.evals.filter((item) => item.id !== match[1]);
    send(response, 204, null);
  }],
  ['POST', /^search$/, ({ response, body }) => {
    if (body.query.includes('hang')) return fail(response, 503, 'store_unavailable', 'the vector store did not answer within 20 s');
    const hits = body.query.includes('月球') || body.query.includes('moon') ? [] : makeSources().slice(0, body.limit);
    const timings = { embed_s: 0.0041, dense_s: 0.0123, lexical_s: 0.0087, rank_s: 0.0004, rerank_s: null, total_s: 0.0262 };
    return send(response, 200, { query: body.query, hits, confidence: 0.83, is_sufficient: hits.length > 0, seconds: 0.027, timings });
  }],
  ['GET', /^jobs$/, ({ response }) => send(response, 200, world.jobs())],
  ['POST', /^jobs\/(pause|resume)$/, ({ response, match }) => {
    world.isPaused = match[1] === 'pause';
    send(response, 200, { is_paused: world.isPaused });
  }],
  ['POST', /^jobs\/retry$/, ({ response }) => {
    const failed = world.documents.filter((item) => item.stage === 'failed');
    for (const document of failed) world.update(document, { status: 'queued', stage: 'queued', progress: 0, error: null });
    send(response, 200, { num_queued: failed.length });
  }],
  ['DELETE', /^documents\/(\w+)$/, withDocument(({ response, document }) => {
    world.documents = world.documents.filter((item) => item !== document);
    world.changed('removed', { id: document.id });
    send(response, 204, null);
  })],
  ['GET', /^chats$/, ({ response, query }) => {
    const q = (query.get('q') ?? '').toLowerCase();
    send(response, 200, world.chats.filter((chat) => chat.title.toLowerCase().includes(q)).map(listed));
  }],
  ['POST', /^chats$/, ({ response }) => {
    const now = new Date().toISOString();
    const chat = { id: world.id('chat'), title: '', collection_ids: [], created_at: now, updated_at: now, messages: [] };
    world.chats.unshift(chat);
    send(response, 201, listed(chat));
  }],
  ['GET', /^chats\/(\w+)$/, withChat(({ response, chat }) => send(response, 200, chat))],
  ['PATCH', /^chats\/(\w+)$/, withChat(({ response, chat, body }) => send(response, 200, listed(Object.assign(chat, { title: body.title }))))],
  ['DELETE', /^chats\/(\w+)$/, withChat(({ response, chat }) => {
    world.chats = world.chats.filter((item) => item !== chat);
    send(response, 204, null);
  })],
  ['POST', /^chats\/(\w+)\/messages$/, withChat(ask)],
  ['GET', /^runs\/(\w+)\/events$/, withRun(({ request, response, run }) => {
    startStream(response);
    void streamRun(world, run, Number(request.headers['last-event-id'] ?? 0), response);
  })],
  ['DELETE', /^runs\/(\w+)$/, withRun(({ response, run }) => {
    stopRun(world, run);
    send(response, 204, null);
  })],
  ['POST', /^messages\/(\w+)\/feedback$/, ({ response, match, body }) => {
    const message = world.chats.flatMap((chat) => chat.messages).find((item) => item.id === match[1]);
    message.feedback = body.rating;
    send(response, 200, message);
  }],
];

function withDocument(route) {
  return (call) => {
    const document = world.documents.find((item) => item.id === call.match[1]);
    return document ? route({ ...call, document }) : fail(call.response, 404, 'not_found', `no document ${call.match[1]}`);
  };
}

function withChat(route) {
  return (call) => {
    const chat = world.chats.find((item) => item.id === call.match[1]);
    return chat ? route({ ...call, chat }) : fail(call.response, 404, 'not_found', `no chat ${call.match[1]}`);
  };
}

function withRun(route) {
  return (call) => {
    const run = world.runs.get(call.match[1]);
    return run ? route({ ...call, run }) : fail(call.response, 404, 'not_found', `no run ${call.match[1]}`);
  };
}

function listDocuments({ response, query }) {
  const STATES = { ready: ['ready'], pending: ['queued', 'processing'], failed: ['failed'] };
  const states = STATES[query.get('status')] ?? null;
  const q = (query.get('q') ?? '').toLowerCase();
  const page = Number(query.get('page') ?? 1);
  const size = Number(query.get('page_size') ?? 50);
  const found = world.documents.filter((item) => item.name.toLowerCase().includes(q) && (!states || states.includes(item.status)));
  const { num_ready, num_pending, num_failed } = world.status();
  const items = found.slice((page - 1) * size, page * size).map(detailed);
  send(response, 200, { items, total: found.length, page, page_size: size, num_ready, num_pending, num_failed });
}

function upload({ response, raw }) {
  const name = /filename="([^"]*)"/.exec(raw.toString('utf8'))?.[1] ?? 'file';
  const result = { accepted: [], unchanged: [], rejected: [] };
  if (name.includes('secret')) {
    result.rejected.push({ name, error: { code: 'parse_failed', message: 'the file is protected by a password', retry_after_s: null } });
  } else if (world.documents.some((item) => item.name === name)) {
    result.unchanged.push(detailed(world.documents.find((item) => item.name === name)));
  } else {
    result.accepted.push(detailed(world.ingest(name, raw.length, world.options.stageMs)));
  }
  send(response, 202, result);
}

function libraryEvents({ response }) {
  startStream(response);
  const listener = (event, data) => response.write(`event: ${event}\ndata: ${JSON.stringify(event === 'document' ? detailed(data) : data)}\n\n`);
  world.listeners.add(listener);
  response.on('close', () => world.listeners.delete(listener));
}

function documentFile({ response, match }) {
  if (match[1] === 'gone') return fail(response, 404, 'not_found', 'no document gone');
  response.writeHead(200, { 'content-type': 'application/pdf', 'content-length': HANDBOOK.length });
  return response.end(HANDBOOK);
}

function documentText({ response, match }) {
  if (match[1] !== 'policy') return fail(response, 404, 'not_found', `no text of ${match[1]}`);
  return send(response, 200, { id: 'policy', name: 'Leave policy.md', title: 'Leave policy', media_type: 'text/markdown', text: POLICY_TEXT });
}

function ask({ response, chat, body }) {
  const fault = world.faults.ask;
  if (fault === 'busy') {
    world.faults.ask = null;
    return fail(response, 429, 'overloaded', '64 answers are waiting, the limit is 64: try again in a moment', 2);
  }
  if (fault === 'unavailable') {
    world.faults.ask = null;
    return fail(response, 503, 'store_unavailable', 'the vector store at http://milvus:19530 does not answer');
  }
  const question = makeMessage(world, chat.id, 'user', body.text);
  const answer = makeMessage(world, chat.id, 'assistant', '', { state: 'running', run_id: world.id('run') });
  chat.messages.push(question, answer);
  chat.title ||= body.text.slice(0, 60);
  const first = structuredClone(answer);
  startRun(world, answer, body.text);
  return send(response, 202, { run_id: answer.run_id, question, answer: first });
}

async function readBody(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces);
}

async function serveFile(path, response) {
  const file = normalize(path === '/' ? '/index.html' : path);
  try {
    const bytes = await readFile(join(DIST, file));
    const type = TYPES[extname(file)] ?? 'application/octet-stream';
    response.writeHead(200, { 'content-type': type, 'content-security-policy': CSP, 'x-content-type-options': 'nosniff' });
    response.end(bytes);
  } catch {
    send(response, 404, { error: { code: 'not_found', message: path, retry_after_s: null } });
  }
}

function control(body, response) {
  if (body.reset) world = new World(body.reset);
  if (body.faults) Object.assign(world.faults, body.faults);
  if (body.options) Object.assign(world.options, body.options);
  if (body.forgetRuns) world.runs.clear();
  send(response, 200, { requests: world.requests });
}

createServer(async (request, response) => {
  const url = new URL(request.url, 'http://local');
  const raw = await readBody(request);
  const isJson = request.headers['content-type']?.startsWith('application/json') && raw.length > 0;
  const body = isJson ? JSON.parse(raw.toString('utf8')) : {};
  if (url.pathname === '/__fake') return control(body, response);
  if (!url.pathname.startsWith('/api/')) return serveFile(decodeURIComponent(url.pathname), response);
  if (world.faults.down) return request.socket.destroy();
  world.requests.push(`${request.method} ${url.pathname} ${request.headers['last-event-id'] ?? ''}`.trim());
  if (world.faults.apiKey && request.headers.authorization !== `Bearer ${world.faults.apiKey}`) {
    return fail(response, 401, 'unauthorized', 'the API key is missing or wrong');
  }
  const path = url.pathname.slice('/api/'.length);
  const reply = {
    send: (status, answer) => (send(response, status, answer), true),
    fail: (status, code, message) => (fail(response, status, code, message), true),
  };
  if (answerAccount(world, request.method, path, body, reply)) return;
  for (const [method, pattern, route] of ROUTES) {
    const match = method === request.method ? pattern.exec(path) : null;
    if (match) return route({ request, response, match, body, raw, query: url.searchParams });
  }
  return fail(response, 404, 'not_found', `${request.method} ${url.pathname}`);
}).listen(PORT, '127.0.0.1', () => console.log(`fake Folio on http://127.0.0.1:${PORT}`));
