/** Client of the studio's HTTP API, and the types of its responses. */

export const FRAMES_A_SECOND = 100; // values of a curve per second
export const SAMPLE_RATE = 16_000; // of a take, Hz
const SILENCE_MS = 15_000; // the server sends a line at least every 5 s while it works

export interface Settings { steps: number; guidance: number }
export interface Option { help: string; default: string | number | null; choices: string[]; low: number | null; high: number | null }
export interface About { options: Record<string, Option>; profiles: Record<string, Settings>; examples: string[]; max_bytes: number; max_duration_s: number }
export interface Video { video: string; duration_s: number; sample_count: number }
export interface Recording { recording: string; envelope: number[] }
export interface Take { take: string; recipe: Record<string, unknown>; produced: number[] }
export interface TakeRequest { // the seed is a text: a number of JavaScript has only 53 bits
  envelope: number[]; sample_count: number; text: string; audio?: string; negative_text: string;
  seed: string; steps: number; guidance: number; profile: string; variations: number;
}
export type Progress =
  | { event: "waiting"; position: number; seconds: number }
  | { event: "progress"; stage: string; done: number; total: number | null; seconds: number };
type Line = Progress | { event: "envelope"; envelope: number[] } | { event: "takes"; takes: Take[] };
export type OnProgress = (progress: Progress) => void;

/** An error that the server reported, with its message. */
export class ApiError extends Error {
  constructor(message: string, readonly reason: string, readonly retryAfter?: number) { super(message); }

  /** Whether the request can be retried. */
  get retryable(): boolean { return this.reason === "LOST" || this.retryAfter !== undefined; }
}

let token = "";
export function useToken(given: string): void { token = given; }
function authorization(): Record<string, string> { return token ? { Authorization: `Bearer ${token}` } : {}; }

async function ask(path: string, options: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, { ...options, headers: authorization() });
  } catch (error) {
    throw options.signal?.aborted ? error : lost();
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => undefined);
  throw toApiError(body?.error, answer.status);
}

function lost(): ApiError { return new ApiError("The connection to the server is lost.", "LOST"); }

interface ErrorDocument { message: string; reason: string; retry_after_s: number | null }
function toApiError(error: ErrorDocument | undefined, status: number): ApiError {
  return error ? new ApiError(error.message, error.reason, error.retry_after_s ?? undefined) : new ApiError(`The server answered ${status}.`, "UNKNOWN");
}

/** Awaits a response body; a connection that is lost meanwhile throws `ApiError`. */
async function read<T>(body: Promise<T>, signal?: AbortSignal): Promise<T> {
  try {
    return await body;
  } catch (error) {
    throw signal?.aborted ? error : lost();
  }
}

let largest = Infinity; // maximum size of an upload, bytes

export async function about(): Promise<About> {
  const found: About = await read((await ask("/api/about")).json());
  largest = found.max_bytes;
  return found;
}

export async function example(name: string): Promise<File> {
  const answer = await ask(`/api/examples/${encodeURIComponent(name)}`);
  return new File([await read(answer.blob())], name, { type: answer.headers.get("content-type") ?? "" });
}

export function addVideo(file: Blob, onProgress: OnProgress, signal: AbortSignal): Promise<Video> { return upload("/api/videos", file, onProgress, signal); }

export function addRecording(file: Blob, onProgress: OnProgress, signal: AbortSignal): Promise<Recording> { return upload("/api/recordings", file, onProgress, signal); }

/** Uploads a file and reports progress, which `fetch` does not support. */
function upload<T>(path: string, file: Blob, onProgress: OnProgress, signal: AbortSignal): Promise<T> {
  const request = new XMLHttpRequest(), begun = performance.now(), megabytes = (bytes: number): number => Math.round(bytes / 1e5) / 10;
  return new Promise<T>((done, failed) => {
    signal.throwIfAborted();
    // checked here, since the browser may not receive a response that is sent during the upload
    if (file.size > largest) throw new ApiError(`the file has ${megabytes(file.size)} MB, more than the limit of ${Math.floor(largest / 1e6)} MB; shorten it`, "TOO_LARGE");
    signal.addEventListener("abort", () => { request.abort(); failed(signal.reason); }, { once: true });
    request.open("POST", path);
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = ({ loaded, total }) =>
      onProgress({ event: "progress", stage: "megabyte", done: megabytes(loaded), total: megabytes(total), seconds: (performance.now() - begun) / 1000 });
    request.onload = () => (request.status < 300 ? done(request.response as T) : failed(toApiError(request.response?.error, request.status)));
    request.onerror = () => failed(lost());
    request.send(file);
  });
}

/** Returns a preview of a video that this browser cannot play. */
export async function preview(video: string, signal: AbortSignal): Promise<Blob> {
  return read((await ask(`/api/videos/${video}/preview.mp4`, { signal })).blob(), signal);
}

/** Returns a video with a sound; its own audio is replaced, mixed in, or kept as a second track. */
export async function mux(video: string, wav: Blob, sourceAudio: string, signal: AbortSignal): Promise<Blob> {
  return read((await ask(`/api/videos/${video}/mux?source_audio=${sourceAudio}`, { method: "POST", body: wav, signal })).blob(), signal);
}

export async function wav(take: string, signal: AbortSignal): Promise<Blob> {
  return read((await ask(`/api/takes/${take}.wav`, { signal })).blob(), signal);
}

/** Predicts the curve of a video. */
export async function predict(video: string, onProgress: OnProgress, signal: AbortSignal): Promise<number[]> {
  const last = await follow(`/api/videos/${video}/envelope`, { method: "POST", signal }, onProgress);
  if (last.event !== "envelope") throw lost();
  return last.envelope;
}

export async function createTakes(request: TakeRequest, onProgress: OnProgress, signal: AbortSignal): Promise<Take[]> {
  const last = await follow("/api/takes", { method: "POST", body: JSON.stringify(request), signal }, onProgress);
  if (last.event !== "takes") throw lost();
  return last.takes;
}

/** Reads a stream of JSON lines and returns the last one. Aborting also stops the work on the server. */
async function follow(path: string, options: RequestInit & { signal: AbortSignal }, onProgress: OnProgress): Promise<Line> {
  const reader = (await ask(path, options)).body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", last: Line | undefined;
  while (true) {
    let silence: number | undefined;
    const silent = new Promise<never>((_, failed) => { silence = window.setTimeout(() => { void reader.cancel(); failed(lost()); }, SILENCE_MS); });
    const { value, done } = await read(Promise.race([reader.read(), silent]), options.signal).finally(() => clearTimeout(silence));
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const text of lines) {
      const line = JSON.parse(text);
      if (line.event === "error") throw toApiError(line.error, 500);
      last = line as Line;
      if (last.event === "waiting" || last.event === "progress") onProgress(last);
    }
  }
  if (!last) throw lost();
  return last;
}

/** An uploaded file, which is uploaded again if the server no longer has it (after a restart, or evicted by later uploads). */
export class Sent<Answer> {
  answer?: Answer;

  constructor(readonly file: Blob, readonly name: string, private readonly send: (file: Blob, onProgress: OnProgress, signal: AbortSignal) => Promise<Answer>) {}

  /** Uploads the file and returns the server's response, which names it. */
  async arrive(signal: AbortSignal, onProgress: OnProgress = () => {}): Promise<Answer> { return (this.answer = await this.send(this.file, onProgress, signal)); }

  async use<T>(signal: AbortSignal, action: (sent: Answer) => Promise<T>): Promise<T> {
    const known = this.answer;
    try {
      return await action(known ?? (await this.arrive(signal)));
    } catch (error) {
      if (!known || !(error instanceof ApiError) || error.reason !== "NOT_FOUND") throw error;
      return action(await this.arrive(signal));
    }
  }
}
