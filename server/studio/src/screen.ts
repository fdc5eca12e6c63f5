/** Displays the open video, or the server's preview if this browser cannot play it. */

import { preview, Sent, Video } from "./api";
import { filmstrip, Picture } from "./filmstrip";
import { say } from "./page";

export class Screen {
  private ending = new AbortController();

  constructor(private readonly video: HTMLVideoElement) {}

  /** Shows a video instead of the previous one, and yields its thumbnails. */
  async *show(sent: Sent<Video>, seconds: number): AsyncGenerator<Picture> {
    this.ending.abort();
    const { signal } = (this.ending = new AbortController());
    if (!(await this.load(sent.file)) && !signal.aborted) {
      try {
        await this.load(await sent.use(signal, (found) => preview(found.video, signal)));
      } catch {
        if (!signal.aborted) say("The video cannot be shown; its sound can be made all the same.");
        return;
      }
    }
    for await (const picture of filmstrip(this.video.src, seconds, signal)) {
      if (signal.aborted) return;
      yield picture;
    }
  }

  private load(file: Blob): Promise<boolean> {
    const { video } = this;
    URL.revokeObjectURL(video.src);
    return new Promise((done) => {
      video.onloadeddata = () => done(video.videoWidth > 0);
      video.onerror = () => done(false);
      video.src = URL.createObjectURL(file);
    });
  }
}
