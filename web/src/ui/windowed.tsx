/** A long list of rows of one height, of which only those in sight are there. */

import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";

const SPARE = 8;

/** What of the width is in sight, in pixels. */
export interface Sight {
  left: number;
  width: number;
}

interface Props {
  count: number;
  rowHeight: number;
  row: (index: number, sight: Sight) => ComponentChildren;
  head?: (sight: Sight) => ComponentChildren;
  /** The row that has to be in sight, such as one that was gone to by keyboard. */
  shown?: number;
  label: string;
  /** What it is to who cannot see it; rows are rows with cells, or items. */
  as: "table" | "list";
  class?: string;
  /** Stay at the end as rows come, as long as one has not scrolled away from it. */
  follow?: boolean;
}

export function Windowed({ count, rowHeight, row, head, label, as, follow = false, shown = -1, class: name = "" }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const seen = useSignal({ top: 0, height: 800, left: 0, width: 1600 });
  const atEnd = useRef(true);

  useLayoutEffect(() => {
    const node = box.current;
    if (!node) return;
    const look = () => {
      seen.value = { top: node.scrollTop, height: node.clientHeight, left: node.scrollLeft, width: node.clientWidth };
      atEnd.current = node.scrollTop + node.clientHeight >= node.scrollHeight - rowHeight;
    };
    const observer = new ResizeObserver(look);
    observer.observe(node);
    node.addEventListener("scroll", look, { passive: true });
    return () => {
      observer.disconnect();
      node.removeEventListener("scroll", look);
    };
  }, [rowHeight, seen]);

  useLayoutEffect(() => {
    if (follow && atEnd.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [count, follow]);

  useLayoutEffect(() => {
    const node = box.current;
    if (!node || shown < 0) return;
    const room = node.clientHeight - (head ? rowHeight : 0);
    if (shown * rowHeight < node.scrollTop) node.scrollTop = shown * rowHeight;
    else if ((shown + 1) * rowHeight > node.scrollTop + room) node.scrollTop = (shown + 1) * rowHeight - room;
  }, [shown]);

  const first = Math.max(0, Math.floor(seen.value.top / rowHeight) - SPARE);
  const last = Math.min(count, Math.ceil((seen.value.top + seen.value.height) / rowHeight) + SPARE);
  const rows = [];
  for (let i = first; i < last; i++) rows.push(row(i, seen.value));
  return (
    <div ref={box} class={`windowed ${name}`} role={as} aria-label={label} aria-rowcount={as === "table" ? count : undefined} tabIndex={0}>
      {head?.(seen.value)}
      <div role="presentation" style={{ height: `${count * rowHeight}px`, position: "relative" }}>
        <div role="presentation" style={{ position: "absolute", top: `${first * rowHeight}px`, minWidth: "100%" }}>{rows}</div>
      </div>
    </div>
  );
}
