/** Loss and gradient norm: where one sees that something happened at all. */

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { useAnswer } from "../../api";
import { whole } from "../../charts/axes";
import { colour } from "../../charts/colours";
import { LineChart } from "../../charts/line";
import { cursor } from "../../state";
import type { RunAnswer } from "../../model";
import { Menu } from "../../ui/menu";
import { smoothing, steps, tau } from "../look";
import { useReportActions } from "../reports/adding";
import { curvesPanel } from "../reports/panel";
import { curves, linesOf, lossOf } from "../series";
import { buckets, type Panel } from "./parts";

type Props = Omit<Panel, "findings" | "run"> & { run: RunAnswer };

const CURVES: [string, string, boolean][] = [
  ["loss", "Loss", false],
  ["watch/grad_norm", "Gradient norm", true],
];

export function Curves({ run, range, live }: Props) {
  const known = Object.keys(run.summary);
  const metrics = CURVES.map(([metric, title, log]) => [metric === "loss" ? lossOf(known) : metric, title, log] as const);
  return (
    <>
      {metrics.map(([metric, title, log]) =>
        metric && known.includes(metric) ? <Curve key={metric} run={run} range={range} live={live} metric={metric} title={title} log={log} /> : null,
      )}
    </>
  );
}

function Curve({ run, range, live, metric, title, log }: Props & { metric: string; title: string; log: boolean }) {
  const width = useSignal(0);
  const body = { items: [{ run: run.uid, metric }], x: steps(range), px: buckets(width.value), smooth: tau(smoothing(undefined, whole(run.last_step))) };
  const key = width.value ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => curves(body, signal));
  const data = answer.value.data;
  const lines = useMemo(() => {
    const source = { item: { run: run.uid }, label: title, colour: colour(log ? 3 : 0) };
    return data ? linesOf(data, [source], { smoothed: body.smooth !== null }) : [];
  }, [data, log, body.smooth === null]);
  const look = new URLSearchParams(log ? { y: "log" } : {});
  const actions = useReportActions(() => curvesPanel(metric, [{ item: { run: run.uid } }], look, range.value, body.smooth?.tau ?? 0));
  return (
    <figure class="panel">
      <figcaption>
        <span class="of">{title} <small>{metric === title.toLowerCase() ? "" : metric}</small></span>
        {actions.length > 0 && <Menu label={`what can be done with ${metric}`} actions={actions} />}
      </figcaption>
      <LineChart
        x={data?.x}
        bucket={data?.bucket ?? 0}
        lines={lines}
        range={range}
        all={whole(run.last_step)}
        cursor={cursor}
        syncKey={run.uid}
        height={104}
        bare
        scale={log ? "log" : "linear"}
        title={title}
        onWidth={(pixels) => {
          width.value = pixels;
        }}
      />
    </figure>
  );
}
