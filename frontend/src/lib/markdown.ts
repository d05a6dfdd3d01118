/** Markdown of answers to safe HTML: citations, mathematics, and strong text beside CJK marks. */
import DOMPurify from 'dompurify';
import { Lexer, Marked, type TokenizerAndRendererExtension, type Tokens } from 'marked';

/** The accessible name of a source's number; null where no such source exists. */
export type CitationLabel = (number: number) => string | null;
interface Labels {
  citation: CitationLabel;
  copyCode: string;
}

let labels: Labels = { citation: (number) => String(number), copyCode: 'Copy' };
const escape = (text: string): string => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

/** CommonMark's flanking rule leaves **“年假”**可 unparsed; a model that writes ** means strong. */
const cjkStrong: TokenizerAndRendererExtension = {
  name: 'cjkStrong',
  level: 'inline',
  start: (src) => src.indexOf('**'),
  tokenizer(src) {
    const match = /^\*\*(?![\s*])((?:[^*\n]|\*(?!\*))+?)(?<!\s)\*\*(?!\*)/.exec(src);
    if (!match) return undefined;
    const text = match[1]!;
    return { type: 'strong', raw: match[0], text, tokens: this.lexer.inlineTokens(text) };
  },
};

/** [1], 【1】 and [1, 2]: a button for each known source; unknown numbers are left out. */
const citation: TokenizerAndRendererExtension = {
  name: 'citation',
  level: 'inline',
  start: (src) => src.search(/[[【]\d/),
  tokenizer(src) {
    const match = /^(?:\[(\d{1,2}(?:\s*[,，、]\s*\d{1,2})*)\](?!\([^)\s]*\))|【(\d{1,2})】)/.exec(src);
    if (!match) return undefined;
    const numbers = (match[1] ?? match[2] ?? '').match(/\d+/g)?.map(Number) ?? [];
    return { type: 'citation', raw: match[0], numbers };
  },
  renderer: (token) => (token['numbers'] as number[]).map(chip).join(''),
};

function chip(number: number): string {
  const label = labels.citation(number);
  if (label === null) return '';
  return `<button type="button" class="cite" data-cite="${number}" aria-label="${escape(label)}">${number}</button>`;
}

/** $$…$$, \[…\], \(…\), and $…$ only where it cannot be money. */
const MATH =
  /^\$\$([\s\S]+?)\$\$|^\\\[([\s\S]+?)\\\]|^\\\(([\s\S]+?)\\\)|^\$(?![\s\d])((?:[^$\n\\]|\\.)+?)(?<!\s)\$(?!\d)/;

const math: TokenizerAndRendererExtension = {
  name: 'math',
  level: 'inline',
  start: (src) => src.search(/\$|\\[([]/),
  tokenizer(src) {
    const match = MATH.exec(src);
    if (!match) return undefined;
    const block = match[1] ?? match[2];
    return { type: 'math', raw: match[0], tex: block ?? match[3] ?? match[4], display: block !== undefined };
  },
  renderer(token) {
    const tex = escape(String(token['tex']));
    return `<span class="math" data-display="${token['display']}" data-tex="${tex}">${tex}</span>`;
  },
};

const marked = new Marked({ gfm: true, breaks: false });
marked.use({
  renderer: {
    code({ text, lang }: Tokens.Code) {
      const language = escape((lang ?? '').split(/\s/)[0] ?? '');
      const copy = `<button type="button" class="copy-code" data-copy>${escape(labels.copyCode)}</button>`;
      // tabindex: a block that scrolls sideways must be reachable with the keyboard.
      return `<div class="code">${copy}<pre tabindex="0" data-lang="${language}"><code>${escape(text)}</code></pre></div>`;
    },
    // The page's own headings are h1 and h2.
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    html: ({ text }) => escape(text),
    image: ({ text }) => escape(text), // A remote image would tell others what is read here.
    table(token) {
      const rows = token.rows.map((row) => `<tr>${row.map((cell) => this.tablecell(cell)).join('')}</tr>`);
      const head = token.header.map((cell) => this.tablecell(cell)).join('');
      return `<div class="table" tabindex="0"><table><thead><tr>${head}</tr></thead><tbody>${rows.join('')}</tbody></table></div>`;
    },
    link({ href, text, tokens }) {
      const inner = tokens ? this.parser.parseInline(tokens) : escape(text);
      return `<a href="${escape(href)}" target="_blank" rel="noopener noreferrer">${inner}</a>`;
    },
  },
  extensions: [cjkStrong, citation, math],
});

const SANITIZE = {
  ADD_ATTR: ['data-cite', 'data-tex', 'data-display', 'data-lang', 'data-copy', 'target'],
  FORBID_TAGS: ['style', 'img', 'form', 'input', 'svg', 'math', 'iframe', 'video', 'audio'],
  FORBID_ATTR: ['style', 'id', 'name'],
};

export function render(source: string, use: Partial<Labels> = {}): string {
  labels = { citation: (number) => String(number), copyCode: 'Copy', ...use };
  const clean = DOMPurify.sanitize(marked.parse(source, { async: false }), SANITIZE);
  return clean.includes('data-cite') ? keepChipsWithWords(clean) : clean;
}

/** The last word of a text; of a Chinese one, its last character. */
const LAST_WORD = /(?:[\u2e80-\uffef]|[^\s\u2e80-\uffef]{1,24})\s*$/;

/** No line ends between a word and its citation: both go into one span that does not wrap. */
function keepChipsWithWords(html: string): string {
  const host = document.createElement('template');
  host.innerHTML = html;
  for (const chip of host.content.querySelectorAll('[data-cite]')) {
    const before = chip.previousSibling;
    if (before instanceof HTMLElement && before.className === 'kept') before.append(chip);
    if (!(before instanceof Text)) continue;
    const word = LAST_WORD.exec(before.data)?.[0];
    if (!word) continue;
    const kept = document.createElement('span');
    kept.className = 'kept';
    before.data = before.data.slice(0, -word.length);
    before.after(kept);
    kept.append(word.trimEnd(), chip);
  }
  return host.innerHTML;
}

const lexBlocks = (source: string) => new Lexer(marked.defaults).blockTokens(source);
const isContent = (token: { type: string }): boolean => token.type !== 'space';

/** Splits at top-level block borders. */
export function blocks(source: string): string[] {
  return lexBlocks(source).filter(isContent).map((token) => token.raw);
}

/**
 * Splits a text that only grows: all but its last two blocks are frozen, so each call reads only
 * the tail. Two, because a new line may still join the block before ("1. x", then "2", then "2. y").
 */
export class BlockSplitter {
  #frozen: string[] = [];
  #head = '';

  /** How many of the blocks returned last will not change any more. */
  get numFrozen(): number {
    return this.#frozen.length;
  }

  next(source: string): string[] {
    if (!source.startsWith(this.#head)) {
      this.#frozen = [];
      this.#head = '';
    }
    const tail = lexBlocks(source.slice(this.#head.length));
    const content = tail.flatMap((token, index) => (isContent(token) ? [index] : []));
    const cut = content.length > 2 ? content.at(-2)! : 0;
    const raw = tail.slice(0, cut).map((token) => token.raw).join('');
    // The lexer may normalise what it reads (tabs, line ends); then nothing can be frozen.
    const isVerbatim = source.startsWith(raw, this.#head.length);
    if (!isVerbatim) return [...this.#frozen, ...tail.filter(isContent).map((token) => token.raw)];
    this.#frozen.push(...tail.slice(0, cut).filter(isContent).map((token) => token.raw));
    this.#head += raw;
    return [...this.#frozen, ...tail.slice(cut).filter(isContent).map((token) => token.raw)];
  }
}

/** Colours code and typesets mathematics in finished blocks; both libraries load on first need. */
export async function enhance(root: ParentNode): Promise<void> {
  const formulas = unfinished(root, '.math');
  const listings = unfinished(root, 'pre[data-lang]');
  if (formulas.length) {
    const { typeset } = await import('./math');
    formulas.forEach(typeset);
  }
  if (listings.length) {
    const { highlight } = await import('./highlight');
    for (const pre of listings) highlight(pre.querySelector('code')!, pre.dataset['lang'] ?? '');
  }
}

function unfinished(root: ParentNode, selector: string): HTMLElement[] {
  const found = [...root.querySelectorAll<HTMLElement>(`${selector}:not([data-done])`)];
  for (const element of found) element.dataset['done'] = '';
  return found;
}
