// What the fake server knows: documents, chats, runs; and which faults it plays.
import { makeUser } from './accounts.mjs';
import { lineBox, makePdf } from './pdf.mjs';

const PDF_LINES = [
  '员工手册 Employee Handbook',
  '第三章 休假制度',
  '员工每年享有十五天带薪年假，未休完的年假可结转至次年三月底。',
  'Employees receive fifteen days of paid leave each year.',
  '病假需在当日上午十点前通知直属主管。',
  'Sick leave is reported to the direct manager before ten.',
];
export const HANDBOOK = makePdf([['封面 Cover'], PDF_LINES, PDF_LINES.slice().reverse()]);

// The rocket takes two UTF-16 units and one code point: offsets after it differ.
const CITED_TEXT = 'Unused leave may be carried over until the end of March of the following year.';
export const POLICY_TEXT = [
  '# Leave policy 🚀',
  'This policy applies to everyone who works here.',
  CITED_TEXT,
  'Questions go to the people team.',
].join('\n\n') + '\n';

const MULTILINGUAL = 'intfloat/multilingual-e5-small';
const SUFFIXES = ['.csv', '.docx', '.html', '.md', '.pdf', '.pptx', '.txt', '.xlsx'];
const SAMPLES = {
  en: ['Can annual leave be carried over?', 'How early must sick leave be reported?', 'Who approves travel expenses?'],
  zh: ['年假可以结转到明年吗？', '病假需要提前多久通知？', '差旅费用由谁审批？'],
};
const NAMES = ['Procurement contract 2025.docx', '差旅报销办法.docx', 'Quarterly results.xlsx', 'Security guideline.md', '董事会纪要.pdf', 'Onboarding slides.pptx'];

export class World {
  constructor(options = {}) {
    this.options = { documents: 128, generator: 'openai', phase: 'ready', tokenMs: 4, ...options };
    this.nextId = 1;
    this.documents = this.options.documents ? makeDocuments(this.options.documents) : [];
    this.chats = [];
    this.runs = new Map();
    this.listeners = new Set();
    this.isPaused = false;
    this.evals = [];
    this.keys = [];
    this.users = [makeUser('u1', 'Ada', 'admin'), makeUser('u2', 'Grace', 'member', { last_seen_at: '2026-02-03T10:00:00Z' }), makeUser('u3', 'Lin', 'member', { is_active: false })];
    this.groups = [{ id: 'g1', name: '人事 People team', user_ids: ['u2', 'u3'] }];
    this.access = {};
    this.collections = makeCollections(this.options.access ?? 'owner');
    this.faults = { ask: null, cutAfter: 0, down: false, apiKey: null, account: null };
    this.requests = [];
    if (this.options.chats) this.chats = makeChats();
  }

  id(prefix) {
    return `${prefix}${this.nextId++}`;
  }

  indexes() {
    const embedding_model = 'all-MiniLM-L6-v2';
    const counts = { num_documents: this.documents.length, num_missing: 0, num_failed: 0, num_chunks: 4211 };
    const times = { created_at: '2026-01-01T00:00:00Z', switched_at: null };
    const spec = { name: 'folio_minilm_384', embedding_model, dimension: 384, chunker: 'structure-1-200-0' };
    const made = { ...counts, ...times, switches_itself: false, recall: null, reason: null };
    const serving = { ...spec, ...made, state: 'serving' };
    const rest = { models: [embedding_model, MULTILINGUAL], multilingual_model: MULTILINGUAL, cjk_share: 0.4, is_model_unfit: true };
    const other = { ...made, ...spec, name: 'folio_e5_384', embedding_model: MULTILINGUAL };
    const recall = { num_queries: 50, k: 5, tolerance: 0.05, serving: 0.96, built: 0.82 };
    switch (this.options.index) {
      case 'unfit':
        return { indexes: [serving], ...rest };
      case 'building':
        return { indexes: [serving, { ...other, state: 'building', num_missing: 40, num_chunks: 2100 }], ...rest };
      case 'warning':
        return { indexes: [serving, { ...other, state: 'warning', recall, reason: 'it finds 14 points less than the present one' }], ...rest };
      case 'switched':
        return { indexes: [{ ...other, state: 'serving' }, { ...serving, state: 'previous' }], ...rest, is_model_unfit: false };
      default:
        return { indexes: [serving], models: [embedding_model], multilingual_model: null, cjk_share: 0, is_model_unfit: false };
    }
  }

  status() {
    const count = (...states) => this.documents.filter((item) => states.includes(item.status)).length;
    const isExtractive = this.options.generator === 'extractive';
    return {
      version: '0.1.0',
      phase: this.options.phase,
      detail: this.options.phase === 'starting' ? 'loading the embedding model' : '',
      checks: [
        { name: 'database', is_ok: true, detail: 'SQLite' },
        { name: 'index', is_ok: this.options.phase === 'ready', detail: 'Milvus Lite' },
      ],
      generator: {
        kind: this.options.generator,
        model: isExtractive ? 'extractive' : 'Qwen2.5-7B-Instruct',
        note: isExtractive ? 'no model was found: set LLM_MODEL or LLM_BASE_URL' : '',
      },
      embedder: { name: 'all-MiniLM-L6-v2', dimension: 384, is_multilingual: false },
      num_documents: this.documents.length,
      num_ready: count('ready'),
      num_pending: count('queued', 'processing'),
      num_failed: count('failed'),
      num_chunks: 4211,
      is_queue_paused: this.isPaused,
      max_upload_bytes: 5_000_000,
      upload_suffixes: SUFFIXES,
      sample_questions: SAMPLES,
    };
  }

  /** The latest job of each document. */
  jobs() {
    const items = this.documents.slice(0, 20).map((item) => ({
      id: `j${item.id}`,
      document_id: item.id,
      document_name: item.name,
      owner: '',
      stage: item.stage,
      progress: item.progress,
      attempts: item.status === 'failed' ? 2 : 1,
      reason: item.status === 'failed' ? item.error : null,
      queued_at: item.created_at,
      heartbeat_at: null,
      finished_at: item.status === 'ready' ? item.updated_at : null,
    }));
    return { items, total: items.length, page: 1, page_size: 20, is_paused: this.isPaused };
  }

  changed(event, data) {
    for (const listener of this.listeners) listener(event, data);
  }

  /** Takes a file through its stages in `ms` milliseconds each. */
  ingest(name, numBytes, ms = 120) {
    const document = makeDocument(this.id('up'), name, { num_bytes: numBytes, status: 'queued', stage: 'queued', progress: 0, num_chunks: 0 });
    this.documents.unshift(document);
    const stages = [['parsing', 0.1], ['chunking', 0.3], ['embedding', 0.5], ['embedding', 0.8], ['storing', 0.95]];
    stages.forEach(([stage, progress], index) => {
      setTimeout(() => this.advance(document, { status: 'processing', stage, progress }), ms * (index + 1));
    });
    const end = name.includes('broken')
      ? { status: 'failed', stage: 'failed', error: 'page 3 is encrypted: remove the password and upload it again' }
      : { status: 'ready', stage: 'done', progress: 1, num_chunks: 12, num_pages: 3, error: null };
    setTimeout(() => this.advance(document, end), ms * (stages.length + 1));
    return document;
  }

  /** The next step of a document, unless it was paused or cancelled meanwhile. */
  advance(document, change) {
    if (document.stage !== 'paused' && document.stage !== 'cancelled') this.update(document, change);
  }

  update(document, change) {
    Object.assign(document, change, { updated_at: new Date().toISOString() });
    this.changed('document', document);
  }
}

function makeDocument(id, name, change = {}) {
  const isPdf = name.endsWith('.pdf');
  return {
    id,
    collection_id: 'default',
    source: 'upload',
    path: name,
    name,
    title: name.replace(/\.\w+$/, ''),
    media_type: isPdf ? 'application/pdf' : 'text/plain',
    content_hash: id,
    num_bytes: 184_320,
    status: 'ready',
    stage: 'done',
    progress: 1,
    error: null,
    num_pages: isPdf ? 3 : null,
    num_chunks: 42,
    created_at: '2026-03-02T09:14:00Z',
    updated_at: '2026-03-02T09:14:00Z',
    metadata: {},
    ...change,
  };
}

/** The knowledge bases, and what the caller may do in them. */
function makeCollections(access) {
  return [{ id: 'default', name: 'default', num_documents: 0, created_at: '2026-01-01T00:00:00Z', access }];
}

function makeDocuments(count) {
  const documents = [
    makeDocument('handbook', '员工手册 Employee Handbook.pdf', { num_bytes: 2_411_000, error: '1 of 96 pages are damaged and were not read: 7' }),
    makeDocument('policy', 'Leave policy.md', { num_bytes: 12_800, num_chunks: 4 }),
    makeDocument('scan', 'Archive scan 1987.pdf', { status: 'failed', stage: 'failed', error: 'it holds only pictures of pages: text recognition is off', num_chunks: 0 }),
  ];
  for (let index = 0; documents.length < count; index++) {
    const name = NAMES[index % NAMES.length].replace('.', ` ${index + 1}.`);
    documents.push(makeDocument(`d${index}`, name, { num_bytes: 20_480 * (index + 1), num_chunks: 3 + index }));
  }
  return documents;
}

function makeChats() {
  const daysAgo = (days) => new Date(Date.now() - days * 86_400_000).toISOString();
  return [
    ['年假结转规则', 0],
    ['Payment terms in supplier contracts', 0],
    ['差旅报销上限', 1],
    ['Which suppliers have a termination clause shorter than thirty days?', 4],
    ['Security training schedule', 30],
  ].map(([title, days], index) => ({
    id: `old${index}`,
    title,
    collection_ids: [],
    created_at: daysAgo(days),
    updated_at: daysAgo(days),
    messages: [],
  }));
}

/** The sources of every answer: a PDF with boxes, a text with offsets, a PDF without boxes. */
export function makeSources() {
  const start = [...POLICY_TEXT.slice(0, POLICY_TEXT.indexOf(CITED_TEXT))].length;
  const common = { heading_path: [], page: null, boxes: [], start: 0, end: 0 };
  const handbook = { document_id: 'handbook', document_name: '员工手册 Employee Handbook.pdf', document_title: '员工手册', media_type: 'application/pdf' };
  const scores = (dense, lexical, rerank = null) => ({ dense, lexical, rerank });
  return [
    { ...common, ...handbook, number: 1, chunk_id: 'c1', page: 2, boxes: [lineBox(2, 2)], heading_path: ['员工手册', '第三章 休假制度'], text: PDF_LINES[2], score: 0.83, scores: scores(0.71, 12.4, 0.94) },
    { ...common, number: 2, chunk_id: 'c2', document_id: 'policy', document_name: 'Leave policy.md', document_title: 'Leave policy', media_type: 'text/markdown', heading_path: ['Leave policy'], start, end: start + [...CITED_TEXT].length, text: CITED_TEXT, score: 0.71, scores: scores(0.64, 9.1, 0.62) },
    { ...common, ...handbook, number: 3, chunk_id: 'c3', page: 2, text: PDF_LINES[4], score: 0.52, scores: scores(0.5, null) },
    { ...common, ...handbook, number: 4, chunk_id: 'c4', page: 3, text: PDF_LINES[5], score: 0.31, scores: scores(null, 3.2) },
  ];
}

export const ANSWERS = {
  zh: `员工每年享有**十五天**带薪年假，未休完的年假可结转至次年三月底 [1]。**注意：**不可转让给同事 [2]。

| 类型 | 天数 | 通知 |
|---|---|---|
| 年假 | 15 | 两周 |
| 病假 | 10 | 当日 10:00 前 [3] |

每月累计 \\(15/12 = 1.25\\) 天；额外购买一天需 $120 至 $300。
`,
  en: `Yes. Employees receive **fifteen days** of paid leave a year [1]; unused days can be carried over until the end of March of the following year [2].

| Type | Days | Notice |
|---|---|---|
| Annual | 15 | two weeks |
| Sick | 10 | before 10:00 [3] |

Accrual per month is \\(15/12 = 1.25\\) days; it costs $120 to $300 to buy one more.
`,
  code: `\`\`\`python
def accrued(months: int) -> float:
    """Days of leave after some months."""
    return months * 15 / 12
\`\`\`

<img src=x onerror="window.pwned=1"> <script>window.pwned=1</script>
`,
};
