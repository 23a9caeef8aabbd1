/** The chart that a logged table asks for. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { colour } from "../../charts/colours";
import { short } from "../../format";
import { type Drawing, extent, ticks } from "./chart";

const [LEFT, BOTTOM, TOP, RIGHT] = [46, 32, 8, 10];
const BAR = 18;
/** Above a chart, in pixels. */
const HEAD = 24;
/** Letters of a label beside a bar or a cell. */
const LABEL = 14;

interface Props {
  drawing: Drawing;
  title: string;
  height: number;
}

export function Drawn({ drawing, title, height }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const width = useSignal(0);
  useEffect(() => {
    if (!box.current) return;
    const watched = new ResizeObserver(([entry]) => { width.value = Math.floor(entry?.contentRect.width ?? 0); });
    watched.observe(box.current);
    return () => watched.disconnect();
  }, [width]);
  const room = Math.max(90, height - HEAD);
  const tall = drawing.kind === "bars" ? drawing.bars.length * BAR + 8 : room;
  return (
    <div class="drawn" ref={box} style={{ height: `${height}px` }}>
      <Head drawing={drawing} />
      {width.value > 0 && (
        <svg class="parallel" width={width.value} height={Math.max(room, tall)} role="img" aria-label={summary(drawing, title)}>
          <Shapes drawing={drawing} width={width.value} height={room} />
        </svg>
      )}
      {drawing.kind === "bars" && drawing.left > 0 && <p class="quiet note">and {drawing.left} more rows</p>}
    </div>
  );
}

/** Above a chart: what its colours mean, else what it shows upwards. */
function Head({ drawing }: { drawing: Drawing }) {
  if (drawing.kind === "matrix") return <div class="legend">actual, and what it was taken for</div>;
  if (drawing.kind !== "curves") return <div class="legend">{drawing.kind === "bars" ? drawing.value : "count"}</div>;
  const named = drawing.groups.filter(({ name }) => name !== "");
  if (named.length === 0) return <div class="legend">{drawing.y}</div>;
  return (
    <div class="legend">
      {named.map(({ name }, i) => (
        <span key={name} title={name}>
          <i class="swatch" style={{ background: colour(i) }} /> {cut(name, LABEL)}
        </span>
      ))}
    </div>
  );
}

function summary(drawing: Drawing, title: string): string {
  switch (drawing.kind) {
    case "curves": return `${title}: ${drawing.y} over ${drawing.x}, ${drawing.groups.length} ${drawing.joined ? "lines" : "groups of points"}`;
    case "bars": return `${title}: ${drawing.value} of ${drawing.bars.length}`;
    case "columns": return `${title}: how often ${drawing.value} is what`;
    case "matrix": return `${title}: ${drawing.down.length} by ${drawing.across.length}`;
  }
}

type Size = { width: number; height: number };

function Shapes({ drawing, ...size }: Size & { drawing: Drawing }) {
  switch (drawing.kind) {
    case "curves": return <Curves {...drawing} {...size} />;
    case "bars": return <Bars {...drawing} {...size} />;
    case "columns": return <Columns {...drawing} {...size} />;
    case "matrix": return <Matrix {...drawing} {...size} />;
  }
}

/** With some air above and below. */
function wider([low, high]: [number, number]): [number, number] {
  const air = 0.04 * (high - low || Math.abs(high) || 1);
  return [low - air, high + air];
}

/** Pixels of a value on x and on y, and the grid between. */
function scales(x: [number, number], y: [number, number], { width, height }: Size) {
  const px = (value: number) => LEFT + ((value - x[0]) / (x[1] - x[0] || 1)) * (width - LEFT - RIGHT);
  const py = (value: number) => height - BOTTOM - ((value - y[0]) / (y[1] - y[0] || 1)) * (height - BOTTOM - TOP);
  return { px, py };
}

function Grid({ x, y, nameX, ...size }: Size & { x: [number, number]; y: [number, number]; nameX: string }) {
  const { px, py } = scales(x, y, size);
  return (
    <>
      {ticks(x, Math.max(3, size.width / 70)).map((value) => (
        <g key={value}>
          <line class="grid" x1={px(value)} x2={px(value)} y1={TOP} y2={size.height - BOTTOM} />
          <text x={px(value)} y={size.height - BOTTOM + 13} text-anchor="middle">{short(value)}</text>
        </g>
      ))}
      {ticks(y, Math.max(3, size.height / 45)).map((value) => (
        <g key={value}>
          <line class="grid" x1={LEFT} x2={size.width - RIGHT} y1={py(value)} y2={py(value)} />
          <text x={LEFT - 5} y={py(value) + 4} text-anchor="end">{short(value)}</text>
        </g>
      ))}
      <text x={(LEFT + size.width - RIGHT) / 2} y={size.height - 4} text-anchor="middle" class="name">{nameX}</text>
    </>
  );
}

function Curves({ groups, joined, x, width, height }: Extract<Drawing, { kind: "curves" }> & Size) {
  const points = groups.flatMap((group) => group.points);
  const [across, up] = [extent(points.map(([a]) => a)), wider(extent(points.map(([, b]) => b)))];
  const { px, py } = scales(across, up, { width, height });
  return (
    <>
      <Grid x={across} y={up} nameX={x} width={width} height={height} />
      {groups.map(({ name, points: own }, i) =>
        joined ? (
          <polyline key={name} class="drawn-line" stroke={colour(i)} points={own.map(([a, b]) => `${px(a)},${py(b)}`).join(" ")}>
            <title>{name}</title>
          </polyline>
        ) : (
          own.map(([a, b], j) => (
            <circle key={`${name} ${j}`} cx={px(a)} cy={py(b)} r={3} fill={colour(i)}>
              <title>{`${name ? `${name}: ` : ""}${short(a)}, ${short(b)}`}</title>
            </circle>
          ))
        ),
      )}
    </>
  );
}

function Bars({ bars, width }: Extract<Drawing, { kind: "bars" }> & Size) {
  const side = Math.min(130, width / 3);
  const [low, high] = extent([0, ...bars.map(({ value }) => value)]);
  const px = (value: number) => side + ((value - low) / (high - low || 1)) * (width - side - 60);
  return (
    <>
      {bars.map(({ label, value }, i) => (
        <g key={i}>
          <text x={side - 6} y={i * BAR + 15} text-anchor="end" class="name">{cut(label, Math.floor(side / 7))}</text>
          <rect x={Math.min(px(0), px(value))} y={i * BAR + 4} width={Math.max(1, Math.abs(px(value) - px(0)))} height={BAR - 4} fill={colour(0)}>
            <title>{`${label}: ${value}`}</title>
          </rect>
          <text x={Math.max(px(0), px(value)) + 5} y={i * BAR + 15}>{short(value)}</text>
        </g>
      ))}
    </>
  );
}

function Columns({ edges, counts, value, ...size }: Extract<Drawing, { kind: "columns" }> & Size) {
  const across: [number, number] = [edges[0] ?? 0, edges[edges.length - 1] ?? 1];
  const up: [number, number] = [0, Math.max(1, ...counts)];
  const { px, py } = scales(across, up, size);
  return (
    <>
      <Grid x={across} y={up} nameX={value} {...size} />
      {counts.map((count, i) => {
        const [from, to] = [px(edges[i] ?? 0), px(edges[i + 1] ?? 0)];
        return (
          <rect key={i} x={from + 0.5} y={py(count)} width={Math.max(1, to - from - 1)} height={py(0) - py(count)} fill={colour(0)}>
            <title>{`${short(edges[i] ?? 0)} to ${short(edges[i + 1] ?? 0)}: ${count}`}</title>
          </rect>
        );
      })}
    </>
  );
}

function Matrix({ across, down, cells, most, width, height }: Extract<Drawing, { kind: "matrix" }> & Size) {
  const side = Math.min(110, width / 4);
  const [w, h] = [(width - side - 8) / across.length, (height - 40) / down.length];
  return (
    <>
      <text x={side + (width - side - 8) / 2} y={height - 4} text-anchor="middle" class="name">predicted</text>
      {across.map((name, i) => (w > 26 ? <text key={name} x={side + (i + 0.5) * w} y={height - 22} text-anchor="middle">{cut(name, Math.floor(w / 6.5))}</text> : null))}
      {down.map((name, i) => (
        <g key={name}>
          {h > 11 && <text x={side - 6} y={(i + 0.5) * h + 4} text-anchor="end" class="name">{cut(name, LABEL)}</text>}
          {across.map((other, j) => {
            const value = cells[i]?.[j] ?? null;
            const share = (value ?? 0) / (most || 1);
            return (
              <g key={other}>
                <rect x={side + j * w} y={i * h} width={Math.max(1, w - 1)} height={Math.max(1, h - 1)} fill={colour(0)} fill-opacity={value === null ? 0 : 0.06 + 0.94 * share}>
                  <title>{`${name}, taken for ${other}: ${value ?? "none"}`}</title>
                </rect>
                {w > 34 && h > 15 && value !== null && <text class={share > 0.5 ? "on-dark" : "name"} x={side + (j + 0.5) * w} y={(i + 0.5) * h + 4} text-anchor="middle">{short(value)}</text>}
              </g>
            );
          })}
        </g>
      ))}
    </>
  );
}

function cut(label: string, letters: number): string {
  return label.length > letters ? `${label.slice(0, Math.max(1, letters - 1))}…` : label;
}
