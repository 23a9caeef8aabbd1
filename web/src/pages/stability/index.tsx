/** Is it sick, since when, which layer, which rank, what kind, what changed: one range of steps for all panels. */

import { type Signal, useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import type { Answer } from "../../api";
import { answers } from "../../embedded";
import { earlier, later, type Range, zoom } from "../../charts/axes";
import type { Finding, RunAnswer } from "../../model";
import { place, set } from "../../router";
import { news } from "../../state";
import { written } from "../../zoomed";
import { Answered } from "../../ui/notices";
import { useKeys } from "../../ui/shell";
import { steps, Zoom } from "../look";
import { Curves } from "./curves";
import { Detail } from "./detail";
import { around, graveFirst, Lane, List, round } from "./findings";
import { Health } from "./health";
import { Layers } from "./layers";
import { Ranks } from "./ranks";

interface Props {
  run: RunAnswer;
  range: Signal<Range>;
  answer: Answer<Finding[]>;
}

export function Stability({ run, range, answer }: Props) {
  const live = run.state === "running" ? news.value : 0;
  const findings = useMemo(() => graveFirst(answer.data ?? []), [answer.data]);
  const at = useSignal(-1);
  const choose = (i: number) => {
    const finding = findings[i];
    if (!finding) return;
    at.value = i;
    zoom(range, round(finding));
    const [name] = finding.names;
    if (name && finding.kind && answers("histogram", { run: run.uid, kind: finding.kind, name, x: steps(range) })) set({ tensor: name, kind: finding.kind });
  };
  const given = place.value.query.get("at");
  useEffect(() => {
    if (given === null || !/^\d+$/.test(given)) return;
    const step = Number(given);
    set({ at: undefined, range: written(around(step, step)) });
  }, [given]);
  useKeys({
    ".": () => choose(Math.min(at.value + 1, findings.length - 1)),
    ",": () => choose(Math.max(at.value - 1, 0)),
    "0": () => zoom(range, null),
    "[": () => earlier(range),
    "]": () => later(range),
  });
  const panel = { run, range, live, findings };
  return (
    <>
      <Health run={run} findings={answer.data} />
      <div class="stability">
        <div class="card stack">
          {findings.length > 0 && <Lane findings={findings} range={range} run={run} onChoose={choose} chosen={at.value} />}
          <Curves run={run} range={range} live={live} />
          <Layers {...panel} />
          {run.world_size > 1 && <Ranks {...panel} />}
          <Detail run={run} range={range} live={live} />
        </div>
        <aside class="card findings" aria-label="findings">
          <h2>
            Findings <small>{findings.length || ""}</small> <Zoom range={range} />
          </h2>
          <Answered answer={answer}>
            {() =>
              findings.length === 0 ? (
                <p class="quiet">No rule has found anything. That is what a healthy run looks like.</p>
              ) : (
                <List findings={findings} chosen={at.value} onChoose={choose} />
              )
            }
          </Answered>
        </aside>
      </div>
    </>
  );
}
