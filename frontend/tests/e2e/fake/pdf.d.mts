export function makePdf(pages: string[][]): Buffer;
export function lineBox(page: number, index: number, share?: number): { page: number; left: number; top: number; right: number; bottom: number };
