// Answers being made by the fake server: events kept with ids, streamed from any of them on.
import { ANSWERS, makeSources } from './world.mjs';

const NO_TIMES = { retrieved_s: null, first_token_s: null, finished_s: null };

export function makeMessage(world, chatId, role, content, change = {}) {
  return {
    id: world.id('m'),
    chat_id: chatId,
    role,
    content,
    state: 'done',
    sources: [],
    citations: [],
    is_refusal: false,
    query: '',
    generator: null,
    timings: NO_TIMES,
    usage: { num_prompt_tokens: 0, num_completion_tokens: 0 },
    run_id: null,
    error: null,
    feedback: 0,
    created_at: new Date().toISOString(),
    ...change,
  };
}

/** What the answer to `question` is: some words choose a behaviour. */
function script(question) {
  const language = /[一-鿿]/.test(question) ? 'zh' : 'en';
  const base = ANSWERS[language];
  return {
    query: question,
    text: question.includes('long') ? `${base}\n${ANSWERS.code}`.repeat(14) : question.includes('code') ? `${base}\n${ANSWERS.code}` : base,
    language,
    isRefusal: /moon|月球/.test(question),
    isSlow: question.includes('slow'),
    isSilent: question.includes('silent'),
    fails: question.includes('fail'),
  };
}

export function startRun(world, message, question) {
  const run = { id: message.run_id, message, events: [], waiters: new Set(), isOver: false, timer: null };
  world.runs.set(run.id, run);
  void play(world, run, script(question));
  return run;
}

async function play(world, run, plan) {
  const sleep = (ms) => new Promise((resolve) => (run.timer = setTimeout(resolve, ms)));
  const sources = makeSources();
  emit(run, 'stage', { name: 'retrieving', num_sources: 0 });
  await sleep(120);
  Object.assign(run.message, { sources, query: plan.query });
  emit(run, 'stage', { name: 'reading', num_sources: sources.length });
  emit(run, 'sources', { query: plan.query, sources });
  await sleep(plan.isSilent ? 10_500 : 150);
  emit(run, 'stage', { name: 'writing', num_sources: sources.length });
  const text = plan.isRefusal ? '' : plan.text;
  const letters = [...text];
  for (let at = 0; at < letters.length && !run.isOver; at += 3) {
    const piece = letters.slice(at, at + 3).join('');
    run.message.content += piece;
    emit(run, 'token', { text: piece });
    if (plan.fails && at > 60) return finish(run, 'error', { code: 'generator_unavailable', message: 'the language model went away: is it still running?', retry_after_s: null }, 'failed');
    await sleep(plan.isSlow ? 60 : world.options.tokenMs);
  }
  if (run.isOver) return;
  Object.assign(run.message, {
    state: 'done',
    is_refusal: plan.isRefusal,
    citations: plan.isRefusal ? [] : [1, 2, 3].map((number) => ({ number, chunk_id: `c${number}`, start: 0, end: 10 })),
    generator: world.status().generator,
    timings: { retrieved_s: 0.12, first_token_s: 0.31, finished_s: 2.4 },
    usage: { num_prompt_tokens: 1480, num_completion_tokens: 142 },
  });
  finish(run, 'done', run.message, 'done');
}

export function stopRun(world, run) {
  if (run.isOver) return;
  clearTimeout(run.timer);
  Object.assign(run.message, { state: 'stopped', generator: world.status().generator });
  finish(run, 'stopped', run.message, 'stopped');
}

function finish(run, event, data, state) {
  run.message.state = state;
  if (event === 'error') run.message.error = data.message;
  run.isOver = true;
  emit(run, event, data);
}

function emit(run, event, data) {
  run.events.push({ id: run.events.length + 1, event, data: structuredClone(data) });
  for (const wake of run.waiters) wake();
}

/** Writes the events after id `after`, then those to come; `cutAfter` breaks the connection once. */
export async function streamRun(world, run, after, response) {
  response.setMaxListeners(0); // One listener a wait; they go with the response.
  let position = after;
  let numWritten = 0;
  for (;;) {
    while (position < run.events.length) {
      const { id, event, data } = run.events[position++];
      response.write(`id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
      numWritten += 1;
      if (world.faults.cutAfter && numWritten >= world.faults.cutAfter) {
        world.faults.cutAfter = 0;
        response.destroy();
        return;
      }
    }
    if (run.isOver && position >= run.events.length) return response.end();
    if (response.destroyed) return;
    await new Promise((resolve) => {
      const wake = () => (run.waiters.delete(wake), resolve());
      run.waiters.add(wake);
      response.once('close', wake);
    });
  }
}
