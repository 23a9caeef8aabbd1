/** A point a run: what one value says of another. */

import type { Signal } from "@preact/signals";
import { shade } from "./colours";
import { type Dimension, scaled } from "./parallel";

interface Props {
  x: Dimension;
  y: Dimension;
  colour: Dimension | undefined;
  focus: Signal<number | null>;
  label: (run: number) => string;
  onOpen: (run: number) => void;
}

const [WIDTH, HEIGHT, LEFT, BOTTOM] = [1000, 380, 80, 40];

export function Scatter({ x, y, colour, focus, label, onOpen }: Props) {
  const [across, up, shades] = [scaled(x.values), scaled(y.values), colour && scaled(colour.values)];
  const px = (share: number) => LEFT + 10 + share * (WIDTH - LEFT - 30);
  const py = (share: number) => HEIGHT - BOTTOM - 10 - share * (HEIGHT - BOTTOM - 30);
  const there = x.values.map((_, run) => run).filter((run) => across.at[run] != null && up.at[run] != null);
  return (
    <svg class="parallel" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`${y.name} against ${x.name}: ${there.length} runs`}>
      {across.ticks.map(([share, text]) => (
        <g key={share}>
          <line class="grid" x1={px(share)} x2={px(share)} y1={py(0)} y2={py(1)} />
          <text x={px(share)} y={HEIGHT - BOTTOM + 10} text-anchor="middle">{text}</text>
        </g>
      ))}
      {up.ticks.map(([share, text]) => (
        <g key={share}>
          <line class="grid" x1={px(0)} x2={px(1)} y1={py(share)} y2={py(share)} />
          <text x={LEFT - 2} y={py(share) + 4} text-anchor="end">{text}</text>
        </g>
      ))}
      <text x={px(0.5)} y={HEIGHT - 6} text-anchor="middle" class="name">{x.name}</text>
      <text x={12} y={16} class="name">{y.name}</text>
      {there.map((run) => (
        <circle
          key={run}
          cx={px(across.at[run] ?? 0)}
          cy={py(up.at[run] ?? 0)}
          r={focus.value === run ? 7 : 4.5}
          fill={shade(shades?.at[run] ?? 0.4)}
          class={focus.value === run ? "meant" : ""}
          onPointerEnter={() => { focus.value = run; }}
          onPointerLeave={() => { focus.value = null; }}
          onClick={() => onOpen(run)}
        >
          <title>{label(run)}</title>
        </circle>
      ))}
    </svg>
  );
}
