/** Evaluations: those that were run, and the one that is open. */
import { api, type ApiError } from './api';
import type { EvalDetail, EvalOut } from './types';

/** A question as it is sent; of its answer what is known. */
export interface EvalQuestionIn {
  question: string;
  answers: string[];
  documents: string[];
  answerable: boolean;
}

const POLL_MS = 1000;

export class Evals {
  list = $state<EvalOut[] | null>(null);
  open = $state<EvalDetail | null>(null);
  error = $state<ApiError | null>(null);
  #timer: ReturnType<typeof setTimeout> | undefined;

  async load(): Promise<void> {
    const answered = await api.evals();
    this.error = answered.ok ? null : answered.error;
    if (answered.ok) this.list = answered.value;
  }

  async show(id: string): Promise<void> {
    if (this.open?.id !== id) this.open = null;
    const answered = await api.eval(id);
    this.error = answered.ok ? null : answered.error;
    if (answered.ok) this.open = answered.value;
  }

  /** Starts one; its id, or null with `error` set. */
  async start(name: string, questions: EvalQuestionIn[]): Promise<string | null> {
    const answered = await api.startEval(name, questions);
    this.error = answered.ok ? null : answered.error;
    return answered.ok ? answered.value.id : null;
  }

  async cancel(id: string): Promise<void> {
    const answered = await api.cancelEval(id);
    this.error = answered.ok ? null : answered.error;
  }

  async remove(id: string): Promise<ApiError | null> {
    const answered = await api.deleteEval(id);
    if (answered.ok) await this.load();
    return answered.ok ? null : answered.error;
  }

  /** Loads again each second while one is running, until the returned function is called. */
  watch(load: () => Promise<void>): () => void {
    let isOver = false;
    const next = async (): Promise<void> => {
      await load();
      const isRunning = this.open?.state === 'running' || this.list?.some((item) => item.state === 'running');
      if (!isOver && isRunning) this.#timer = setTimeout(() => void next(), POLL_MS);
    };
    void next();
    return () => {
      isOver = true;
      clearTimeout(this.#timer);
    };
  }
}

/** The questions of a JSON-lines file; the number of the line that is wrong. */
export function readQuestions(text: string): { questions: EvalQuestionIn[] } | { line: number } {
  const questions: EvalQuestionIn[] = [];
  for (const [index, line] of text.split('\n').entries()) {
    if (!line.trim()) continue;
    try {
      const row = JSON.parse(line) as Partial<EvalQuestionIn>;
      if (typeof row.question !== 'string' || !row.question.trim()) return { line: index + 1 };
      questions.push({
        question: row.question,
        answers: row.answers ?? [],
        documents: row.documents ?? [],
        answerable: row.answerable ?? true,
      });
    } catch {
      return { line: index + 1 };
    }
  }
  return questions.length ? { questions } : { line: 1 };
}
