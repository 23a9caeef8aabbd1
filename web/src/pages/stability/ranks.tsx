/** Ranks over steps, each against the median rank: one that is unlike the others is seen at a glance. */

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { frame, useAnswer } from "../../api";
import { answers } from "../../embedded";
import { whole } from "../../charts/axes";
import { type Cells, HeatChart } from "../../charts/heat";
import { againstOthers } from "../../charts/layers";
import type { Frame } from "../../frame";
import type { RunAnswer, SeriesHeader } from "../../model";
import { useQuery } from "../../query";
import { cursor } from "../../state";
import { steps } from "../look";
import { comparedBy, OWN_NORM } from "../series";
import { Actions, buckets, Choice, endOf, Legend, NOTHING, type Panel, type Pointed, ROW, Tip } from "./parts";

const MOST_RANKS = 256;
const AGAINST = { base: 2, unit: "× the median rank" } as const;

interface Props extends Panel {
  run: Panel["run"] & Partial<Pick<RunAnswer, "summary">>;
}

export function Ranks({ run, range, live, findings }: Props) {
  const { query, set } = useQuery();
  const logged = Object.keys(run.summary ?? {});
  const metric = query.get("of") ?? comparedBy(logged);
  const width = useSignal(0);
  const pointed = useSignal<Pointed | null>(null);
  const ranks = Math.min(run.world_size, MOST_RANKS);
  const about = (name: string) => ({
    items: Array.from({ length: ranks }, (_, rank) => ({ run: run.uid, metric: name, rank })),
    x: steps(range),
    px: buckets(width.value),
  });
  const body = about(metric);
  const key = width.value ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => frame<SeriesHeader>("series", body, signal));
  const data = answer.value.data;
  const sick = new Set(findings.filter((finding) => finding.severity !== "info").flatMap((finding) => finding.ranks));
  const cells = useMemo<Cells>(() => ranksOf(data, ranks), [data, ranks]);
  const known = logged.filter((name) => !name.startsWith("_tt/"));
  const metrics = [...new Set([OWN_NORM, metric, ...known])].filter((name) => answers("series", about(name)));
  return (
    <figure class="panel">
      <figcaption>
        Ranks
        <Choice label="metric of each rank" value={metric} options={metrics.map((name) => [name, name])} onChange={(value) => set({ of: value })} />
        <Legend limits={[-1, 1]} kind="diverging" scale={AGAINST} missing />
        <Actions show="ranks" run={run} range={range} of={metric === OWN_NORM ? undefined : metric} />
      </figcaption>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      <HeatChart
        cells={cells}
        kind="diverging"
        limits={[-1, 1]}
        labels={Array.from({ length: ranks }, (_, row) => ({ row, text: sick.has(row) ? `▲ rank ${row}` : `rank ${row}` }))}
        range={range}
        all={whole(run.last_step)}
        cursor={cursor}
        syncKey={run.uid}
        bare
        height={Math.max(40, Math.min(300, ranks * ROW + 10))}
        title={`ranks by step, ${metric}`}
        onWidth={(pixels) => {
          width.value = pixels;
        }}
        onPoint={(row, column, at) => {
          pointed.value = row === null || column === null ? null : { row, column, ...at };
        }}
      />
      <Tip pointed={pointed.value} cells={cells} name={(row) => `rank ${row}`} scale={AGAINST} />
    </figure>
  );
}

function ranksOf(data: Frame<SeriesHeader> | undefined, ranks: number): Cells {
  const x = data?.columns.get("x") ?? NOTHING;
  const values = new Float64Array(ranks * x.length).fill(Number.NaN);
  const nonfinite = new Uint8Array(values.length);
  for (let rank = 0; rank < ranks; rank++) {
    const mean = data?.columns.get(`mean.${rank}`);
    const bad = data?.columns.get(`nonfinite.${rank}`);
    for (let i = 0; i < x.length; i++) {
      values[rank * x.length + i] = mean?.[i] ?? Number.NaN;
      nonfinite[rank * x.length + i] = bad?.[i] ? 1 : 0;
    }
  }
  const missing = lacking(values, x.length);
  const shown = againstOthers(values, x.length);
  return { x, end: endOf(x, data?.header.bucket ?? 1), rows: data ? ranks : 0, values: shown, nonfinite, missing };
}

/** Where a rank has no value while another has one: a norm that is not finite is not logged. */
export function lacking(values: Float64Array, columns: number): Uint8Array {
  const known = new Uint8Array(columns);
  values.forEach((value, i) => {
    if (!Number.isNaN(value)) known[i % columns] = 1;
  });
  return Uint8Array.from(values, (value, i) => (Number.isNaN(value) ? (known[i % columns] ?? 0) : 0));
}
