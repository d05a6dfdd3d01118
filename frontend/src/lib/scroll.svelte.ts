/** Keeps the end of a growing text in view, unless the reader has gone elsewhere. */

const NEAR_END_PX = 48;
const NEAR_TOP_PX = 40;
const SETTLE_MS = 1500;

export class ScrollHold {
  isAtEnd = $state(true);
  isAtTop = $state(true);
  #scroller: HTMLElement | null = null;
  #followsUntil = 0;

  /** Watches `scroller` and the size of `content` in it, until the returned function is called. */
  attach(scroller: HTMLElement, content: HTMLElement): () => void {
    this.#scroller = scroller;
    const onScroll = () => this.#look();
    scroller.addEventListener('scroll', onScroll, { passive: true });
    const observer = new ResizeObserver(() => {
      if (this.isAtEnd && performance.now() < this.#followsUntil) this.toEnd();
    });
    observer.observe(content);
    return () => {
      scroller.removeEventListener('scroll', onScroll);
      observer.disconnect();
    };
  }

  /** Follows growing text from now on. */
  follow(): void {
    this.#followsUntil = Infinity;
  }

  /** Follows only what is still settling: later growth, such as unfolded sources, moves nothing. */
  settle(): void {
    this.#followsUntil = performance.now() + SETTLE_MS;
  }

  toEnd(): void {
    if (!this.#scroller) return;
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.isAtEnd = true;
  }

  #look(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller!;
    this.isAtTop = scrollTop < NEAR_TOP_PX;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }
}
