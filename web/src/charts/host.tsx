/** The only place where a uPlot lives and dies: as wide as its room, drawn anew when what it shows changes. */

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { theme } from "../state";

interface Props {
  /** Options for a width; called again when `of` changes. */
  options: (width: number) => uPlot.Options;
  /** null while there is nothing to draw yet: a plot is made once. */
  data: uPlot.AlignedData | null;
  height: number;
  /** What the options depend on, as a string. */
  of: string;
  label: string;
  /** Told the width in pixels, so that as many buckets are asked for. */
  onWidth?: (width: number) => void;
  onReady?: (plot: uPlot | null) => void;
}

export function Host({ options, data, height, of, label, onWidth, onReady }: Props) {
  const room = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const drawn = useRef<uPlot.AlignedData | null>(null);
  const width = useSignal(0);
  const told = useRef(onWidth);
  told.current = onWidth;

  useLayoutEffect(() => {
    const node = room.current;
    if (!node) return;
    const observer = new ResizeObserver(([entry]) => {
      const now = Math.round(entry?.contentRect.width ?? 0);
      if (now === 0) return;
      width.value = now;
      told.current?.(now);
      if (plot.current && plot.current.width !== now) plot.current.setSize({ width: now, height });
    });
    observer.observe(node);
    return () => observer.disconnect();
  }, [height, width]);

  useLayoutEffect(() => {
    const node = room.current;
    if (!node || !data || width.value === 0) return;
    drawn.current = data;
    const made = new uPlot({ ...options(width.value), width: width.value, height }, data, node);
    plot.current = made;
    onReady?.(made);
    return () => {
      plot.current = null;
      onReady?.(null);
      made.destroy();
    };
    // The data is set by the effect below: a new one needs no new plot.
    // eslint-disable-next-line
  }, [of, data !== null, width.value > 0, theme.value, height]);

  useEffect(() => {
    if (!data || drawn.current === data) return;
    drawn.current = data;
    plot.current?.setData(data);
  }, [data]);

  return <div ref={room} class="plot" style={{ minHeight: `${height}px` }} role="img" aria-label={label} />;
}
