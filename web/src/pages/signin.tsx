/** What somebody sees whom the server does not know: how to get in. The address stays, and is shown once they are. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { address, ServerError } from "../api";
import { place } from "../router";
import { leave, signIn, way } from "../session";
import { Logo } from "../ui/marks";

/** Why the identity provider's word did not do, by the code in the address. */
const REFUSED: Record<string, string> = {
  not_allowed: "That login was not accepted: begin again, or ask an admin whether you are still let in.",
  provider: "The identity provider does not answer: try again in a moment, or use a key.",
};

export function SignIn() {
  const key = useSignal("");
  const problem = useSignal(REFUSED[place.value.query.get("refused") ?? ""] ?? "");
  const busy = useSignal(false);
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  const enter = async () => {
    busy.value = true;
    try {
      await signIn(key.value.trim());
    } catch (error) {
      const wrong = error instanceof ServerError && error.status === 401;
      problem.value = wrong ? "This key lets nobody in: it is mistyped, was revoked, or has ended." : (error as Error).message;
      field.current?.select();
    }
    busy.value = false;
  };
  const provider = way.value;
  return (
    <main class="signin">
      <section class="card" aria-labelledby="signin">
        <p class="brand"><Logo /> torchtrack</p>
        <h1 id="signin">Sign in</h1>
        {provider?.url && provider.issuer && (
          <>
            <a class="button primary" href={address(provider.url)} onClick={leave}>Sign in with {host(provider.issuer)}</a>
            <p class="or" aria-hidden="true">or</p>
          </>
        )}
        <form onSubmit={(event) => { event.preventDefault(); void enter(); }}>
          <label for="key">Key</label>
          <input ref={field} id="key" type="password" required autocomplete="off" spellcheck={false} placeholder="tt_…" value={key.value} aria-invalid={problem.value !== ""} aria-describedby={problem.value ? "refused" : undefined} onInput={(event) => { key.value = event.currentTarget.value; problem.value = ""; }} />
          {problem.value && <p id="refused" class="problem" role="alert">{problem.value}</p>}
          <button type="submit" class={provider?.url ? "" : "primary"} disabled={busy.value}>Sign in</button>
        </form>
        <dl class="quiet">
          <dt><code>torchtrack ui</code></dt>
          <dd>Open the address that it has printed: that lets you in by itself.</dd>
          <dt><code>torchtrack server</code></dt>
          <dd>Use the key with which you train. An admin makes one by <code>torchtrack keys create</code>; the server's own lies in <code>DATA/token</code>.</dd>
        </dl>
      </section>
    </main>
  );
}

function host(issuer: string): string {
  return URL.canParse(issuer) ? new URL(issuer).host : issuer;
}
