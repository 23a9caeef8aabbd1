/** A long list of rows of one height, of which only those in sight are there. */

import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";

const SPARE = 8;

interface Props {
  count: number;
  rowHeight: number;
  row: (index: number) => ComponentChildren;
  head?: ComponentChildren;
  label: string;
  /** What it is to who cannot see it; rows are rows with cells, or items. */
  as: "table" | "list";
  class?: string;
  /** Stay at the end as rows come, as long as one has not scrolled away from it. */
  follow?: boolean;
}

export function Windowed({ count, rowHeight, row, head, label, as, follow = false, class: name = "" }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const seen = useSignal({ top: 0, height: 800 });
  const atEnd = useRef(true);

  useLayoutEffect(() => {
    const node = box.current;
    if (!node) return;
    const look = () => {
      seen.value = { top: node.scrollTop, height: node.clientHeight };
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

  const first = Math.max(0, Math.floor(seen.value.top / rowHeight) - SPARE);
  const last = Math.min(count, Math.ceil((seen.value.top + seen.value.height) / rowHeight) + SPARE);
  const rows = [];
  for (let i = first; i < last; i++) rows.push(row(i));
  return (
    <div ref={box} class={`windowed ${name}`} role={as} aria-label={label} aria-rowcount={as === "table" ? count : undefined} tabIndex={0}>
      {head}
      <div role="presentation" style={{ height: `${count * rowHeight}px`, position: "relative" }}>
        <div role="presentation" style={{ position: "absolute", top: `${first * rowHeight}px`, minWidth: "100%" }}>{rows}</div>
      </div>
    </div>
  );
}
