/** Many runs over many axes: a line a run, brushes on the axes leave those that pass through all of them. */

import { type Signal, useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";
import { short } from "../format";
import { shade } from "./colours";

export interface Dimension {
  name: string;
  /** A value a run; null where it has none, which leaves it out. */
  values: (number | string | null)[];
}

interface Props {
  dimensions: Dimension[];
  /** Which run is meant, by its place. */
  focus: Signal<number | null>;
  /** What each axis lets through, from 0 at the bottom to 1 at the top. */
  brushes: Signal<Record<string, [number, number]>>;
  label: (run: number) => string;
  onOpen: (run: number) => void;
}

const [WIDTH, HEIGHT, TOP, SIDE] = [1000, 380, 40, 70];

/** Where each value lies, from 0 to 1: numbers by size, by their logarithm if they span decades; words in their order. */
export function scaled(values: readonly (number | string | null)[]): { at: (number | null)[]; ticks: [number, string][] } {
  const known = values.filter((value) => value !== null);
  if (known.every((value) => typeof value === "number")) {
    const numbers = known as number[];
    const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
    const log = low > 0 && high / low >= 30;
    const bent = (value: number) => (log ? Math.log10(value) : value);
    const span = bent(high) - bent(low) || 1;
    const at = values.map((value) => (typeof value === "number" ? (high === low ? 0.5 : (bent(value) - bent(low)) / span) : null));
    const between = [0, 0.25, 0.5, 0.75, 1].map((share): [number, string] => {
      const value = bent(low) + share * span;
      return [share, short(log ? 10 ** value : value)];
    });
    return { at, ticks: high === low ? [[0.5, short(low)]] : between };
  }
  const words = [...new Set(known.map(String))].sort();
  const place = new Map(words.map((word, i) => [word, words.length === 1 ? 0.5 : i / (words.length - 1)]));
  return { at: values.map((value) => (value === null ? null : (place.get(String(value)) ?? null))), ticks: words.map((word) => [place.get(word) ?? 0, word.slice(0, 12)]) };
}

/** The runs that have a value on every axis, and pass through every brush. */
function passing(at: readonly (number | null)[][], brushes: readonly ([number, number] | undefined)[], count: number): number[] {
  return Array.from({ length: count }, (_, run) => run).filter((run) =>
    at.every((axis, d) => {
      const place = axis[run];
      const brush = brushes[d];
      return place !== null && place !== undefined && (!brush || (place >= brush[0] && place <= brush[1]));
    }),
  );
}

export function Parallel({ dimensions, focus, brushes, label, onOpen }: Props) {
  const box = useRef<SVGSVGElement>(null);
  const drag = useSignal<{ name: string; from: number } | null>(null);
  const axes = dimensions.map(({ values }) => scaled(values));
  const count = dimensions[0]?.values.length ?? 0;
  const x = (d: number) => SIDE + (d * (WIDTH - 2 * SIDE)) / Math.max(1, dimensions.length - 1);
  const y = (share: number) => HEIGHT - 20 - share * (HEIGHT - 20 - TOP);
  const at = axes.map((axis) => axis.at);
  const every = passing(at, [], count);
  const kept = new Set(passing(at, dimensions.map(({ name }) => brushes.value[name]), count));
  const height = (event: PointerEvent) => {
    const rect = box.current?.getBoundingClientRect();
    const seen = rect ? ((event.clientY - rect.top) / rect.height) * HEIGHT : 0;
    return Math.max(0, Math.min(1, (HEIGHT - 20 - seen) / (HEIGHT - 20 - TOP)));
  };
  const brush = (name: string, range: [number, number] | null) => {
    const { [name]: _, ...others } = brushes.value;
    brushes.value = range ? { ...others, [name]: range } : others;
  };
  const path = (run: number) => axes.map((axis, d) => `${d ? "L" : "M"}${x(d).toFixed(1)},${y(axis.at[run] ?? 0).toFixed(1)}`).join("");
  const colourOf = (run: number) => shade(axes.at(-1)?.at[run] ?? 0);
  const first = (run: number) => (focus.value === run ? 2 : kept.has(run) ? 1 : 0);
  return (
    <svg
      ref={box}
      class="parallel"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      role="img"
      aria-label={`parallel coordinates: ${every.length} runs over ${dimensions.map(({ name }) => name).join(", ")}; ${kept.size} pass`}
      onPointerMove={(event) => {
        if (!drag.value) return;
        const now = height(event);
        brush(drag.value.name, [Math.min(now, drag.value.from), Math.max(now, drag.value.from)]);
      }}
      onPointerUp={() => {
        const range = drag.value && brushes.value[drag.value.name];
        if (drag.value && (!range || range[1] - range[0] < 0.01)) brush(drag.value.name, null);
        drag.value = null;
      }}
      onPointerLeave={() => { focus.value = null; }}
    >
      {every.toSorted((a, b) => first(a) - first(b)).map((run) => (
        <path
          key={run}
          d={path(run)}
          class={focus.value === run ? "run meant" : kept.has(run) ? "run" : "run out"}
          stroke={kept.has(run) ? colourOf(run) : "var(--mask)"}
          onPointerEnter={() => { focus.value = run; }}
          onClick={() => onOpen(run)}
        >
          <title>{label(run)}</title>
        </path>
      ))}
      {axes.map((axis, d) => {
        const name = dimensions[d]?.name ?? "";
        const range = brushes.value[name];
        return (
          <g key={name}>
            <text x={x(d)} y={18} text-anchor="middle" class="name">{name.replace(/^(config|summary)\./, "").slice(0, 22)}</text>
            <line x1={x(d)} x2={x(d)} y1={y(0)} y2={y(1)} />
            {axis.ticks.map(([share, text]) => (
              <text key={share} x={x(d) - 6} y={y(share) + 4} text-anchor="end">{text}</text>
            ))}
            {range && <rect class="brush" x={x(d) - 7} width={14} y={y(range[1])} height={y(range[0]) - y(range[1])} />}
            <rect
              class="grip"
              x={x(d) - 14}
              width={28}
              y={TOP}
              height={HEIGHT - 20 - TOP}
              onPointerDown={(event) => {
                drag.value = { name, from: height(event) };
              }}
            />
          </g>
        );
      })}
    </svg>
  );
}
