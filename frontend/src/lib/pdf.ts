/** Draws pages of PDF files and marks passages on them; loaded on first need. */
import {
  getDocument,
  GlobalWorkerOptions,
  TextLayer,
  type PDFDocumentProxy,
  type PDFPageProxy,
} from 'pdfjs-dist/legacy/build/pdf.mjs';
import workerUrl from 'pdfjs-dist/legacy/build/pdf.worker.min.mjs?url';
import { authHeaders } from './api';
import { findPassage } from './passage';
import type { BoxOut } from './types';

export type { PDFDocumentProxy } from 'pdfjs-dist/legacy/build/pdf.mjs';
/** How the passage was marked: by the parser's boxes, by searching the page's text, or not at all. */
export type Mark = 'boxes' | 'text' | 'none';

export interface Passage {
  boxes: BoxOut[];
  text: string;
}

GlobalWorkerOptions.workerSrc = workerUrl;
const MAX_OPEN = 3;
const opened = new Map<string, Promise<PDFDocumentProxy>>();

/** Opens a file, keeping the last few open: sources often point into the same one. */
export function openPdf(url: string): Promise<PDFDocumentProxy> {
  let pdf = opened.get(url);
  opened.delete(url);
  pdf ??= getDocument({ url, httpHeaders: authHeaders(), ...assets() }).promise;
  opened.set(url, pdf);
  pdf.catch(() => opened.delete(url));
  for (const [oldest, document] of opened) {
    if (opened.size <= MAX_OPEN) break;
    opened.delete(oldest);
    void document.then((old) => old.loadingTask.destroy(), () => {});
  }
  return pdf;
}

/** Without the character maps, Chinese text in a font that is not embedded is not even found. */
function assets() {
  const base = new URL('./pdfjs/', document.baseURI).href;
  return {
    cMapUrl: `${base}cmaps/`,
    cMapPacked: true,
    standardFontDataUrl: `${base}standard_fonts/`,
    wasmUrl: `${base}wasm/`,
    isEvalSupported: false,
  };
}

/** Draws a page as wide as `host` and marks the passage; replaces what `host` held. */
export async function drawPage(
  host: HTMLElement,
  pdf: PDFDocumentProxy,
  pageNumber: number,
  passage: Passage | null,
  signal: AbortSignal,
): Promise<Mark> {
  const page = await pdf.getPage(pageNumber);
  if (signal.aborted) return 'none';
  const width = host.clientWidth || 480;
  const scale = width / page.getViewport({ scale: 1 }).width;
  const { sheet, canvas, layer } = makeSheet(page, scale);
  const density = Math.min(devicePixelRatio || 1, 2);
  const viewport = page.getViewport({ scale });
  const transform = density === 1 ? undefined : [density, 0, 0, density, 0, 0];
  canvas.width = Math.floor(viewport.width * density);
  canvas.height = Math.floor(viewport.height * density);
  const drawing = page.render({ canvas, viewport, ...(transform && { transform }) });
  signal.addEventListener('abort', () => drawing.cancel(), { once: true });
  await drawing.promise;
  const text = new TextLayer({ textContentSource: page.streamTextContent(), container: layer, viewport });
  await text.render();
  if (signal.aborted) return 'none';
  host.replaceChildren(sheet);
  return passage ? mark(sheet, text.textDivs, pageNumber, passage) : 'none';
}

function makeSheet(page: PDFPageProxy, scale: number) {
  const { width, height } = page.getViewport({ scale });
  const sheet = document.createElement('div');
  sheet.className = 'pdf-sheet';
  sheet.style.cssText = `width:${width}px;height:${height}px`;
  const canvas = document.createElement('canvas');
  canvas.style.cssText = 'width:100%;height:100%';
  canvas.setAttribute('aria-hidden', 'true'); // The text layer above it is what is read out.
  const layer = document.createElement('div');
  layer.className = 'textLayer';
  layer.style.setProperty('--total-scale-factor', String(scale));
  sheet.append(canvas, layer);
  return { sheet, canvas, layer };
}

function mark(sheet: HTMLElement, spans: HTMLElement[], pageNumber: number, passage: Passage): Mark {
  const boxes = passage.boxes.filter((box) => box.page === pageNumber && isOnPage(box));
  if (boxes.length) {
    const marks = boxes.map(makeMark);
    sheet.append(...marks);
    marks[0]?.scrollIntoView({ block: 'center' });
    return 'boxes';
  }
  const found = findPassage(spans.map((span) => span.textContent ?? ''), passage.text);
  const hits = found.flatMap((index) => spans[index] ?? []).filter((span) => overlaps(span, sheet));
  for (const hit of hits) hit.classList.add('hit');
  hits[0]?.scrollIntoView({ block: 'center' });
  return hits.length ? 'text' : 'none';
}

/** Some files carry text beyond the edge of their pages, where nobody sees it. */
const isOnPage = (box: BoxOut): boolean => box.right - box.left > 0.001 && box.bottom - box.top > 0.001;

function overlaps(span: HTMLElement, sheet: HTMLElement): boolean {
  const inner = span.getBoundingClientRect();
  const outer = sheet.getBoundingClientRect();
  return inner.right > outer.left && inner.left < outer.right && inner.bottom > outer.top && inner.top < outer.bottom;
}

function makeMark(box: BoxOut): HTMLElement {
  const percent = (share: number): string => `${(share * 100).toFixed(3)}%`;
  const element = document.createElement('div');
  element.className = 'mark';
  element.style.left = percent(box.left);
  element.style.top = percent(box.top);
  element.style.width = percent(box.right - box.left);
  element.style.height = percent(box.bottom - box.top);
  return element;
}
