/** Long-running work: runs tasks in order, with progress, remaining time and cancellation. */

import { ApiError, OnProgress, Progress } from "./api";
import { element, noProblem, problem, say } from "./page";

const MAX_BACKOFF_S = 10;
let last: Promise<unknown> = Promise.resolve();
let stopping = new AbortController();

/** Cancels the current task. */
export function stop(): void { stopping.abort(); }

/**
 * Runs `task` after the previous tasks. Returns its result, or `undefined` if it was cancelled or failed, which the page shows.
 *
 * If the server is busy or the connection is lost, the task is retried with back-off until it succeeds or is cancelled.
 */
export function work<T>(what: string, task: (signal: AbortSignal, onProgress: OnProgress) => Promise<T>): Promise<T | undefined> {
  const queued = last.then(() => run(what, task));
  last = queued;
  return queued;
}

async function run<T>(what: string, task: (signal: AbortSignal, onProgress: OnProgress) => Promise<T>): Promise<T | undefined> {
  const { signal } = (stopping = new AbortController());
  const bar = element<HTMLProgressElement>("progress");
  const begin = (): void => { bar.removeAttribute("value"); say(`${what} …`); };
  busy(true);
  noProblem();
  try {
    for (let attempts = 0; ; attempts++) {
      begin();
      try {
        const result = await task(signal, (progress) => show(what, bar, progress));
        noProblem();
        say(attempts ? "Done after retrying." : "");
        return result;
      } catch (error) {
        if (!(error instanceof ApiError && error.retryable)) throw error;
        await wait(error, attempts, signal);
      }
    }
  } catch (error) {
    problem(error);
    return undefined;
  } finally {
    busy(false);
  }
}
element("cancel").onclick = stop;

function busy(is: boolean): void {
  element("cancel").hidden = element("progress").hidden = !is;
  element<HTMLButtonElement>("generate").disabled = is;
}

function show(what: string, bar: HTMLProgressElement, progress: Progress): void {
  noProblem();
  if (progress.event === "waiting") return say(progress.position ? `${what}: position ${progress.position} in the queue` : `${what} …`);
  const { stage, done, total, seconds } = progress;
  if (!total) {
    bar.removeAttribute("value");
    return say(`${what}: ${stage}`);
  }
  bar.max = total;
  bar.value = done;
  const left = done ? (seconds / done) * (total - done) : 0;
  say(`${what}: ${stage} ${done} of ${total}${left > 1 ? `, about ${Math.ceil(left)} s left` : ""}`);
}

/** Shows the error and waits before the next attempt; throws an AbortError when aborted. */
async function wait(why: ApiError, attempts: number, signal: AbortSignal): Promise<void> {
  const seconds = Math.min(MAX_BACKOFF_S, Math.ceil(why.retryAfter ?? 2 ** attempts));
  problem(why);
  for (let left = seconds; left > 0; left--) {
    say(`Retrying in ${left} s …`);
    await new Promise<void>((done, failed) => {
      const timer = setTimeout(done, 1000);
      signal.addEventListener("abort", () => { clearTimeout(timer); failed(signal.reason); }, { once: true });
    });
  }
}
